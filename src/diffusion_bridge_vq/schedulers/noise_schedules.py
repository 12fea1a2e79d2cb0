"""How much noise each step of the process adds: the betas of diffusers' schedulers, and a list of one's own."""

from collections.abc import Sequence

import numpy as np

from .bridge_settings import is_number


def make_betas(
    num_train_timesteps: int,
    beta_schedule: str,
    beta_start: float,
    beta_end: float,
    trained_betas: Sequence[float] | None = None,
) -> np.ndarray:
    """
    (T,) betas in [0, 1], float64; the arguments are those of `OUBridgeScheduler`.

    Raises:
        ValueError: an unknown schedule, numbers outside of [0, 1], or `trained_betas` of another length than T.
    """
    if trained_betas is not None:
        try:
            betas = np.asarray(trained_betas, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`trained_betas` must be a list of numbers: {error}.") from error
        if betas.shape != (num_train_timesteps,):
            got = len(betas) if betas.ndim == 1 else f"shape {betas.shape}"
            raise ValueError(
                "`trained_betas` must be a list of numbers, one for each of the "
                f"{num_train_timesteps} `num_train_timesteps`, got {got}."
            )
        if not ((betas >= 0) & (betas <= 1)).all():
            raise ValueError(f"`trained_betas` must lie in [0, 1], got {betas.min()}..{betas.max()}.")
        return betas
    if beta_schedule == "squaredcos_cap_v2":
        return _cosine_betas(num_train_timesteps)
    if not isinstance(beta_schedule, str) or beta_schedule not in ("linear", "scaled_linear"):
        raise ValueError(
            f"`beta_schedule` must be linear, scaled_linear or squaredcos_cap_v2, got {beta_schedule!r}; "
            "give other schedules as `trained_betas`."
        )
    for name, value in (("beta_start", beta_start), ("beta_end", beta_end)):
        if not is_number(value) or not 0 <= value <= 1:
            raise ValueError(f"`{name}` must lie in [0, 1], got {value!r}.")
    if beta_schedule == "linear":
        return np.linspace(beta_start, beta_end, num_train_timesteps)
    return np.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps) ** 2


def _cosine_betas(num_train_timesteps: int, max_beta: float = 0.999) -> np.ndarray:
    """The squared-cosine schedule (Nichol and Dhariwal 2021, eq. 17)."""
    u = np.arange(num_train_timesteps + 1) / num_train_timesteps
    abar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - abar[1:] / abar[:-1], max_beta)


def make_alpha_bar(betas: np.ndarray, prediction_type: str) -> np.ndarray:
    """
    (T + 1,) alpha-bar at paper time 0..T.

    Raises:
        ValueError: invalid betas, or betas that a network can't follow if it predicts the noise.
    """
    abar = np.concatenate([[1.0], np.cumprod(1 - betas)])
    if abar[1] == 1 or abar[-2] == 0:
        raise ValueError(
            "The betas must have their first above 0 and all but the last below 1, so that noise is added and "
            f"something of z_0 is left before the last step; got {betas[0]}, and alpha-bar = {abar[-2]} before it."
        )
    if abar[-1] == 0 and prediction_type == "epsilon":
        raise ValueError(
            "A last beta of 1 leaves noise alone, from which `prediction_type` 'epsilon' can't tell z_0: take "
            "'sample' or 'v_prediction', or less than 1."
        )
    return abar
