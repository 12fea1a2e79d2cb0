"""What a run's picture grids show: reconstructions and samples."""

from typing import Any

import torch
from torch import nn

from ...data.pixels import to_pixels
from ...models import GumbelVQModel, PixelCNNPrior
from ...sampling import sample_latents
from ...schedulers import OUBridgeScheduler

GRID_IMAGES = 64


@torch.no_grad()
def draw_grids(
    parts: dict[str, Any],
    scheduler: OUBridgeScheduler | None,
    images: torch.Tensor,
    num_inference_steps: int,
    seed: int,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    """
    The pictures of a moment, pixels (`GRID_IMAGES`, C, H, W) about [-1, 1] by name: reconstructions, and samples if
    there is a prior. The run's randomness stays as it is.

    Args:
        parts (`dict`): the components by name: vqvae, and unet or prior.
        scheduler ([`OUBridgeScheduler`], *optional*): of `unet`.
        images (`torch.Tensor`): what is reconstructed, uint8 (n, C, H, W).
        num_inference_steps (`int`): of `unet`.
        seed (`int`): of the samples.
        device (`torch.device`): of the components.
    """
    vqvae = parts["vqvae"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        grids = {"reconstructions": reconstruct(vqvae, images.to(device))}
        if "prior" in parts:
            grids["samples"] = sample_pixelcnn(vqvae, parts["prior"], GRID_IMAGES, device)
        elif "unet" in parts and scheduler is not None:
            unet = parts["unet"]
            grids["samples"] = sample_bridge(vqvae, unet, scheduler, GRID_IMAGES, num_inference_steps, device)
    return grids


@torch.no_grad()
def reconstruct(vqvae: GumbelVQModel, images: torch.Tensor) -> torch.Tensor:
    """uint8 images (n, C, H, W), each before its reconstruction: (2 n, C, H, W) in [-1, 1]."""
    originals = to_pixels(images)
    pairs = torch.stack([originals, vqvae(originals).sample.clamp(-1, 1)], dim=1)  # (n, 2, C, H, W)
    return pairs.flatten(0, 1)


@torch.no_grad()
def sample_bridge(
    vqvae: GumbelVQModel,
    unet: nn.Module,
    scheduler: OUBridgeScheduler,
    count: int,
    num_inference_steps: int,
    device: torch.device,
) -> torch.Tensor:
    """`count` images drawn from a diffusion prior, of all classes in turn: (count, C, H, W), about [-1, 1]."""
    config: Any = unet.config
    size = config.sample_size if isinstance(config.sample_size, int) else config.sample_size[0]
    z_0 = sample_latents(
        unet,
        scheduler,
        (count, config.in_channels, size, size),
        min(num_inference_steps, len(scheduler)),
        device=device,
        class_labels=_all_classes(config.num_class_embeds, count, device),
        solver="ancestral",
    )
    return vqvae.decode(z_0).sample


@torch.no_grad()
def sample_pixelcnn(vqvae: GumbelVQModel, prior: PixelCNNPrior, count: int, device: torch.device) -> torch.Tensor:
    """`count` images drawn from a PixelCNN, of all classes in turn: (count, C, H, W), about [-1, 1]."""
    codes = prior.generate(count, class_labels=_all_classes(prior.config.num_class_embeds, count, device))
    return vqvae.decode(vqvae.decode_codes(codes), force_not_quantize=True).sample


def _all_classes(num_class_embeds: int | None, count: int, device: torch.device) -> torch.Tensor | None:
    return torch.arange(count, device=device) % (num_class_embeds - 1) if num_class_embeds else None
