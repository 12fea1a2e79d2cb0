"""
Checkpoints of a run: safetensors and JSON only.

Each is a folder step-N, written as step-N.partial, flushed to the disk and renamed, so that neither a killed process
nor a power cut leaves a half-written one under that name. Its manifest.json, written last, has the size and SHA-256 of
every other file: one that was damaged later is found out before anything of it is loaded. The processes of a run must
share the folder; only the main one writes.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import textwrap
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from ..sharding import gather, split_like
from .disk import existing_place, free_inodes

_STATE = "state.json"
_MANIFEST = "manifest.json"
_PARTIAL = ".partial"  # being written or removed
_REPLACED = ".replaced"  # a checkpoint while a new one takes its name
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def save_checkpoint(
    directory: Path,
    accelerator: Accelerator,
    modules: dict[str, nn.Module],
    optimizer: Optimizer,
    state: dict[str, Any],
    keep: int,
) -> Path:
    """
    Write `directory`/step-N, N = `state["step"]`, and remove all but the newest `keep` up to it.

    Called by every process: the main one writes weights, optimizer, `state` and everybody's random state.

    Args:
        modules (`dict[str, nn.Module]`): by name; each becomes `name.safetensors`.
        optimizer (`Optimizer`): moments go to safetensors, hyperparameters to JSON.
        state (`dict`): JSON-safe; has "step".

    Raises:
        OSError: the disk is full or can't be written, on every process. What there is of the new checkpoint is
            removed, the others are left as they are.
    """
    final = directory / f"step-{state['step']:08d}"
    packed = optimizer.state_dict()
    tensors = {f"{name}.safetensors": module.state_dict() for name, module in modules.items()}
    tensors["optimizer.safetensors"] = {
        f"{index}.{key}": value for index, values in packed["state"].items() for key, value in values.items()
    }
    tensors = {name: gather(values, accelerator.is_main_process) for name, values in tensors.items()}
    random_states = gather_object([random_state()])
    failure: list[tuple[int | None, str] | None] = [None]
    cause: OSError | None = None
    if accelerator.is_main_process:
        tensors |= {_random_file(process): values for process, values in enumerate(random_states)}
        text = json.dumps(state | {"param_groups": packed["param_groups"]}, indent=1)
        try:
            _write(final, tensors, text)
            older = [p for p in list_checkpoints(directory) if _step(p) <= state["step"]]
            # newer ones were damaged when the run was resumed; they go when their step comes
            _remove([*older[:-keep], *_leftovers(directory)])
        except OSError as error:
            cause = error
            _remove(_leftovers(directory))
            needed = len(text) + sum(value.nbytes for values in tensors.values() for value in values.values())
            failure = [(error.errno, _explain(error, final, needed))]
    broadcast_object_list(failure)  # so that nobody is left waiting when the main process fails
    if failure[0] is not None:
        raise OSError(*failure[0]) from cause
    return final


def list_checkpoints(directory: Path) -> list[Path]:
    """Checkpoints in `directory`, whole or damaged, oldest first. What a killed writer left isn't one."""
    found = {p.name: p for p in directory.glob("step-*") if re.fullmatch(rf"step-\d+({_REPLACED})?", p.name)}
    # a replaced one counts only if the writer was killed before the new one had its name
    return sorted((p for p in found.values() if p.suffix != _REPLACED or p.stem not in found), key=_step)


def load_newest(
    directory: Path, accelerator: Accelerator, modules: dict[str, nn.Module], optimizer: Optimizer
) -> tuple[Path, dict[str, Any]]:
    """
    Load the newest whole checkpoint in `directory`, in place; returns its folder and its `state`, to which "writers",
    the number of processes that wrote it, is added. Further processes get random states of their own.

    Called by every process; the main one chooses. Damaged checkpoints are passed over, with a warning that says what
    is wrong with them.

    Raises:
        ValueError: there is no checkpoint, or none that is whole; the checkpoint's tensors don't fit the model.
    """
    choice: list[Any] = [None, []]
    if accelerator.is_main_process:
        choice = list(newest_whole(directory))
    broadcast_object_list(choice)
    checkpoint, damaged = choice
    if checkpoint is None and not damaged:
        raise ValueError(f"There is no checkpoint in {directory} to resume from.")
    if checkpoint is None:
        raise ValueError(
            f"No checkpoint in {directory} is whole: {'; '.join(damaged)}. Put one back from a copy, or remove the "
            "folder to start again."
        )
    if damaged and accelerator.is_main_process:
        warnings.warn(f"Passed over in {directory}: {'; '.join(damaged)}. Using {checkpoint.name}.", stacklevel=2)
    return checkpoint, _load(checkpoint, accelerator, modules, optimizer)


def _load(
    checkpoint: Path, accelerator: Accelerator, modules: dict[str, nn.Module], optimizer: Optimizer
) -> dict[str, Any]:
    """A whole checkpoint, into `modules` and `optimizer`; returns its state."""
    state: dict[str, Any] = json.loads((checkpoint / _STATE).read_text())
    state["writers"] = len(list(checkpoint.glob(_random_file("*"))))
    moments: dict[int, dict[str, torch.Tensor]] = {}
    try:
        for name, module in modules.items():
            own, saved = module.state_dict(), load_file(checkpoint / f"{name}.safetensors")
            module.load_state_dict({k: split_like(v, own[k]) if k in own else v for k, v in saved.items()})
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for key, value in load_file(checkpoint / "optimizer.safetensors").items():
            index, name = key.split(".", 1)
            moments.setdefault(int(index), {})[name] = split_like(value, parameters[int(index)])
        optimizer.load_state_dict({"state": moments, "param_groups": state.pop("param_groups")})
    except (FileNotFoundError, IndexError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{checkpoint} doesn't fit this model; resume with the configuration that wrote it, or train into a new "
            f"`output_dir`. {textwrap.shorten(str(error), 300, placeholder=' ...')}"
        ) from error
    process = accelerator.process_index
    if process < state["writers"]:
        restore_random_state(load_file(checkpoint / _random_file(process)))
    else:  # there were fewer processes
        seed = hashlib.sha256(f"{state['step']} {process} {torch.initial_seed()}".encode()).digest()
        torch.manual_seed(int.from_bytes(seed[:8], "big", signed=True))
    return state


def random_state() -> dict[str, torch.Tensor]:
    """Of this process."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, torch.Tensor]) -> None:
    """From [`random_state`]."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def _random_file(process: int | str) -> str:
    return f"random-{process}.safetensors"


def _step(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("step-"))


# ---------------------------------------------------------------------------------------------------------- writing


def _write(final: Path, tensors: dict[str, dict[str, torch.Tensor]], state: str) -> None:
    """A whole checkpoint at `final`, on the disk when this returns; at no moment is the one it replaces gone too."""
    directory, partial, replaced = final.parent, _suffixed(final, _PARTIAL), _suffixed(final, _REPLACED)
    _remove(_leftovers(directory))
    partial.mkdir(parents=True)
    files = {name: _write_file(partial / name, content) for name, content in tensors.items()}
    files[_STATE] = _write_file(partial / _STATE, state)
    _write_file(partial / _MANIFEST, _manifest(files))
    _flush(partial)
    if final.exists():
        os.replace(final, replaced)
    os.replace(partial, final)
    for folder in (directory, directory.parent):  # the parent: this may be the first checkpoint
        _flush(folder)


def _write_file(path: Path, content: dict[str, torch.Tensor] | str) -> dict[str, Any]:
    """Size and SHA-256 of a file that is now on the disk. Every failure is an OSError with the file's name."""
    try:
        if isinstance(content, str):
            path.write_bytes(content.encode())
        else:
            save_file({k: v.contiguous() for k, v in content.items()}, path)
        _flush(path)
        return _digest(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    except SafetensorError as error:  # has the system's errors as text: "... (os error 28)"
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from error


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows has no such thing for folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _suffixed(checkpoint: Path, suffix: str) -> Path:
    return checkpoint.with_name(f"{checkpoint.stem}{suffix}")


def _leftovers(directory: Path) -> list[Path]:
    """What a writer that was killed, or failed, has left."""
    replaced = [p for p in directory.glob(f"step-*{_REPLACED}") if p.with_suffix("").exists()]
    return [*directory.glob(f"step-*{_PARTIAL}"), *replaced]


def _remove(checkpoints: Iterable[Path]) -> None:
    """Under another name first: a half-removed checkpoint isn't one. What stays is tried again at the next save."""
    for checkpoint in checkpoints:
        partial = _suffixed(checkpoint, _PARTIAL)
        with contextlib.suppress(OSError):
            os.replace(checkpoint, partial)
            shutil.rmtree(partial)


def _explain(error: OSError, final: Path, needed: int) -> str:
    """What couldn't be written, what is left, and what to do."""
    directory = final.parent
    text = f"{final.name} couldn't be written: {error.strerror} ({error.filename})."
    remedy = "Remove the cause"
    place = existing_place(directory)
    if error.errno in _DISK_FULL and free_inodes(place) == 0:
        remedy = "Remove files there, or keep fewer checkpoints with `keep_checkpoints`"
        text += " The disk has no room for more files (inodes), however much space is free."
    elif error.errno in _DISK_FULL:
        remedy = "Free some space there, or keep fewer with `keep_checkpoints`"
        free = shutil.disk_usage(place).free
        text += (
            f" A checkpoint takes {needed / 1e6:.1f} MB, and without what there was of it {free / 1e6:.1f} MB are free"
        )
        text += " on the disk; the quota is another limit." if error.errno == errno.EDQUOT else "."
    newest, _ = newest_whole(directory)
    if newest is None:
        return f"{text} There is no whole checkpoint before it. {remedy}, then start the run again."
    return f"{text} The last good checkpoint, {newest}, is untouched. {remedy}, then go on with `resume`."


# ------------------------------------------------------------------------------------------------------ verification


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _manifest(files: dict[str, dict[str, Any]]) -> str:
    """With a digest of its own: a damaged manifest must not put the blame on the files."""
    own = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": files, "sha256": own}, indent=1, sort_keys=True)


def newest_whole(directory: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint without damage, and what is wrong with each that is newer."""
    damaged: list[str] = []
    for checkpoint in reversed(list_checkpoints(directory)):
        damage = find_damage(checkpoint)
        if not damage:
            return checkpoint, damaged
        damaged.append(f"{checkpoint.name} ({', '.join(damage)})")
    return None, damaged


def find_damage(checkpoint: Path) -> list[str]:
    """What is wrong with the files of a checkpoint: nothing if it is whole."""
    if (checkpoint / _MANIFEST).exists() and not (checkpoint / _MANIFEST).is_file():
        return [f"{_MANIFEST} isn't a regular file"]  # reading a pipe would wait for ever
    try:
        text = (checkpoint / _MANIFEST).read_bytes().decode()
        files = json.loads(text)["files"]
        intact = text == _manifest(files)
    except FileNotFoundError:
        return [f"{_MANIFEST} is missing: no manifest, so nothing says whether the files are whole"]
    except OSError as error:
        return [f"{_MANIFEST} can't be read: {error.strerror}"]
    except (ValueError, KeyError, TypeError):
        return [f"{_MANIFEST} isn't the JSON that was written"]
    if not intact:
        return [f"{_MANIFEST} doesn't match its own SHA-256"]
    damage = []
    for name, expected in files.items():
        path = checkpoint / name
        try:
            size = path.stat().st_size
            if size != expected["size"]:
                damage.append(f"{name} has {size} bytes, not {expected['size']}")
            elif _digest(path) != expected:
                damage.append(f"{name} doesn't match its SHA-256")
        except FileNotFoundError:
            damage.append(f"{name} is missing")
        except OSError as error:
            damage.append(f"{name} can't be read: {error.strerror}")
    return damage
