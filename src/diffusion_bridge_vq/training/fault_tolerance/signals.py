"""Ends that come from outside: signals and time limits, on which all processes of a run agree."""

import signal
import threading
import time
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist


class StopRequest:
    """
    While it is entered, SIGTERM and SIGINT are noted instead of ending the process; a second one ends it at once.

    Processes agree step by step through a group of their own on the CPU, so that nobody waits for the device and all
    stop after the same step.

    Args:
        max_seconds (`float`, *optional*): time limit; then `reason` says so.
        seconds (`float`, *optional*, defaults to 0): used before it is entered.
        timeout (`float`, *optional*, defaults to 1800): seconds that a process waits for the others.

    Attributes:
        seconds (`float`): used at the last call of `reason`, the same on all processes.
    """

    def __init__(self, max_seconds: float | None = None, seconds: float = 0.0, timeout: float = 1800.0):
        self.max_seconds, self.seconds = max_seconds, seconds
        self._signal = 0
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout)) if several else None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        self._started = time.monotonic() - self.seconds
        if threading.current_thread() is threading.main_thread():  # nobody else may set handlers
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        if self._group is not None and dist.is_initialized():  # the end of training ends all groups
            dist.destroy_process_group(self._group)

    def reason(self) -> signal.Signals | str | None:
        """The signal that any process got, "time" if it is up, or None. All processes call it, and get the same."""
        number, self.seconds = self._largest(self._signal, time.monotonic() - self._started)
        if number:
            return signal.Signals(int(number))
        return "time" if self.max_seconds is not None and self.seconds >= self.max_seconds else None

    def anywhere(self, fact: bool) -> bool:
        """Whether a `fact` holds on any process. All processes call it, and get the same."""
        return bool(self._largest(float(fact))[0])

    def _largest(self, *values: float) -> list[float]:
        """Of each value the largest of all processes."""
        if self._group is None:
            return list(values)
        agreed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(agreed, dist.ReduceOp.MAX, group=self._group)
        return agreed.tolist()

    def _note(self, number: int, _: FrameType | None) -> None:
        self._signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
