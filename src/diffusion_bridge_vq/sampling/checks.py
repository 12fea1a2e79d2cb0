"""What is refused before a chain begins."""

import inspect
import math
from typing import SupportsIndex

from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..schedulers import OUBridgeScheduler


def check_count(name: str, value: int, most: int | None = None) -> None:
    """
    Raises:
        ValueError: `value` isn't a whole number, is below 1 or above `most`.
    """
    if not isinstance(value, SupportsIndex) or value < 1 or (most is not None and value > most):
        limits = "of at least 1" if most is None else f"in 1..{most}"
        raise ValueError(f"`{name}` must be a whole number {limits}, got {value!r}.")


def check_scheduler(scheduler: SchedulerMixin) -> None:
    """
    Refuse a stock scheduler that doesn't follow the bridge's betas, or that was swapped in by `from_config` from a
    bridge with another stationary variance than 1.

    Such a scheduler keeps betas, theta and eta in its config without following them. With s = 1 the swap is right as
    it is.

    Raises:
        ValueError: with the call that makes the right scheduler.
    """
    if isinstance(scheduler, OUBridgeScheduler):
        return
    name, config = type(scheduler).__name__, scheduler.config
    if "trained_betas" not in inspect.signature(type(scheduler).__init__).parameters:
        raise ValueError(f"{name} has noise levels of its own and can't follow the bridge's; take another scheduler.")
    s = config.get("eta", math.sqrt(2.0)) / math.sqrt(2 * config.get("theta", 1.0))
    if abs(s - 1) > 1e-6:
        raise ValueError(
            f"{name} assumes a stationary standard deviation of 1, but its config comes from a bridge with "
            f"s = eta / sqrt(2 theta) = {s:.4g}, so its samples would be wrong. Use "
            f"`OUBridgeScheduler.from_config(pipe.scheduler.config).to_diffusers({name})` instead of "
            f"`{name}.from_config(pipe.scheduler.config)`."
        )
    for option in ("clip_sample", "thresholding"):
        if config.get(option, False):
            raise ValueError(f"{name} has {option}=True, which cuts latents to [-1, 1]; make it with {option}=False.")


def check_steps_differ(scheduler: SchedulerMixin, num_inference_steps: int) -> None:
    """
    Raises:
        ValueError: some of a stock scheduler's steps lie on one noise level.
    """
    if len(scheduler.timesteps.unique()) < num_inference_steps:
        raise ValueError(
            f"{type(scheduler).__name__} can't place {num_inference_steps} steps on the "
            f"{scheduler.config.num_train_timesteps} noise levels with "
            f"timestep_spacing={scheduler.config.get('timestep_spacing')!r}: some would coincide. Take fewer."
        )
