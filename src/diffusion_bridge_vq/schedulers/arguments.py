"""What the scheduler's methods may be called with."""

from typing import Any

import torch

from .bridge_settings import is_whole


def check_samples(**samples: torch.Tensor) -> None:
    """
    Raises:
        TypeError: one isn't a tensor.
        ValueError: one has no batch and channels, or no floating-point numbers, or shapes differ.
    """
    (first, reference), *_ = samples.items()
    for name, each in samples.items():
        if not isinstance(each, torch.Tensor):
            raise TypeError(f"`{name}` must be a torch.Tensor, got {type(each).__name__}.")
        if each.ndim == 0 or not each.is_floating_point():
            raise ValueError(
                f"`{name}` must be (B, d, ...) with floating-point numbers, got shape {tuple(each.shape)} of "
                f"{each.dtype}."
            )
        if each.shape != reference.shape:
            raise ValueError(
                f"`{name}` has shape {tuple(each.shape)}, expected that of `{first}`, {tuple(reference.shape)}."
            )


def check_single(timestep: torch.Tensor | int) -> None:
    """
    Raises:
        ValueError: several timesteps.
    """
    if isinstance(timestep, torch.Tensor) and timestep.numel() != 1:
        raise ValueError(f"`timestep` must be one for all samples, got {timestep.numel()}.")


def check_order(timestep: torch.Tensor | int, prev_timestep: torch.Tensor | int) -> None:
    """
    Values on a device aren't looked at.

    Raises:
        ValueError: `prev_timestep` isn't smaller than `timestep`.
    """
    pair = (timestep, prev_timestep)
    if any(isinstance(each, torch.Tensor) and each.device.type != "cpu" for each in pair):
        return
    gaps = torch.as_tensor(timestep) - torch.as_tensor(prev_timestep)
    if gaps.numel() and int(gaps.min()) <= 0:
        raise ValueError(f"`prev_timestep` must be smaller than `timestep`, got {prev_timestep} and {timestep}.")


def check_shape(shape: Any, fewest: int = 1) -> tuple[int, ...]:
    """
    The shape as integers.

    Raises:
        ValueError: fewer than `fewest` sides, or sides that aren't whole numbers of at least 1.
    """
    sides = shape if isinstance(shape, (tuple, list)) else ()
    if len(sides) < fewest or not all(is_whole(side) and side >= 1 for side in sides):
        form = "(B, d, h, w) or (B, d, N)" if fewest == 3 else "(B, d, ...)"
        raise ValueError(f"`shape` must be {form}, whole numbers of at least 1, got {shape!r}.")
    return tuple(int(side) for side in sides)


def check_generators(generator: Any, batch_size: int) -> None:
    """
    Raises:
        ValueError: not a generator, a list of other things, or of another length than the batch.
    """
    generators = generator if isinstance(generator, list) else [] if generator is None else [generator]
    if not all(isinstance(one, torch.Generator) for one in generators):
        raise ValueError(
            f"`generator` must be a torch.Generator or a list of them, got {generator!r}; a seed becomes one by "
            "`torch.Generator().manual_seed(seed)`."
        )
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(f"Got {len(generator)} generators for a batch of {batch_size}; give one per image or one.")
