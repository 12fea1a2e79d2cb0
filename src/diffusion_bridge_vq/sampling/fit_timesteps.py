"""At which noise levels few steps of one network lie best."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from ..schedulers import OUBridgeScheduler
from ..schedulers.few_steps import is_student
from .arguments import check_count
from .chain import sample_latents

# By what steps are moved, as fractions of the mean distance between two, one after the other.
_MOVES = (0.5, 0.25, 0.125)


class FittedTimesteps(NamedTuple):
    """
    Attributes:
        timesteps (`list[int]`): descending.
        error (`float`): root mean square of what z_0 then differs by from that of many steps.
        error_before (`float`): the same of the spacing "logsnr".
    """

    timesteps: list[int]
    error: float
    error_before: float


def fit_timesteps(
    unet: nn.Module,
    scheduler: OUBridgeScheduler,
    noise: torch.Tensor,
    numbers: Sequence[int],
    class_labels: torch.Tensor | None = None,
    guidance_scale: float = 1.0,
    num_reference_steps: int = 32,
) -> dict[int, FittedTimesteps]:
    """
    The timesteps with which few steps of DPM-Solver++(2M) end nearest to where many end from the same noise, found by
    coordinate descent in half the log-SNR, from the spacing "logsnr". They are meant for `few_step_timesteps` of the
    scheduler's config.

    Args:
        unet (`nn.Module`): the network.
        scheduler ([`OUBridgeScheduler`]): its process.
        noise (`torch.Tensor`): standard normal, (B, d, h, w) or (B, d, N), to start from; 64 samples are enough.
        numbers (`list[int]`): of steps, each at least 2: one step begins at noise alone.
        class_labels (`torch.Tensor`, *optional*): see [`sample_latents`].
        guidance_scale (`float`, *optional*, defaults to 1.0): see [`sample_latents`].
        num_reference_steps (`int`, *optional*, defaults to 32): the many steps.

    Returns:
        `dict[int, FittedTimesteps]`: by number.

    Raises:
        ValueError: 1, or a number that isn't below `num_reference_steps`; a student, whose steps were found in
            training; a guidance scale with which samples aren't finite; and as [`sample_latents`].
    """
    if is_student(scheduler):
        raise ValueError("The network is a student, which knows its own steps only: fit those of its teacher.")
    for number in numbers:
        check_count("numbers", number, num_reference_steps - 1)
        if number == 1:
            raise ValueError("`numbers` has 1, and one step can only begin at noise: nothing is to fit. Leave it out.")
    plain = OUBridgeScheduler.from_config(scheduler.config, few_step_timesteps=None)
    log_snr = 0.5 * plain.signal_to_noise(torch.arange(len(plain))).log()  # falling

    def draw(timesteps: tuple[int, ...]) -> torch.Tensor:
        own = OUBridgeScheduler.from_config(plain.config, few_step_timesteps={str(len(timesteps)): list(timesteps)})
        return sample_latents(
            unet,
            own,
            tuple(noise.shape),
            len(timesteps),
            device=noise.device,
            dtype=noise.dtype,
            latents=noise,
            class_labels=class_labels,
            guidance_scale=guidance_scale,
            solver="dpmsolver++",
        )

    def place(number: int) -> tuple[int, ...]:
        plain.set_timesteps(number, timestep_spacing="logsnr")
        return tuple(plain.timesteps.tolist())

    reference = draw(place(num_reference_steps))
    if not bool(reference.isfinite().all()):
        raise ValueError(
            f"{num_reference_steps} steps end at latents that are NaN or infinite with `guidance_scale` "
            f"{guidance_scale:g}: nothing can be compared with them. Take a lower one."
        )
    fitted = {}
    for number in numbers:
        errors: dict[tuple[int, ...], float] = {}

        def error(timesteps: tuple[int, ...], errors: dict[tuple[int, ...], float] = errors) -> float:
            if timesteps not in errors:
                errors[timesteps] = (draw(timesteps) - reference).square().mean().sqrt().item()
            return errors[timesteps]

        start = best = place(number)
        distance = (log_snr[best[-1]] - log_snr[best[0]]).item() / max(1, number - 1)
        for move in _MOVES:
            before = None
            while before != best:
                before = best
                for i, sign in itertools.product(range(number), (-1, 1)):
                    moved = _move(best, i, sign * move * distance, log_snr)
                    if moved is not None and error(moved) < error(best):
                        best = moved
        fitted[number] = FittedTimesteps(list(best), error(best), error(start))
    return fitted


def _move(timesteps: tuple[int, ...], i: int, by: float, log_snr: torch.Tensor) -> tuple[int, ...] | None:
    """With timestep i at another log-SNR; None where it would pass a neighbor or stay."""
    level = int((log_snr - (log_snr[timesteps[i]] + by)).abs().argmin())
    moved = (*timesteps[:i], level, *timesteps[i + 1 :])
    descending = all(a > b for a, b in itertools.pairwise(moved))
    return moved if descending and level != timesteps[i] else None
