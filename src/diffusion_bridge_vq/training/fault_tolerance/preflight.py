"""What can be known before the first step: whether the folder is free, the disk large enough, the data the same."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from ...run_folder import RunFolder
from ..config import RunConfig
from ..monitoring.quantities import size
from .checkpoint import list_checkpoints
from .disk import existing_place, free_inodes

_SPARE_BYTES = 64 * 1024**2  # grids, logs
_FILES = 100
_DIVISION = ("batch_size", "gradient_accumulation_steps")  # see `check_division`


def check_output_dir(config: RunConfig) -> None:
    """
    Raises:
        ValueError: the folder can't be written, is one of the images, holds another run, or has none to resume; its
            disk takes no more files.
    """
    run = RunFolder(config.output_dir)
    place = existing_place(run.path)
    if not place.is_dir():
        raise ValueError(f"`output_dir` {run.path} can't be a folder: {place} is a file. Give another `output_dir`.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"`output_dir` {run.path} can't be written: no permission for {place}. Give another one.")
    images = Path(config.dataset)
    if not config.resume and images.is_dir() and run.path.resolve().is_relative_to(images.resolve()):
        raise ValueError(
            f"`output_dir` {run.path} is in the folder of the images, {images}: pictures of the run would become "
            "images to train on. Give another `output_dir`."
        )
    inodes = free_inodes(place)
    if inodes is not None and inodes < _FILES:
        raise ValueError(
            f"The disk of {run.path} has room for {inodes} more files (inodes), the run needs {_FILES}. "
            "Remove files there, or give another `output_dir`."
        )
    held = run.finished()
    if list_checkpoints(run.checkpoints):  # none yet if the run was killed before its first
        held.insert(0, "checkpoints")
    elif config.resume:
        raise ValueError(
            f"There is no checkpoint in {run.checkpoints} to resume from. Start the run without `resume`."
        )
    if held and not config.resume:
        raise ValueError(
            f"{config.output_dir} already holds {' and '.join(held)} of a run. Give another `output_dir`, or `resume`."
        )


def check_disk(config: RunConfig, modules: dict[str, nn.Module]) -> str:
    """
    What the run will need on disk: its checkpoints, one of them being written, and the weights at the end.

    Args:
        config (`RunConfig`): where, and how many are kept.
        modules (`dict[str, nn.Module]`): what a checkpoint holds, "model" trained by Adam.

    Returns:
        `str`: a line for people.

    Raises:
        ValueError: there is less room.
    """
    sizes = {name: sum(t.numel() * t.element_size() for t in m.state_dict().values()) for name, m in modules.items()}
    moments = sum(2 * p.numel() * p.element_size() for p in modules["model"].parameters() if p.requires_grad)
    checkpoint = sum(sizes.values()) + moments
    there = len(list_checkpoints(RunFolder(config.output_dir).checkpoints))
    kept = max(1, config.keep_checkpoints + 1 - there) if config.checkpoint_every else 0
    needed = kept * checkpoint + sizes["model"] + _SPARE_BYTES
    place = existing_place(config.output_dir)
    free = shutil.disk_usage(place).free
    line = f"{size(needed)} needed ({kept} checkpoints of {size(checkpoint)}), {size(free)} free"
    if free < needed:
        raise ValueError(
            f"disk: {line}, in {config.output_dir}. Free some, give another `output_dir`, or lower `keep_checkpoints`."
        )
    return f"{'disk':<10}{line}"


def check_data(checkpoint: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """
    Args:
        checkpoint (`Path`): for the message.
        before, now (`dict`): what describes the data and their order: name, fingerprint, workers of a stream.

    Raises:
        ValueError: they differ in more than the name: the run wouldn't go on as it would have.
    """
    pairs = [(key, before.get(key), value) for key, value in now.items() if key != "name"]
    different = [f"{key}: {then} then, {value} now" for key, then, value in pairs if then != value]
    if different:
        raise ValueError(
            f"The data have changed since {checkpoint} was written ({'; '.join(different)}). Give back what was "
            "there, or start a new run from these weights with `init_from`."
        )


def check_settings(checkpoint: Path, before: dict[str, Any], now: RunConfig) -> None:
    """
    Args:
        checkpoint (`Path`): for the message.
        before (`dict`): settings of the run that wrote it, by name; some may be missing.
        now (`RunConfig`): those of this start.

    Raises:
        ValueError: the run wouldn't go on as it began: with another objective, or with images of the epoch skipped or
            repeated.
    """
    fixed = {name: value for name, value in fixed_settings(now).items() if name not in _DIVISION}
    then = {"balance_classes": False} | before  # older checkpoints don't name it
    different = {k: f"{k}: {then[k]} then, {value} now" for k, value in fixed.items() if then.get(k, value) != value}
    if different:
        other = "another objective would go on with these weights" if "mode" in different else ""
        order = "images of the epoch would be skipped or repeated" if different.keys() - {"mode"} else ""
        raise ValueError(
            f"{checkpoint} was written with other settings ({'; '.join(different.values())}). With these "
            f"{' and '.join(filter(None, (other, order)))}. Resume with the settings of then, or start a new run from "
            "these weights with `init_from`."
        )


def fixed_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that a resumed run must share with its first start, by name."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.metadata["fixed"]}


def changed_settings(before: dict[str, Any], now: RunConfig) -> list[str]:
    """One text for each setting that differs from that of the last start, but for `resume` itself."""
    settings = json.loads(json.dumps(now.to_json()))
    pairs = [(name, before[name], value) for name, value in settings.items() if name in before and name != "resume"]
    return [f"{name} {value!r} instead of {then!r}" for name, then, value in pairs if then != value]
