"""
What FSDP has split over processes, and what is to be split alike. Where nothing is split, all of it changes nothing.

All processes call these functions: parts are gathered from everybody.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

Module = TypeVar("Module", bound=nn.Module)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor of which each process has a part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def split_like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole tensor that all hold, if `other`, of the same shape, is split."""
    if not isinstance(other, DTensor) or tensor.shape != other.shape:  # an optimizer's counters
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


def gather(tensors: Mapping[str, torch.Tensor], keep: bool) -> dict[str, torch.Tensor]:
    """Whole tensors, on the CPU if they were split; for the processes that `keep` them, else nothing."""
    found = {}
    for name, tensor in tensors.items():
        value = whole(tensor)  # one after the other: not all of them fit on a device
        if keep:
            found[name] = value if value is tensor else value.cpu()
    return found


def whole_copy(module: Module) -> Module:
    """A copy with whole parameters; `module` itself if it has them."""
    if not _is_split(module):
        return module
    copy = deepcopy(module)
    copy.load_state_dict({name: whole(value) for name, value in copy.state_dict().items()}, assign=True)
    return copy


def split_module_like(module: nn.Module, other: nn.Module) -> None:
    """Split a copy of `other` that was made before FSDP split that one."""
    if not _is_split(other):
        return
    values = module.state_dict()
    module.load_state_dict({k: split_like(values[k], v) for k, v in other.state_dict().items()}, assign=True)


def _is_split(module: nn.Module) -> bool:
    return any(isinstance(p, DTensor) for p in module.parameters())
