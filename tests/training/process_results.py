"""Runs on two processes as a user launches them, and what they left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from accelerate.commands import launch as launcher
from warm_processes import Script

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "examples" / "accelerate_configs"


def seen(folder: Path) -> tuple[dict, dict]:
    return tuple(torch.load(folder / f"seen-{rank}-of-2.pt", weights_only=True) for rank in range(2))


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


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
