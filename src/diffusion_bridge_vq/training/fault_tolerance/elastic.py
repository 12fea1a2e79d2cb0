"""Runs that go on with another number of processes: what is kept, what isn't, and what is refused."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config import RunConfig


@dataclass(frozen=True)
class Division:
    """
    How the images of a step are divided.

    Args:
        processes (`int`): of the run.
        batch_size (`int`): images of a process at a time.
        gradient_accumulation_steps (`int`): batches of each process in a step.
    """

    processes: int
    batch_size: int
    gradient_accumulation_steps: int

    @classmethod
    def of(cls, config: RunConfig, processes: int) -> "Division":
        return cls(processes, config.batch_size, config.gradient_accumulation_steps)

    @classmethod
    def read(cls, state: dict[str, Any], writers: int, now: "Division") -> "Division":
        """That of the `state` of a checkpoint by `writers` processes; older ones have it in their settings."""
        known = state.get("settings", {}) | state.get("division", {})
        return cls(writers, *(known.get(name, getattr(now, name)) for name in list(asdict(now))[1:]))

    @property
    def at_once(self) -> int:
        """Images that all processes have at a time."""
        return self.processes * self.batch_size

    @property
    def step(self) -> int:
        """Images of a step."""
        return self.at_once * self.gradient_accumulation_steps

    def __str__(self) -> str:
        processes = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        return f"{processes} x {self.batch_size} x {self.gradient_accumulation_steps}"


def check_division(checkpoint: Path, before: Division, now: Division, epoch_images: int | None) -> None:
    """
    Args:
        checkpoint (`Path`): for the message.
        before, now ([`Division`]): of the checkpoint, and of this start.
        epoch_images (`int`, *optional*): images that the run trains on in an epoch; None for a stream.

    Raises:
        ValueError: steps would have other images.
    """
    if now.step != before.step:
        raise ValueError(
            f"{checkpoint} was written by steps of {before.step} images ({before}: processes, `batch_size` and "
            f"`gradient_accumulation_steps`), this start has {now.step} ({now}): images of the epoch would be skipped "
            f"or repeated. {_advise(before, now, epoch_images)}"
        )
    if epoch_images is not None and epoch_images % now.at_once:
        raise ValueError(
            f"{checkpoint} is of a run on {epoch_images} images an epoch, which {now.at_once} at a time ({now}) don't "
            f"divide: steps at its end would have other images. {_advise(before, now, epoch_images)}"
        )


def describe_division(before: Division, now: Division, is_stream: bool, trains_autoencoder: bool) -> list[str]:
    """One sentence for each thing that isn't as it would have been without the change."""
    if before == now:
        return []
    kept = "" if is_stream else "; each step has the images that it would have had"
    found = [f"{now} images a step instead of {before}{kept}."]
    found.append("Noise, timesteps, dropout, dropped classes and mirroring are drawn by each process, so they differ.")
    if trains_autoencoder and now.at_once != before.at_once:
        found.append(
            f"Codebook and normalizer are updated from {now.at_once} images at a time instead of {before.at_once}."
        )
    if is_stream and now.processes != before.processes:
        found.append(
            "Shares and shuffle buffers of a stream depend on the number of processes: the run goes on with the next "
            "epoch, without the rest of this one."
        )
    return found


def _advise(before: Division, now: Division, epoch_images: int | None) -> str:
    """Settings for the processes of this start."""
    for accumulation in range(1, before.step + 1):
        batch_size, rest = divmod(before.step, now.processes * accumulation)
        whole = epoch_images is None or (batch_size and epoch_images % (now.processes * batch_size) == 0)
        if not rest and whole and batch_size <= before.batch_size:
            return f"Take `batch_size` {batch_size} and `gradient_accumulation_steps` {accumulation}."
    return f"No batch size of {now.processes} processes keeps the steps: take a number of processes that does."
