"""Timesteps for few steps that belong to one network, and what makes a scheduler that of a student."""

import itertools
from typing import Any

from .bridge_settings import is_number, is_whole


def read_few_step_timesteps(config: dict[str, Any]) -> dict[str, list[int]] | None:
    """
    `few_step_timesteps` of a scheduler's config as JSON has it, the fewest first.

    Raises:
        ValueError: not a dict from whole numbers to as many timesteps, descending in 0..T-1; or a student
            (`distilled_guidance_scale`) without them, that predicts noise, or whose scale isn't a number.
    """
    value, most = config["few_step_timesteps"], config["num_train_timesteps"]
    _check_student(config)
    if value is None:
        return None
    expected = "`few_step_timesteps` must be a dict from numbers of steps to their timesteps, descending"
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{expected}, e.g. {{'2': [999, 500]}}, got {value!r}.")
    found = {}
    for key, timesteps in value.items():
        number = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() else key
        steps = list(timesteps) if isinstance(timesteps, (list, tuple)) else []
        descending = all(map(is_whole, steps)) and all(a > b for a, b in itertools.pairwise(steps))
        if not is_whole(number) or not descending or not 1 <= len(steps) == number:
            raise ValueError(f"{expected}, got {timesteps!r} for {key!r}.")
        if steps[0] >= most or steps[-1] < 0:
            raise ValueError(f"`few_step_timesteps` must lie in 0..{most - 1}, got {steps}.")
        found[int(number)] = [int(step) for step in steps]
    return {str(number): steps for number, steps in sorted(found.items())}


def _check_student(config: dict[str, Any]) -> None:
    guidance_scale, prediction_type = config["distilled_guidance_scale"], config["prediction_type"]
    if guidance_scale is None:
        return
    if not is_number(guidance_scale):
        raise ValueError(f"`distilled_guidance_scale` must be a finite number or None, got {guidance_scale!r}.")
    if config["few_step_timesteps"] is None:
        raise ValueError("A student, with `distilled_guidance_scale`, needs `few_step_timesteps`.")
    _check_prediction(prediction_type)


def _check_prediction(prediction_type: str) -> None:
    if prediction_type == "epsilon":
        raise ValueError(
            "A student finds z_0 from noise alone, which no predicted noise can give: `prediction_type` must be "
            "'sample' or 'v_prediction', got 'epsilon'."
        )


def check_teacher(scheduler: Any) -> None:
    """
    Raises:
        ValueError: the scheduler of a network from which no student can learn: a student's, or one of predicted noise.
    """
    if is_student(scheduler):
        raise ValueError("The teacher is a student itself: give the network that it was distilled from.")
    _check_prediction(scheduler.config.prediction_type)


def is_student(scheduler: Any) -> bool:
    """Whether a scheduler, or a stock scheduler made from it, is that of a student."""
    return scheduler.config.get("distilled_guidance_scale") is not None


def find_few_steps(scheduler: Any, num_inference_steps: int) -> list[int] | None:
    """
    The timesteps of `num_inference_steps` steps that were found for the network of this scheduler, or None.

    Raises:
        ValueError: a student, for which there are none of this number.
    """
    table = scheduler.config.get("few_step_timesteps") or {}
    found: list[int] | None = table.get(str(num_inference_steps))
    if found is None and is_student(scheduler):
        raise ValueError(
            f"This network was distilled to draw in {_join(sorted(map(int, table)))} steps, got "
            f"`num_inference_steps` {num_inference_steps}. Take its teacher for more."
        )
    return found


def default_number_of_steps(scheduler: Any, otherwise: int) -> int:
    """The fewest steps of a student; `otherwise` for other networks."""
    return min(map(int, scheduler.config["few_step_timesteps"])) if is_student(scheduler) else otherwise


def _join(numbers: list[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last
