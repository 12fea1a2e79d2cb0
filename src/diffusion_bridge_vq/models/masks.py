"""Masks of latents and of codes."""

import torch

from .inputs import check_is_tensor


def expand_mask(mask: torch.Tensor, shape: torch.Size, of: str) -> torch.Tensor:
    """
    A mask that is True or 1 where something is unknown, and False or 0 where it is known, as bool in another shape.

    Args:
        mask (`torch.Tensor`): broadcasts against `shape`.
        of (`str`): what has that shape, for messages.

    Raises:
        TypeError: not a tensor.
        ValueError: a mask that is empty, has other values than 0 and 1 or doesn't broadcast.
    """
    check_is_tensor("mask", mask)
    if mask.numel() == 0:
        raise ValueError(f"`mask` is empty (shape {tuple(mask.shape)}).")
    try:
        mask.expand(shape)
    except RuntimeError as error:
        raise ValueError(f"`mask` has shape {tuple(mask.shape)}, which doesn't fit {of} {tuple(shape)}.") from error
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"`mask` must be binary: True or 1 where {of} are unknown, False or 0 where they are known.")
    return mask.bool().expand(shape)
