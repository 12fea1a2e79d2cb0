"""What the processes of test_process_agreement.py do: they import it by name."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from process_work import configure, place

from diffusion_bridge_vq.data import StreamedImages
from diffusion_bridge_vq.training import Trainer, train
from diffusion_bridge_vq.training import run as run_module
from diffusion_bridge_vq.training.fault_tolerance import signals
from diffusion_bridge_vq.training.fault_tolerance.run_lock import run_lock


def run_by_own_clock(folder: Path) -> None:
    """
    A run of 240 s on processes whose clocks differ: a step takes 20 s by that of process 0, 40 s by that of process 1.
    Into folder/places-RANK.pt: where in the schedule each step ended.
    """
    rank, _ = place()
    clock, places, advance = itertools.count(0, 20 * (rank + 1)), [], Trainer.advance

    def spy(self, seconds):
        advance(self, seconds)
        places.append(self.schedule.place(self.steps_done))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signals, "time", SimpleNamespace(monotonic=clock.__next__))
        patch.setattr(Trainer, "advance", spy)
        train(configure("e2e", folder, max_train_time=240.0))
    torch.save(places, folder / f"places-{rank}.pt")


def run_with_unreadable_data(folder: Path, owner: type, reader: str, read_before: int) -> None:
    """
    Process 1 can't read a batch, after as many that the method `reader` of `owner` gave. The error of each process
    goes into folder/refused-RANK.
    """
    rank, _ = place()
    read = getattr(owner, reader)

    def broken(*arguments):
        for number, batch in enumerate(read(*arguments)):
            if rank == 1 and number == read_before:
                raise ValueError("image 7 can't be decoded")
            yield batch

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError) as error:
        patch.setattr(owner, reader, broken)
        train(configure("vq", folder))
    (folder / f"refused-{rank}").write_text(str(error.value))


def run_on_a_broken_stream(folder: Path) -> None:
    """
    A run on the tar files in folder/data, which process 0 reads for all, as it does from the Hub. The error of each
    process goes into folder/refused-RANK.
    """
    rank, _ = place()
    data = {"dataset": str(folder / "data"), "split": "train"}
    stream: dict[str, Any] = data | {"streaming": True, "shuffle_buffer": 1}
    small = {"batch_size": 4, "gradient_accumulation_steps": 1, "checkpoint_every": 0}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError) as error:
        patch.setattr(StreamedImages, "share", lambda *arguments: 0)
        train(configure("vq", folder / "run", **stream, **small))
    (folder / f"refused-{rank}").write_text(str(error.value))


def refused_at_once(folder: Path) -> None:
    """A run into a folder that another process holds. The error of each process goes into folder/refused-RANK."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError) as error:
        patch.setattr(run_module, "run_lock", lambda run: run_lock(run, wait_seconds=0))
        train(configure("vq", folder))
    (folder / f"refused-{place()[0]}").write_text(str(error.value))
