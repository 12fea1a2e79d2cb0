"""Checks of what models are called with, so that an error names the argument and not a convolution inside."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def check_is_tensor(name: str, value: Any) -> None:
    """
    Raises:
        TypeError: not a tensor.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"`{name}` must be a torch.Tensor, got {type(value).__name__}; an array or a list becomes one by "
            "`torch.as_tensor`."
        )


def check_tensor(name: str, value: Any, integers: bool = False) -> None:
    """
    Check that an argument is a tensor that isn't empty, of floating point or of integers.

    Args:
        name (`str`): of the argument.
        integers (`bool`, *optional*, defaults to `False`): integers are expected instead of floating point.

    Raises:
        TypeError: not a tensor.
        ValueError: an empty tensor, or one of another kind.
    """
    check_is_tensor(name, value)
    if value.numel() == 0:
        raise ValueError(f"`{name}` is empty, its shape is {tuple(value.shape)}; give at least one sample.")
    is_integer = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    if integers and not is_integer:
        raise ValueError(f"`{name}` must be integers, got {value.dtype}; convert it by `.long()`.")
    if not integers and not value.is_floating_point():
        raise ValueError(f"`{name}` must be floating point, got {value.dtype}; convert it by `.float()`.")


def check_same_shape(**tensors: Any) -> None:
    """
    Raises:
        TypeError: not a tensor.
        ValueError: an empty tensor, one that isn't of floating point, or one of another shape than the first.
    """
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
    (first, expected), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape != expected.shape:
            raise ValueError(
                f"`{name}` must have the shape of `{first}`, {tuple(expected.shape)}, got {tuple(tensor.shape)}."
            )


def check_generator(generator: Any) -> None:
    """
    Raises:
        TypeError: neither None nor a generator nor a list of them.
    """
    given = generator if isinstance(generator, list) else [] if generator is None else [generator]
    if not all(isinstance(one, torch.Generator) for one in given):
        raise TypeError(
            f"`generator` must be a torch.Generator or a list of them, got {generator!r}; a seed becomes one by "
            "`torch.Generator().manual_seed(seed)`."
        )


@contextmanager
def explain_dtype(name: str, given: torch.Tensor, expected: torch.dtype) -> Iterator[None]:
    """Errors of layers that get a tensor of another type than their weights become a ValueError with a remedy."""
    try:
        yield
    except RuntimeError as error:
        if given.dtype == expected or isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(
            f"`{name}` is {given.dtype}, but the model computes in {expected}: convert it by `.to({expected})`, or "
            "call the model under `torch.autocast`."
        ) from error
