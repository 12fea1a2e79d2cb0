"""The grids of images that a run writes: reconstructions and samples."""

from collections.abc import Mapping
from typing import Any

import torch

from ...data.pixels import to_pixels
from ...models import GumbelVQModel
from ...sampling.arguments import check_steps
from ...schedulers import OUBridgeScheduler
from ...schedulers.few_steps import is_student
from ..data import model_inputs
from ..objectives import Objective

GRID_IMAGES = 64


def check_grids(objective: Objective, num_inference_steps: int) -> None:
    """
    Raises:
        ValueError: steps with which the first grid of samples would be refused.
    """
    scheduler = getattr(objective, "scheduler", None)
    if not isinstance(scheduler, OUBridgeScheduler) or is_student(scheduler):
        return
    steps = min(num_inference_steps, len(scheduler))
    scheduler.set_timesteps(steps)
    try:
        check_steps(scheduler, steps)
    except ValueError as error:
        raise ValueError(f"`num_inference_steps` {num_inference_steps}, of the grids of samples: {error}") from error


@torch.no_grad()
def draw_grids(
    objective: Objective,
    components: Mapping[str, Any],
    preview: Mapping[str, torch.Tensor] | None,
    num_inference_steps: int,
    seed: int,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    """
    The grids of a step, pixels (`GRID_IMAGES`, C, H, W) about [-1, 1] by name: reconstructions, and samples if the
    objective draws any, of a run that draws from images with what they are drawn from and their originals. The run's
    randomness stays as it is.

    Args:
        objective ([`Objective`]): of the run.
        components (`Mapping[str, Any]`): by name, with averaged weights.
        preview (`Mapping[str, torch.Tensor]`, *optional*): from `preview_items`; its images are reconstructed.
        num_inference_steps (`int`): of a diffusion prior.
        seed (`int`): of the samples.
        device (`torch.device`): of the components.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        grids = {}
        samples = None
        if preview is not None:
            grids["reconstructions"] = reconstruct(components["vqvae"], preview["images"].to(device))
            few = {name: tensor[: GRID_IMAGES // 4] for name, tensor in preview.items()}
            samples = objective.draw_rows(components, model_inputs(few, device), num_inference_steps)
        if samples is None:
            samples = objective.draw_samples(components, GRID_IMAGES, num_inference_steps)
    return grids if samples is None else grids | {"samples": samples}


@torch.no_grad()
def reconstruct(vqvae: GumbelVQModel, images: torch.Tensor) -> torch.Tensor:
    """uint8 images (n, C, H, W), each followed by its reconstruction: (2 n, C, H, W) in [-1, 1]."""
    originals = to_pixels(images)
    pairs = torch.stack([originals, vqvae(originals).sample.clamp(-1, 1)], dim=1)  # (n, 2, C, H, W)
    return pairs.flatten(0, 1)
