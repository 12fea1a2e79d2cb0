"""Checks of what metrics are given: TypeError for another kind of object, ValueError for a bad value."""

import math
from collections.abc import Sequence
from typing import Any

import torch


def check_count(name: str, value: Any, lowest: int = 1, highest: int = 2**63 - 1) -> None:
    """
    Raises:
        TypeError: `value` isn't a whole number.
        ValueError: it is below `lowest` or above `highest`.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be a whole number, got {_describe(value)}.")
    if not lowest <= value <= highest:
        limit = f"at least {lowest}" if value < lowest else f"at most {highest}"
        raise ValueError(f"`{name}` must be {limit}, got {value}.")


def check_number(name: str, value: Any, lowest: float, *, inclusive: bool = True) -> None:
    """
    Raises:
        TypeError: `value` isn't a number.
        ValueError: it is infinite or NaN, or below `lowest` (or equal to it, unless `inclusive`).
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"`{name}` must be a number, got {_describe(value)}.")
    if not math.isfinite(value) or value < lowest or (value == lowest and not inclusive):
        raise ValueError(f"`{name}` must be finite and {'at least' if inclusive else 'above'} {lowest}, got {value}.")


def check_tensor(name: str, value: Any, shape: str, ndims: Sequence[int]) -> None:
    """
    Args:
        shape (`str`): the expected shape in words, e.g. "(n, d)".
        ndims (`Sequence[int]`): the numbers of dimensions that it may have.

    Raises:
        TypeError: `value` isn't a tensor.
        ValueError: it has another number of dimensions, or no elements.
    """
    if not isinstance(value, torch.Tensor):
        hint = ": convert it with torch.from_numpy" if type(value).__module__ == "numpy" else ""
        raise TypeError(f"`{name}` must be a torch.Tensor {shape}, got {_describe(value)}{hint}.")
    if value.ndim not in ndims or not value.numel():
        raise ValueError(f"`{name}` must be of shape {shape} and not empty, got {tuple(value.shape)}.")


def check_floats(name: str, value: Any, shape: str, ndims: Sequence[int]) -> None:
    """
    [`check_tensor`] of real numbers.

    Raises:
        TypeError: `value` isn't a tensor.
        ValueError: another shape or type, no elements, or values that aren't finite.
    """
    check_tensor(name, value, shape, ndims)
    if not value.is_floating_point():
        raise ValueError(f"`{name}` must be float, got {value.dtype}.")
    if not bool(value.isfinite().all()):
        raise ValueError(f"`{name}` must be finite, but {int((~value.isfinite()).sum())} of its values are not.")


def check_codes(name: str, value: Any, num_codes: int | None, shape: str, ndims: Sequence[int]) -> None:
    """
    [`check_tensor`] of integers in 0..num_codes-1.

    Raises:
        TypeError: `value` isn't a tensor.
        ValueError: another shape or type, no elements, or codes out of range.
    """
    check_tensor(name, value, shape, ndims)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise ValueError(f"`{name}` must be integers, got {value.dtype}.")
    if num_codes is not None:
        low, high = int(value.long().min()), int(value.long().max())
        if not 0 <= low <= high < num_codes:
            raise ValueError(f"`{name}` must lie in 0..{num_codes - 1}, got {low}..{high}.")


def check_labels(class_labels: Any, count: int) -> None:
    """
    Raises:
        TypeError: `class_labels` is neither None nor a tensor.
        ValueError: not one integer per image.
    """
    if class_labels is None:
        return
    check_codes("class_labels", class_labels, None, "(n,)", (1,))
    if len(class_labels) != count:
        raise ValueError(f"`class_labels` must have one label per image, {count}, got {len(class_labels)}.")


def check_generator(generator: Any, batch: int | None = None) -> None:
    """
    Args:
        batch (`int`, *optional*): the number of generators that a list may have; without it no list is accepted.

    Raises:
        TypeError: neither None nor a torch.Generator (nor a list of them).
        ValueError: a list of another length.
    """
    many = batch is not None and isinstance(generator, list)
    if not all(isinstance(one, (torch.Generator, type(None))) for one in (generator if many else [generator])):
        raise TypeError(
            f"`generator` must be a torch.Generator{'' if batch is None else ', a list of them'} or None, got "
            f"{_describe(generator)}; a seed becomes one by `torch.Generator().manual_seed(seed)`."
        )
    if many and len(generator) != batch:
        raise ValueError(f"`generator` must be one or a list of {batch}, got a list of {len(generator)}.")


def check_model(name: str, value: Any, kind: Any, *, in_eval_mode: bool = False) -> None:
    """
    Args:
        kind (`type` or a tuple of them): what it must be.

    Raises:
        TypeError: `value` isn't a `kind`.
        ValueError: a network in training mode.
    """
    if not isinstance(value, kind):
        kinds = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise TypeError(f"`{name}` must be of type {kinds}, got {_describe(value)}.")
    if in_eval_mode and value.training:
        raise ValueError(f"`{name}` is in training mode; call `.eval()` first.")


def as_device(device: Any) -> torch.device:
    """
    Raises:
        TypeError, ValueError: not a device.
    """
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"`device` must be a torch.device or its name, got {_describe(device)}.")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"`device` must be a device such as 'cpu' or 'cuda', got {device!r}.") from error


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """
    Raises:
        TypeError: `value` isn't a string.
        ValueError: it isn't one of `choices`.
    """
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be a string, got {_describe(value)}.")
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")


def _describe(value: Any) -> str:
    """A value for an error: short ones as they are, and otherwise the type."""
    text = repr(value)
    return f"{text} ({type(value).__name__})" if len(text) <= 40 else f"a {type(value).__name__}"
