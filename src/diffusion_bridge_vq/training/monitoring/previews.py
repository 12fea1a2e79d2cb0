"""The grids of images that a run writes: reconstructions and samples."""

from collections.abc import Mapping
from typing import Any

import torch

from ...data.pixels import to_pixels
from ...models import GumbelVQModel
from ..objectives import Objective

GRID_IMAGES = 64


@torch.no_grad()
def draw_grids(
    objective: Objective,
    components: Mapping[str, Any],
    images: torch.Tensor | None,
    num_inference_steps: int,
    seed: int,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    """
    The grids of a step, pixels (`GRID_IMAGES`, C, H, W) about [-1, 1] by name: reconstructions, and samples if the
    objective draws any. The run's randomness stays as it is.

    Args:
        objective ([`Objective`]): of the run.
        components (`Mapping[str, Any]`): by name, with averaged weights.
        images (`torch.Tensor`, *optional*): what is reconstructed, uint8 (n, C, H, W).
        num_inference_steps (`int`): of a diffusion prior.
        seed (`int`): of the samples.
        device (`torch.device`): of the components.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        grids = {}
        if images is not None:
            grids["reconstructions"] = reconstruct(components["vqvae"], images.to(device))
        samples = objective.draw_samples(components, GRID_IMAGES, num_inference_steps)
    return grids if samples is None else grids | {"samples": samples}


@torch.no_grad()
def reconstruct(vqvae: GumbelVQModel, images: torch.Tensor) -> torch.Tensor:
    """uint8 images (n, C, H, W), each followed by its reconstruction: (2 n, C, H, W) in [-1, 1]."""
    originals = to_pixels(images)
    pairs = torch.stack([originals, vqvae(originals).sample.clamp(-1, 1)], dim=1)  # (n, 2, C, H, W)
    return pairs.flatten(0, 1)
