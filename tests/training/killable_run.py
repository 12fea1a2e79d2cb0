"""The run that test_killed_runs.py kills, in a process of its own."""

import hashlib
import itertools
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from process_work import UNET, VQVAE

from diffusion_bridge_vq.training import E2EConfig, E2EObjective, train
from diffusion_bridge_vq.training.fault_tolerance import checkpoint

STEPS, JOINT_FROM, FREEZE_FROM = 20, 3, 8
ACCUMULATION, BATCHES_PER_EPOCH = 2, 7  # every second epoch ends between the two batches of a step


def config(folder: Path, **overrides: Any) -> E2EConfig:
    """End-to-end through all phases, with flips."""
    settings: dict[str, Any] = {
        "split": "test",
        "resolution": 8,
        "batch_size": 40,
        "gradient_accumulation_steps": ACCUMULATION,
        "max_train_steps": STEPS,
        "lr_warmup_steps": 5,
        "random_flip": True,
        "joint_fraction": JOINT_FROM / STEPS,
        "mode": "stable",
        "freeze_fraction": FREEZE_FROM / STEPS,
        "ema_decay": 0.9,
        "log_every": 1,
        "image_every": 0,
        "num_inference_steps": 2,
        "checkpoint_every": 1,
        "report_to": "none",
        "vqvae": VQVAE,
        "unet": UNET,
    }
    return E2EConfig.from_preset("digits", output_dir=folder, **settings | overrides)


def run(config: E2EConfig, place: tuple[str, int], connection: Connection) -> None:
    """
    `train`, with a line of order.jsonl for each batch before it is trained on: the process, the step, and the digest
    of the images, flips included.

    Args:
        place (`tuple[str, int]`): where to stop and wait to be killed: before the n-th "batch" (from 1); before the
            n-th "write" of a checkpoint, that is a file, a flush, a renaming or a removal; ("end", 0) goes on to the
            end.
        connection (`Connection`): is sent where it waits ("batch" or the name of the operation), "done", or a
            traceback.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    begun = time.time_ns()  # tells processes apart
    kind, number = place
    batches, writes = itertools.count(1), itertools.count(1)
    forward, step = E2EObjective.forward, [0]
    set_step = E2EObjective.set_step

    def wait(message: str) -> None:
        connection.send(message)
        connection.recv()  # never comes; ends with the parent

    def note_step(self: E2EObjective, number: int) -> None:
        step[0] = number
        set_step(self, number)

    def note_batch(self: E2EObjective, images: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        if kind == "batch" and next(batches) == number:
            wait("batch")
        digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()
        with (config.output_dir / "order.jsonl").open("a") as file:
            file.write(json.dumps([begun, step[0], digest]) + "\n")
        return forward(self, images, *arguments, **keywords)

    def announced(operation: Callable[..., Any]) -> Callable[..., Any]:
        def before(*arguments: Any, **keywords: Any) -> Any:
            caller = sys._getframe(1).f_globals["__name__"]  # settings and metrics are renamed and flushed, too
            if kind == "write" and not caller.endswith("run_folder") and next(writes) == number:
                wait(operation.__name__)
            return operation(*arguments, **keywords)

        return before

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(E2EObjective, "set_step", note_step)
        patch.setattr(E2EObjective, "forward", note_batch)
        patch.setattr(checkpoint, "save_file", announced(checkpoint.save_file))
        for name in ("fsync", "replace", "rmdir"):
            patch.setattr(os, name, announced(getattr(os, name)))
        try:
            train(config)
        except BaseException:
            connection.send(traceback.format_exc())
            raise
    connection.send("done")
