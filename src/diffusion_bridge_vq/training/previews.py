"""What a run's picture grids show: reconstructions and samples."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from ..models import GumbelVQModel, PixelCNNPrior
from ..sampling import sample_latents
from ..schedulers import OUBridgeScheduler


@torch.no_grad()
def reconstruct(vqvae: GumbelVQModel, images: Dataset, count: int, device: torch.device) -> torch.Tensor:
    """`count` images from all over the data set, each before its reconstruction: (2 count, C, H, W) in [-1, 1]."""
    indices = torch.linspace(0, len(images) - 1, count).long().tolist()  # type: ignore[arg-type]
    originals = torch.stack([images[i]["images"] for i in indices]).to(device).float().div(127.5).sub(1)
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
    )
    return vqvae.decode(z_0).sample


@torch.no_grad()
def sample_pixelcnn(vqvae: GumbelVQModel, prior: PixelCNNPrior, count: int, device: torch.device) -> torch.Tensor:
    """`count` images drawn from a PixelCNN, of all classes in turn: (count, C, H, W), about [-1, 1]."""
    codes = prior.generate(count, class_labels=_all_classes(prior.config.num_class_embeds, count, device))
    return vqvae.decode(vqvae.decode_codes(codes), force_not_quantize=True).sample


def _all_classes(num_class_embeds: int | None, count: int, device: torch.device) -> torch.Tensor | None:
    return torch.arange(count, device=device) % (num_class_embeds - 1) if num_class_embeds else None
