"""What the settings of a bridge's scheduler may be."""

import math
from typing import Any

import numpy as np

_MOST_TIMESTEPS = 100_000  # a file can ask for any number, and each takes memory

_CHOICES = {
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "variance_type": ("fixed_small", "fixed_large", "zero"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
}
_POSITIVE = ("theta", "eta", "clip_sample_range", "lambda_max_clipped")


def check_settings(settings: dict[str, Any]) -> None:
    """
    The arguments of `OUBridgeScheduler`, but the betas, by name.

    Raises:
        ValueError: a number that isn't one, or out of its range; an unknown name; z* that isn't one finite number or
            a list of them.
    """
    for name in _POSITIVE:
        if not (is_number(settings[name]) and settings[name] > 0):
            raise ValueError(f"`{name}` must be a positive number, got {settings[name]!r}.")
    most = settings["num_train_timesteps"]
    if not is_whole(most) or not 1 <= most <= _MOST_TIMESTEPS:
        raise ValueError(
            f"`num_train_timesteps` must be at least 1, a whole number of at most {_MOST_TIMESTEPS:,}, got {most!r}."
        )
    if not is_whole(settings["steps_offset"]) or not 0 <= settings["steps_offset"] < most:
        raise ValueError(f"`steps_offset` must be a whole number in 0..{most - 1}, got {settings['steps_offset']!r}.")
    if not isinstance(settings["clip_sample"], (bool, np.bool_)):
        raise ValueError(f"`clip_sample` must be True or False, got {settings['clip_sample']!r}.")
    for name, choices in _CHOICES.items():
        if not isinstance(settings[name], str) or settings[name] not in choices:
            raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {settings[name]!r}.")
    z_star = settings["z_star"]
    values = [z_star] if is_number(z_star) else z_star
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, (list, tuple)) or not values or not all(map(is_number, values)):
        raise ValueError(f"`z_star` must be a finite number or a list with one per channel, got {z_star!r}.")


def is_number(value: Any) -> bool:
    """Whether it is a finite real number, and no bool."""
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return real and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Whether it is an integer, and no bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
