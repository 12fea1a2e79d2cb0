"""Calls of a tiny inpainting pipeline."""

import torch
from tiny_models import STEPS, make_pipeline, rng

from diffusion_bridge_vq import DiffusionBridgeVQInpaintPipeline


def make(**kwargs) -> DiffusionBridgeVQInpaintPipeline:
    pipe = DiffusionBridgeVQInpaintPipeline(**make_pipeline(**kwargs).components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_images(n: int = 2, channels: int = 3) -> torch.Tensor:
    """uint8 values, so that every form of input can hold them."""
    return torch.randint(256, (n, channels, 6, 6), generator=rng(5), dtype=torch.uint8)


def make_mask() -> torch.Tensor:
    """Hides one pixel, which hides the whole middle patch of 3 x 3, and the patches of the last column."""
    mask = torch.zeros(6, 6)
    mask[2, 3] = 1
    mask[:, 4:] = 1
    return mask


HIDDEN_LATENTS = torch.tensor([[0, 0, 1], [0, 1, 1], [0, 0, 1]], dtype=torch.bool)


def run(pipe: DiffusionBridgeVQInpaintPipeline, image=None, mask=None, seed: int | None = 0, **kwargs):
    image = make_images().float() / 255 if image is None else image
    mask = make_mask() if mask is None else mask
    kwargs = {"num_inference_steps": STEPS, "output_type": "pt"} | kwargs
    return pipe(image, mask, **kwargs if seed is None else {"generator": rng(seed)} | kwargs).images
