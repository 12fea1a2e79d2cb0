"""Where the reverse chain stops on its way, and what a deterministic solver does in between, as plain numbers."""

from typing import Literal, NamedTuple

import numpy as np
import torch

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
    wanted = np.linspace(first, last, n)
    nearest = np.abs(log_snr - wanted[:, None]).argmin(axis=1)
    i = np.arange(n)
    return np.minimum.accumulate(np.maximum(nearest, n - 1 - i) + i) - i


class SolverStep(NamedTuple):
    """
    One step of a solver: with d = z - z*,

        network input  x_t = d_t / scale
        z_0 - z*  =  from_sample d_t + from_output output        (output - z* where the network predicts z_0)
        d_s  =  sample d_t + original (z_0 - z* + extrapolation (z_0 - z_0 of the step before))
    """

    scale: float
    from_sample: float
    from_output: float
    sample: float
    original: float
    extrapolation: float


def solver_coefficients(
    solver: Literal["dpmsolver++", "ddim"], abar: torch.Tensor, stationary_std: float, prediction_type: str
) -> list[SolverStep]:
    """
    Every step of a deterministic solver.

    With lambda = log(sqrt(abar) / sqrt(1 - abar)) and h = lambda_s - lambda_t,
    d_s = sqrt((1 - abar_s) / (1 - abar_t)) d_t + sqrt(abar_s) (1 - exp(-h)) D. DDIM (Song et al. 2021, eta = 0)
    has D = z_0 - z*; DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) extrapolates it from the step before by
    h / (2 h_before), but in the last step. s cancels: it shifts every lambda alike.

    Args:
        solver (`str`): "dpmsolver++" or "ddim".
        abar (`torch.Tensor`): (n + 1,) float64, alpha-bar where the chain stops, and 1 at its end.
        stationary_std (`float`): s.
        prediction_type (`str`): what the network returns: "epsilon", "sample" or "v_prediction".

    Raises:
        ValueError: another solver.
    """
    if solver not in ("dpmsolver++", "ddim"):
        raise ValueError(f"`solver` must be ancestral, dpmsolver++ or ddim, got {solver!r}.")
    now, then = abar[:-1], abar[1:]
    sample = ((1 - then) / (1 - now)).sqrt()
    original = then.sqrt() - sample * now.sqrt()
    extrapolation = torch.zeros_like(now)
    if solver == "dpmsolver++":
        h = 0.5 * torch.logit(abar).diff()
        extrapolation[1:-1] = h[1:-1] / (2 * h[:-2])
    s = stationary_std
    scale = (now + s**2 * (1 - now)).sqrt()
    if prediction_type == "sample":
        from_sample, from_output = torch.zeros_like(now), torch.ones_like(now)
    elif prediction_type == "epsilon":
        from_sample, from_output = now.rsqrt(), -s * (1 / now - 1).sqrt()
    else:
        from_sample, from_output = now.sqrt() / scale**2, -s * (1 - now).sqrt() / scale
    columns = (scale, from_sample, from_output, sample, original, extrapolation)
    return [SolverStep(*row) for row in torch.stack(columns, dim=1).tolist()]
