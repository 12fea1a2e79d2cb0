"""How the processes of an evaluation share images and draws."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather

from ..training.agreement import on_main_process

Result = TypeVar("Result")


class Processes:
    """
    Processes that make the same calls in the same order: each works on its share of the rows, and all get the whole.

    Args:
        accelerator (`Accelerator`, *optional*): of the processes; without it this one works alone, whatever others do.
    """

    def __init__(self, accelerator: Accelerator | None = None) -> None:
        several = accelerator is not None and accelerator.num_processes > 1
        self._accelerator = accelerator if several else None
        self.count = 1 if self._accelerator is None else self._accelerator.num_processes

    def share(self, work: Callable[[slice], dict[str, torch.Tensor]], count: int) -> dict[str, torch.Tensor]:
        """
        Rows 0 to `count` - 1 of named tensors.

        Args:
            work (`Callable`): from a range of rows to these rows, on any device. All ranges have one length, so the
                last ones may overlap; none is empty.
            count (`int`): at least 1.

        Returns:
            `dict[str, torch.Tensor]`: all rows, on the CPU.
        """
        if self._accelerator is None:
            return {name: rows.cpu() for name, rows in work(slice(0, count)).items()}
        size = math.ceil(count / self.count)
        starts = [min(index * size, count - size) for index in range(self.count)]
        start = starts[self._accelerator.process_index]
        found = {}
        for name, own in work(slice(start, start + size)).items():
            parts = gather(own.to(self._accelerator.device).contiguous()).cpu().unflatten(0, (self.count, size))
            found[name] = parts.new_empty((count, *own.shape[1:]))
            for first, part in zip(starts, parts, strict=True):
                found[name][first : first + size] = part
        return found

    def rows(self, work: Callable[[slice], torch.Tensor], count: int) -> torch.Tensor:
        """[`share`] of one tensor."""
        return self.share(lambda rows: {"rows": work(rows)}, count)["rows"]

    def decide(self, work: Callable[[], Result]) -> Result:
        """
        What `work` returns on the main process, for all. Only there may it write files, and look at those that change.

        Raises:
            ValueError, OSError: what `work` raises, on all processes.
        """
        return work() if self._accelerator is None else on_main_process(self._accelerator, work)

    def print(self, text: str) -> None:
        """On the main process."""
        if self._accelerator is None or self._accelerator.is_main_process:
            print(text, flush=True)
