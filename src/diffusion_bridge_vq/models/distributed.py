"""Sums over processes, for statistics that belong to the batch of all of them."""

import torch
import torch.distributed as dist


def is_distributed() -> bool:
    """Whether there are several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over processes, as a new tensor without gradient; the tensor itself if there is one process."""
    if is_distributed():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def broadcast_from_first(tensor: torch.Tensor) -> None:
    """Replace the tensor by that of rank 0, in place."""
    if is_distributed():
        dist.broadcast(tensor, src=0)
