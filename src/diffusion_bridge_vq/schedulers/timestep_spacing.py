"""At which noise levels the steps of a reverse chain lie."""

from typing import Any

import numpy as np
import torch

from .bridge_settings import is_whole

# Half log-SNR (of unit-variance latents) that "logsnr" spacing starts from at the lowest: 0.6 % of z_0 are left there,
# and a cosine schedule has many levels below. diffusers recommends the same number as `lambda_min_clipped`.
_LOWEST_LOG_SNR = -5.1


def place_timesteps(
    n: int, spacing: str, steps_offset: int, log_snr: np.ndarray, lambda_max_clipped: float
) -> np.ndarray:
    """
    n descending timesteps (n,) of T, see `OUBridgeScheduler.set_timesteps`.

    Args:
        n (`int`): 1..T.
        spacing (`str`): "linspace", "leading" and "trailing" as in `DDPMScheduler`; "logsnr" takes the nearest to even
            half log-SNRs, pushed apart where levels are too few.
        steps_offset (`int`): added to the "leading" ones.
        log_snr (`np.ndarray`): (T,), half the log-SNR of unit-variance latents, falling.
        lambda_max_clipped (`float`): the half log-SNR that "logsnr" ends at.
    """
    num_train = len(log_snr)
    if spacing == "linspace":
        return np.linspace(0, num_train - 1, n).round()[::-1].astype(np.int64)
    if spacing == "leading":
        return (np.arange(n) * (num_train // n))[::-1].astype(np.int64) + steps_offset
    if spacing == "trailing":
        return np.round(num_train - np.arange(n) * (num_train / n)).astype(np.int64) - 1
    first, last = np.clip((_LOWEST_LOG_SNR, lambda_max_clipped), log_snr[-1], log_snr[0])
    nearest = _find_nearest(log_snr, np.linspace(first, last, n))
    i = np.arange(n)
    return np.minimum.accumulate(np.maximum(nearest, n - 1 - i) + i) - i


def _find_nearest(falling: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Positions of the nearest values, the first of equals."""
    right = np.searchsorted(-falling, -wanted).clip(1, max(1, len(falling) - 1))
    right = np.minimum(right, len(falling) - 1)
    left = np.maximum(right - 1, 0)
    nearer = np.abs(falling[left] - wanted) <= np.abs(falling[right] - wanted)
    return np.where(nearer, left, right)


def choose_timesteps(
    num_inference_steps: int | None, timesteps: Any, spacing: str, log_snr: np.ndarray, config: Any
) -> np.ndarray:
    """
    The timesteps of `OUBridgeScheduler.set_timesteps`, (n,) int64; `log_snr` (T,) is half the log-SNR, falling.

    Raises:
        ValueError: see there.
    """
    num_train = len(log_snr)
    if not isinstance(spacing, str) or spacing not in ("linspace", "leading", "trailing", "logsnr"):
        raise ValueError(f"`timestep_spacing` must be linspace, leading, trailing or logsnr, got {spacing!r}.")
    if (num_inference_steps is None) == (timesteps is None):
        raise ValueError("Give `num_inference_steps` or `timesteps`, one of the two.")
    if timesteps is not None:
        chosen = _read_timesteps(timesteps)
    elif num_inference_steps is not None and is_whole(num_inference_steps) and 1 <= num_inference_steps <= num_train:
        n = int(num_inference_steps)
        chosen = place_timesteps(n, spacing, config.steps_offset, log_snr, config.lambda_max_clipped)
    else:
        raise ValueError(
            f"`num_inference_steps` must be a whole number in 1..{num_train} (num_train_timesteps), "
            f"got {num_inference_steps!r}."
        )
    if chosen[0] >= num_train or chosen[-1] < 0:  # also where `steps_offset` leads to
        raise ValueError(f"`timesteps` must lie in 0..{num_train - 1}, got {chosen[0]}..{chosen[-1]}.")
    return chosen


def _read_timesteps(timesteps: Any) -> np.ndarray:
    """Timesteps that somebody chose."""
    if isinstance(timesteps, torch.Tensor):
        timesteps = timesteps.tolist()
    chosen = list(timesteps) if isinstance(timesteps, (list, tuple, range, np.ndarray)) else []
    if not chosen or not all(map(is_whole, chosen)) or max(map(abs, chosen)) >= 2**63:
        raise ValueError(f"`timesteps` must be whole numbers in descending order, got {timesteps!r}.")
    steps = np.asarray(chosen, dtype=np.int64)
    if (np.diff(steps) >= 0).any():
        raise ValueError(f"`timesteps` must be in descending order, got {list(chosen)}.")
    return steps
