"""How far a run is: a bar on a terminal, else lines, as in the log of a job."""

import sys
import time
from collections.abc import Mapping

from accelerate import Accelerator
from tqdm.auto import tqdm

from ...clock import synchronized_time
from ..config import RunConfig
from ..objectives import Objective
from .memory import peak_memory
from .quantities import duration
from .screen import describe_estimate, phases_within

_LINE_SECONDS = 30.0
# The first step compiles and allocates. The estimate comes from the steps after it: as soon as they have taken
# `_ESTIMATE_SECONDS`, and after `_ESTIMATE_STEPS` at the latest.
_FEWEST_STEPS, _ESTIMATE_STEPS, _ESTIMATE_SECONDS = 2, 20, 5.0


class Progress:
    """
    Shows the progress of a run on its main process, and estimates its time from the first steps that it makes anyway.

    Args:
        config (`RunConfig`), accelerator (`Accelerator`), objective ([`Objective`]): of the run.
        done (`int`): steps before this start.
        begun (`float`): seconds of training before this start.
        ended (`bool`, *optional*, defaults to `False`): whether there is nothing to show.
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        objective: Objective,
        done: int,
        begun: float,
        ended: bool = False,
    ):
        self.config, self.objective, self.device, self.begun = config, objective, accelerator.device, begun
        self.shown = accelerator.is_main_process and not ended
        self.terminal = self.shown and sys.stderr.isatty()
        self.first = done
        self.bar = tqdm(total=config.max_train_steps, initial=done, disable=not self.terminal, unit="step")
        self.created = self.started = self.line_time = time.perf_counter()
        self.line_step, self.estimated, self.lines = done, False, 0

    def close(self) -> None:
        self.bar.close()

    def step(self, done: int) -> None:
        """After optimizer step `done`."""
        self.bar.update()
        if not self.shown or self.estimated:
            return
        if done == self.first + 1:
            self.started = synchronized_time(self.device)
        steps = done - self.first - 1
        seconds = time.perf_counter() - self.started
        if steps >= _FEWEST_STEPS and (seconds >= _ESTIMATE_SECONDS or steps >= _ESTIMATE_STEPS):
            self.estimated = True
            self._print_estimate((synchronized_time(self.device) - self.started) / steps, done)

    def log(self, done: int, losses: Mapping[str, float], last: bool) -> None:
        """The losses of step `done`; a line of text at intervals, and for the last step."""
        self.bar.set_postfix({name[:5]: f"{value:.3f}" for name, value in losses.items()})
        now = time.perf_counter()
        if not self.shown or self.terminal or done == self.line_step:
            return
        if last or not self.lines or now - self.line_time >= _LINE_SECONDS:
            pace = (now - self.line_time) / (done - self.line_step)
            total = self.config.max_train_steps
            terms = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
            end = "done" if last else f"ETA {duration(self._left(done, now, pace))}"
            self._print(f"step {done:,}/{total:,} ({done / total:.0%})  {terms}  {duration(pace)} per step  {end}")
            self.line_time, self.line_step, self.lines = now, done, self.lines + 1

    def _left(self, done: int, now: float, pace: float) -> float:
        """Seconds to the last step, or to the time limit."""
        left = (self.config.max_train_steps - done) * pace
        if self.config.max_train_time is not None:
            used = self.begun + now - self.created
            left = min(left, max(0.0, self.config.max_train_time - used))
        return left

    def _print_estimate(self, pace: float, done: int) -> None:
        text = describe_estimate(self.config, self.objective, pace, peak_memory(self.device), self.begun)
        phases = len(phases_within(self.config, self.objective))
        later = " (other phases take other times)" if phases > 1 else ""
        self._print(f"{text}; from steps {self.first + 2} to {done}{later}")

    def _print(self, text: str) -> None:
        if self.terminal:
            self.bar.write(text)
        else:
            print(text, flush=True)
