"""What a deterministic solver does at each step, as plain numbers."""

from typing import NamedTuple

import torch


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
    abar: torch.Tensor, stationary_std: float, prediction_type: str, second_order: bool
) -> list[SolverStep]:
    """
    Every step of DDIM or, of second order, of DPM-Solver++(2M).

    With lambda = log(sqrt(abar) / sqrt(1 - abar)) and h = lambda_s - lambda_t,
    d_s = sqrt((1 - abar_s) / (1 - abar_t)) d_t + sqrt(abar_s) (1 - exp(-h)) D. DDIM (Song et al. 2021, eta = 0)
    has D = z_0 - z*; DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) extrapolates it from the step before by
    h / (2 h_before), except in the last step. s cancels: it shifts every lambda alike.

    Args:
        abar (`torch.Tensor`): (n + 1,) float64, alpha-bar at every step, and 1 for the clean end.
        stationary_std (`float`): s.
        prediction_type (`str`): what the network returns: "epsilon", "sample" or "v_prediction".
        second_order (`bool`): extrapolate.
    """
    now, then = abar[:-1], abar[1:]
    sample = ((1 - then) / (1 - now)).sqrt()
    original = then.sqrt() - sample * now.sqrt()
    extrapolation = torch.zeros_like(now)
    if second_order:
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
