"""Noise that quantizer and PixelCNN draw codes with."""

from collections.abc import Sequence

import torch

from .inputs import check_generator


def exponential_noise(
    shape: Sequence[int], generator: torch.Generator | list[torch.Generator] | None, device: torch.device
) -> torch.Tensor:
    """
    Exponential noise, float32. As diffusers' randn_tensor: a generator draws on its own device, so that seeds carry
    over, and a list has one per sample.
    """
    check_generator(generator)
    if isinstance(generator, list):
        return torch.cat([exponential_noise((1, *shape[1:]), one, device) for one in generator])
    source = device if generator is None else generator.device
    return torch.empty(tuple(shape), device=source).exponential_(generator=generator).to(device)
