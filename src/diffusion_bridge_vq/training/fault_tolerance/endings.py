"""The ways in which a run ends before its time. What was learned is saved first."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from .checkpoint import newest_whole
from .non_finite import NonFiniteDetector
from .run_state import RunState


class Endings:
    """
    Ends a run after it saved its state. All processes call its methods.

    Args:
        accelerator (`Accelerator`): of the run.
        state ([`RunState`]): is saved.
        detector ([`NonFiniteDetector`]): finds values that are not finite, and keeps the state before them.
    """

    def __init__(self, accelerator: Accelerator, state: RunState, detector: NonFiniteDetector):
        self.accelerator, self.state, self.detector = accelerator, state, detector

    def by_signal(self, done: int, received: signal.Signals) -> None:
        """
        Raises:
            SystemExit: always, with the code that shells give.
        """
        saved = self.state.save(done)
        self.accelerator.end_training()
        self.accelerator.print(
            f"{received.name}: stopped after step {done}, saved {saved}; `resume` goes on from there."
        )
        raise SystemExit(128 + received)

    def if_not_finite(self, done: int) -> None:
        """
        After a bad step on any process, save the state before it as that of step `done`.

        Raises:
            FloatingPointError: naming the step and the values.
        """
        failure = self.detector.failure()
        found = torch.tensor(0 if failure is None else 1, device=self.accelerator.device)
        if not int(self.accelerator.reduce(found, reduction="sum")):
            return
        saved = self.state.save(done)
        self.accelerator.end_training()
        if failure is None:
            raise FloatingPointError(f"Another process met a loss that isn't a finite number. State saved in {saved}.")
        values = ", ".join(f"{name} = {value:.4g}" for name, value in failure.values.items())
        raise FloatingPointError(
            f"Step {failure.step + 1} gave {', '.join(failure.culprits)} not finite or too large ({values}). "
            f"Nothing was learned from it: the state before that step is in {saved}. `resume` goes on from there with "
            "the next batches; if it happens again, with a lower learning rate, or in bf16 instead of fp16."
        )

    def by_unreadable_data(self, done: int, error: Exception | None, begun: bool) -> None:
        """
        Some process can't read its next batch.

        Args:
            done (`int`): whole steps.
            error (`Exception`, *optional*): of this process; None if it was another one.
            begun (`bool`): whether this step had batches before. They don't count, and are read again.

        Raises:
            ValueError, OSError: always; another error is raised as it is.
        """
        text = ""
        if done > 0:  # nothing was learned before
            if begun:
                self.state.rewind()
                self.detector.restore()
            text = f"The state after step {done} is saved in {self.state.save(done)}."
        self.accelerator.end_training()
        if error is None:
            raise ValueError(f"Another process can't read its data. {text}".rstrip())
        if not text:
            raise error
        if isinstance(error, (ValueError, OSError)):
            kind = OSError if isinstance(error, OSError) else ValueError
            raise kind(f"{str(error).rstrip('.')}. {text}") from error
        error.add_note(text)
        raise error

    @contextmanager
    def naming_lost_processes(self) -> Iterator[None]:
        """
        Around all steps. Without the others nothing can be saved, but what was saved stays.

        Raises:
            OSError: another process, or the network to it, is gone.
        """
        try:
            yield
        except RuntimeError as error:
            accelerator = self.accelerator
            # gloo's errors are bare RuntimeErrors with the name of its file
            lost = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
            if accelerator.num_processes == 1 or not lost:
                raise
            newest, _ = newest_whole(self.state.folder.checkpoints)
            saved = "there is no checkpoint yet" if newest is None else f"`resume` goes on from {newest}"
            raise OSError(
                f"Process {accelerator.process_index} of {accelerator.num_processes} lost the others: another process "
                f"ended, or the network between them is gone for longer than `network_timeout`, "
                f"{self.state.config.network_timeout} s; {saved}. ({str(error).splitlines()[0]})"
            ) from error

    @contextmanager
    def saving_on_failure(self, done: int) -> Iterator[None]:
        """For what only looks at the run and may fail, by lack of memory or connection."""
        try:
            yield
        except Exception as error:
            if self.accelerator.num_processes == 1:  # several can't save when only the main one has failed
                text = f"The state after step {done} is saved in {self.state.save(done)}."
                error.add_note(text)
                self.accelerator.print(text)
            raise

    def if_untrained(self, done: int, names: list[str]) -> None:
        """
        The run is over, but some parts that it saves have not been trained.

        Raises:
            ValueError: there are such parts.
        """
        if not names:
            return
        saved = self.state.save(done)
        self.accelerator.end_training()
        raise ValueError(
            f"The run ended after step {done}, before {' and '.join(names)} had been trained at all: it has no "
            f"result. The state is saved in {saved}. Take more `max_train_time` or `max_train_steps` (or other "
            "fractions of the phases), and go on with `resume`."
        )
