"""Runs that blow up: seen on the device, held still in their last good state, then named."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.nn.functional import pad
from torch.optim import Optimizer

# Latents have unit variance or stay near it; beyond this, float16 (up to 65,504) is about to overflow.
LATENT_RMS = "latent rms"
LARGEST_LATENT_RMS = 1e4


class Failure(NamedTuple):
    """`step`: of the first bad value, from 0. `values`: all watched then. `culprits`: names of the bad ones."""

    step: int
    values: dict[str, float]
    culprits: list[str]


class NonFiniteDetector:
    """
    Looks at losses, latents and gradient norm of every step without waiting for the device.

    From the first one that isn't finite on, or latents beyond `LARGEST_LATENT_RMS`, no update is made: the optimizer
    skips it (`found_inf`, as gradient scaling has it), and what the forward pass changes is put back. So the run holds
    still in the state before the bad step until somebody asks for the `failure`, and can be saved then; it never goes
    on.

    Args:
        optimizer (`Optimizer`): a fused AdamW, which takes `found_inf`.
        forward_state (`Iterable[torch.Tensor]`): floating-point tensors that forward passes change, not the optimizer:
            codebook and statistics.
        device (`torch.device`): of everything.
    """

    def __init__(self, optimizer: Optimizer, forward_state: Iterable[torch.Tensor], device: torch.device):
        optimizer.register_step_pre_hook(self._skip_bad)
        self._state = list(forward_state)
        self._kept = [tensor.detach().clone() for tensor in self._state]
        self._bad = torch.zeros((), device=device)
        self._step = torch.full((), -1, device=device)
        self._values = torch.zeros(0, device=device)  # as many as were ever watched at a time
        self._which = torch.zeros((), dtype=torch.long, device=device)  # of the lists of names that there were
        self._names: list[list[str]] = []

    @torch.no_grad()
    def watch(self, values: dict[str, torch.Tensor], step: int) -> None:
        """Before the optimizer steps: `values` are scalars, by name; `LATENT_RMS` has a limit of its own."""
        names = list(values)
        if names not in self._names:  # phases have their own
            self._names.append(names)
            self._values = pad(self._values, (0, max(0, len(names) - len(self._values))))
        numbers = torch.stack([value.detach().float() for value in values.values()])
        fine = torch.isfinite(numbers)
        if LATENT_RMS in values:
            place = names.index(LATENT_RMS)
            fine[place] &= numbers[place] < LARGEST_LATENT_RMS
        first = (self._bad == 0) & ~fine.all()
        self._step = torch.where(first, step, self._step)
        self._which = torch.where(first, self._names.index(names), self._which)
        self._values = torch.where(first, pad(numbers, (0, len(self._values) - len(names))), self._values)
        self._bad = torch.where(first, 1.0, self._bad)

    def _skip_bad(self, optimizer: Any, *_: Any) -> None:
        """Just before the optimizer steps: a GradScaler has put its own `found_inf` there by then."""
        optimizer.found_inf = torch.maximum(getattr(optimizer, "found_inf", self._bad), self._bad)

    def agree(self) -> None:
        """Before an update, on all processes: what is bad on one is bad on all, so that none goes on alone."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(self._bad, dist.ReduceOp.MAX)  # queued on the device

    @torch.no_grad()
    def hold(self) -> None:
        """After the optimizer stepped: keep what the forward pass made of its state, or put back what it was."""
        for tensor, kept in zip(self._state, self._kept, strict=True):
            tensor.copy_(torch.where(self._bad > 0, kept, tensor))
            kept.copy_(tensor)

    @torch.no_grad()
    def restore(self) -> None:
        """Put back the forward state after the last update: no batch since then counts."""
        for tensor, kept in zip(self._state, self._kept, strict=True):
            tensor.copy_(kept)

    def refresh(self) -> None:
        """The forward state was changed from outside (placed, loaded): that is what to hold."""
        for tensor, kept in zip(self._state, self._kept, strict=True):
            kept.copy_(tensor.detach())

    def state_sum(self) -> torch.Tensor:
        """A number that is finite if all of the forward state is, the same on all processes."""
        return torch.stack([t.detach().float().sum() for t in self._state]).sum() if self._state else self._bad

    def failure(self) -> Failure | None:
        """What went wrong on this process, if anything did. Waits for the device."""
        step = int(self._step)
        if step < 0:
            return None
        values = dict(zip(self._names[int(self._which)], self._values.tolist(), strict=False))
        limits = {LATENT_RMS: LARGEST_LATENT_RMS}
        culprits = [name for name, value in values.items() if not abs(value) < limits.get(name, math.inf)]
        return Failure(step, values, culprits)
