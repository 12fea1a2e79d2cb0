"""Runs on two processes as a user launches them, and what they left."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import process_work
import torch
from accelerate.commands import launch as launcher
from warm_processes import Script, launch

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "examples" / "accelerate_configs"


def seen(folder: Path) -> tuple[dict, dict]:
    return tuple(torch.load(folder / f"seen-{rank}-of-2.pt", weights_only=True) for rank in range(2))


def keys(batches: list[torch.Tensor]) -> list[bytes]:
    """One for each image, whether it was mirrored or not."""
    both = [(image.numpy().tobytes(), image.flip(-1).contiguous().numpy().tobytes()) for b in batches for image in b]
    return sorted(map(min, both))


def assert_it_goes_on_with_two_one_and_two(
    kind: str, whole_run: Path, options: dict[str, Any], folder: Path, split: tuple = ()
) -> None:
    """Each step has the images of the uninterrupted run. One process takes 8 at a time: an epoch would have more."""
    checkpoints = Path("checkpoints") / "step-00000012"
    shutil.copytree(whole_run / checkpoints, folder / checkpoints)
    alone = {"resume": True, "max_train_steps": 18, "batch_size": 8, "gradient_accumulation_steps": 10}
    process_work.run(kind, folder, options | alone)
    launch(folder, *split, process_work.run, kind, folder, options | {"resume": True})
    whole = [result["batches"] for result in seen(whole_run)]
    by_one = torch.load(folder / "seen-0-of-1.pt", weights_only=True)["batches"]
    by_two = [result["batches"] for result in seen(folder)]
    for step in range(12, 24):
        expected = keys([batch for own in whole for batch in own[2 * step : 2 * step + 2]])
        first = 10 * (step - 12)
        found = by_one[first : first + 10]
        if step >= 18:
            first = 2 * (step - 18)
            found = [batch for own in by_two for batch in own[first : first + 2]]
        assert len(set(expected)) > 60 and keys(found) == expected, step


# The norm that gradients are clipped by is summed in another order; Adam enlarges that where they are almost 0.
ROUNDING = {"model": 1e-4, "ema": 1e-4, "best": 1e-4, "optimizer": 1e-6}


def same_but_for_rounding(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert (state[key] - value).abs().max() <= ROUNDING[key.split(".")[0]], key


def accelerate(*command: str, config: str = "cpu_2.yaml") -> Script:
    """accelerate launch on two processes of this machine."""
    options = ("--config_file", CONFIGS / config, "--num_processes", 2, "--main_process_port", 0)
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return Script(Path(launcher.__file__), *options, *command, variables=variables)


def ended(launched: Script, seconds: float) -> subprocess.CompletedProcess[str]:
    """What it did, when it ends within `seconds`."""
    launched.process.join(seconds)
    late = launched.process.is_alive()
    launched.process.kill()
    done = launched.end()
    assert not late, done.stderr[-3000:]
    return done
