"""What a run costs: memory, bytes between processes, time. docs/concepts/scaling.md derives the formulas."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

_FLOAT = 4  # bytes: weights and their state are float32 under autocast, too


def state_bytes(trained: int, frozen: int = 0, processes: int = 1, sharded: bool = False) -> float:
    """
    Bytes on one process that don't depend on the batch: weights, gradients, two moments of AdamW and averaged weights,
    and with several processes DistributedDataParallel's copy of the gradients; frozen weights once.

    Args:
        trained (`int`), frozen (`int`, *optional*, defaults to 0): numbers of weights.
        processes (`int`, *optional*, defaults to 1): of the run.
        sharded (`bool`, *optional*, defaults to `False`): FSDP splits all but the frozen weights.
    """
    copies = 5 / processes if sharded else 5 + (processes > 1)
    return _FLOAT * (copies * trained + frozen)


def exchanged_bytes(trained: int, processes: int, sharded: bool = False) -> float:
    """
    Bytes that a process sends in an optimizer step. A ring sums N gradients in 2 (P - 1) messages of N / P numbers;
    FSDP gathers the weights twice and scatters the gradients once, (P - 1) messages each.
    """
    rounds = 3 if sharded else 2
    return _FLOAT * rounds * (processes - 1) / processes * trained


def step_seconds(
    flops: float, flops_per_second: float, exchanged: float = 0.0, bytes_per_second: float = math.inf
) -> float:
    """Seconds of an optimizer step by `flops` of a process, where computing and exchanging don't overlap."""
    return flops / flops_per_second + exchanged / bytes_per_second


def work_hours(items: int, flops_per_item: float, flops_per_second: float, processes: int = 1) -> float:
    """Hours of work that is divided evenly and needs no exchange: encoding, drawing, features."""
    return items * flops_per_item / (processes * flops_per_second) / 3600


def count_flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products and convolutions in `work`, backward passes included."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def count_saved_bytes(work: Callable[[], Any]) -> int:
    """Bytes that `work` keeps for a backward pass: activations, each storage once, without weights."""
    seen: dict[int, tuple[Any, int]] = {}  # storages are held, so that no address comes twice

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            seen[storage._cdata] = storage, storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        work()
    return sum(size for _, size in seen.values())


def describe_cost(flops: float, seconds: float, trained: int, frozen: int, processes: int, sharded: bool) -> str:
    """
    One line for people, of a run.

    Args:
        flops (`float`), seconds (`float`): of an optimizer step of one process.
        trained (`int`), frozen (`int`): numbers of weights.
        processes (`int`), sharded (`bool`): see [`state_bytes`].
    """
    state = state_bytes(trained, frozen, processes, sharded)
    line = f"cost: {flops / 1e9:.1f} GFLOP a step, {flops / seconds / 1e9:.1f} GFLOP/s, "
    line += f"{state / 1024**2:.0f} MiB of weights and their state"
    if processes > 1:
        line += f", {exchanged_bytes(trained, processes, sharded) / 1024**2:.0f} MiB sent by each process a step"
    return line
