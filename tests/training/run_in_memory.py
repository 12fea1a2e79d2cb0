"""A run without data, and what it was at each step, to hold checkpoints against."""

import os
from copy import deepcopy
from pathlib import Path

import torch
import torch.distributed
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn

from diffusion_bridge_vq.training.fault_tolerance.checkpoint import load_newest, save_checkpoint

FILES = (
    "model.safetensors",
    "ema.safetensors",
    "optimizer.safetensors",
    "random-0.safetensors",
    "state.json",
    "manifest.json",
)


class Run:
    """Two modules and an optimizer that move by a step at a time, and what they were at each of them."""

    def __init__(self, folder: Path, features: int = 4):
        self.folder, self.features, self.accelerator = folder, features, Accelerator(cpu=True)
        self.modules = {"model": nn.Linear(features, 3), "ema": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))}
        parameters = [p for module in self.modules.values() for p in module.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=0.1)
        self.seen: dict[int, dict] = {}

    def step(self, step: int) -> None:
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = 0.1 / (step + 1)
            for p in parameters["params"]:
                p.grad = torch.randn_like(p)
        self.modules["ema"][1].running_mean += step
        self.optimizer.step()
        self.seen[step] = self.now()

    def now(self) -> dict:
        modules = {name: deepcopy(module.state_dict()) for name, module in self.modules.items()}
        packed = self.optimizer.state_dict()
        groups = [{k: list(v) if k == "betas" else v for k, v in group.items()} for group in packed["param_groups"]]
        return modules | {
            "moments": deepcopy(packed["state"]),
            "groups": deepcopy(groups),
            "random": torch.get_rng_state(),
        }

    def save(self, step: int, keep: int = 9) -> Path:
        self.step(step)
        state = {"step": step, "epoch": step // 3, "note": f"of step {step}"}
        return save_checkpoint(self.folder, self.accelerator, self.modules, self.optimizer, state, keep)

    def load(self, folder: Path | None = None) -> tuple[int, dict]:
        """Into modules that are elsewhere; the step of what was loaded, which has to be all that there was then."""
        fresh = Run(folder or self.folder, self.features)
        torch.manual_seed(99)
        fresh.step(0)
        path, state = load_newest(fresh.folder, fresh.accelerator, fresh.modules, fresh.optimizer)
        step = state["step"]
        assert path.name.startswith(f"step-{step:08d}")
        assert state == {"step": step, "epoch": step // 3, "note": f"of step {step}", "writers": 1}
        assert_equal(fresh.now(), self.seen[step])
        return step, state


def assert_equal(a, b) -> None:
    """Bit for bit, through dicts and lists."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    else:
        assert a == b


def same(a, b) -> bool:
    try:
        assert_equal(a, b)
    except AssertionError:
        return False
    return True


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def as_safetensors_says(code: int) -> SafetensorError:
    return SafetensorError(f"Error while serializing: I/O error: {os.strerror(code)} (os error {code})")
