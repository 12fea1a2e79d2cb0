"""
Checkpoints of a run: safetensors and JSON only, written aside and renamed, so that a half-written one is never seen.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

_STATE = "state.json"


def save_checkpoint(
    directory: Path,
    accelerator: Accelerator,
    modules: dict[str, nn.Module],
    optimizer: Optimizer,
    state: dict[str, Any],
    keep: int,
) -> Path:
    """
    Write `directory`/step-N, N = `state["step"]`, and remove all but the newest `keep`.

    Called by every process: the main one writes weights, optimiser and `state`, each its own random state.

    Args:
        modules (`dict[str, nn.Module]`): by name; each becomes `name.safetensors`.
        optimizer (`Optimizer`): moments go to safetensors, hyperparameters to JSON.
        state (`dict`): JSON-safe; has "step".
    """
    final = directory / f"step-{state['step']:08d}"
    partial = directory / f"{final.name}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    save_file(_random_state(), partial / f"random-{accelerator.process_index}.safetensors")
    if accelerator.is_main_process:
        for name, module in modules.items():
            save_file({k: v.contiguous() for k, v in module.state_dict().items()}, partial / f"{name}.safetensors")
        packed = optimizer.state_dict()
        moments = {
            f"{index}.{key}": value.contiguous()
            for index, values in packed["state"].items()
            for key, value in values.items()
        }
        save_file(moments, partial / "optimizer.safetensors")
        (partial / _STATE).write_text(json.dumps(state | {"param_groups": packed["param_groups"]}, indent=1))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        for old in list_checkpoints(directory)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def list_checkpoints(directory: Path) -> list[Path]:
    """Whole checkpoints in `directory`, oldest first."""
    return sorted(p for p in directory.glob("step-*") if p.is_dir() and not p.name.endswith(".partial"))


def load_checkpoint(
    checkpoint: Path, accelerator: Accelerator, modules: dict[str, nn.Module], optimizer: Optimizer
) -> dict[str, Any]:
    """
    Load what `save_checkpoint` wrote, in place; returns its `state`.

    Raises:
        ValueError: the checkpoint's tensors don't fit the model, or a random state is missing because the run had
            fewer processes.
    """
    state = json.loads((checkpoint / _STATE).read_text())
    for name, module in modules.items():
        try:
            module.load_state_dict(load_file(checkpoint / f"{name}.safetensors"))
        except RuntimeError as error:
            raise ValueError(
                f"{checkpoint} doesn't fit this model; resume with the configuration that wrote it, or train into "
                f"a new `output_dir`. {error}"
            ) from error
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(checkpoint / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": state.pop("param_groups")})
    random_file = checkpoint / f"random-{accelerator.process_index}.safetensors"
    if not random_file.exists():
        raise ValueError(f"{checkpoint} has no {random_file.name}: resume with the number of processes that wrote it.")
    random_state = load_file(random_file)
    torch.set_rng_state(random_state["cpu"])
    if torch.cuda.is_available() and "cuda" in random_state:
        torch.cuda.set_rng_state(random_state["cuda"])
    return state


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
