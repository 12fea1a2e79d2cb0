"""At which noise levels few steps of one network lie best."""

import itertools
from collections.abc import Callable

import torch

from ..schedulers import OUBridgeScheduler

# Half log-SNRs that steps are moved by, as fractions of the mean distance between two, one after the other.
_MOVES = (0.5, 0.25, 0.125)


def fit_timesteps(
    scheduler: OUBridgeScheduler,
    num_inference_steps: int,
    draw: Callable[[list[int]], torch.Tensor],
    reference: torch.Tensor,
) -> tuple[list[int], float]:
    """
    The timesteps with which few steps end nearest to where many end from the same noise, by coordinate descent in
    half the log-SNR from the spacing "logsnr".

    Args:
        scheduler ([`OUBridgeScheduler`]): the process.
        num_inference_steps (`int`): the number of timesteps.
        draw (`Callable`): descending timesteps -> z_0, always from the same noise.
        reference (`torch.Tensor`): z_0 that many steps give from this noise, in the same shape.

    Returns:
        `tuple[list[int], float]`: the timesteps, and the root mean square of what z_0 then differs by.
    """
    table = 0.5 * scheduler.signal_to_noise(torch.arange(len(scheduler))).log()  # falling
    tried: dict[tuple[int, ...], float] = {}

    def error(timesteps: tuple[int, ...]) -> float:
        if timesteps not in tried:
            tried[timesteps] = (draw(list(timesteps)) - reference).square().mean().sqrt().item()
        return tried[timesteps]

    scheduler.set_timesteps(num_inference_steps, timestep_spacing="logsnr")
    best = tuple(scheduler.timesteps.tolist())
    distance = (table[best[-1]] - table[best[0]]).item() / max(1, num_inference_steps - 1)
    for move in _MOVES:
        improved = True
        while improved:
            improved = False
            for i in range(num_inference_steps):
                for sign in (-1, 1):
                    moved = _move(best, i, sign * move * distance, table)
                    if moved is not None and error(moved) < error(best):
                        best, improved = moved, True
    return list(best), error(best)


def _move(timesteps: tuple[int, ...], i: int, by: float, table: torch.Tensor) -> tuple[int, ...] | None:
    """With timestep i at another log-SNR; None where it would pass a neighbour or stay."""
    level = int((table - (table[timesteps[i]] + by)).abs().argmin())
    moved = (*timesteps[:i], level, *timesteps[i + 1 :])
    descending = all(a > b for a, b in itertools.pairwise(moved))
    return moved if descending and level != timesteps[i] else None
