"""
What the processes of test_processes.py and test_deepspeed.py do: they import it by name, or are started with it as
their script.
"""

import faulthandler
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from tiny_run import TINY
from torch.distributed.tensor import DTensor

from diffusion_bridge_vq.models import VectorQuantizer
from diffusion_bridge_vq.training import (
    E2EConfig,
    E2EObjective,
    PixelCNNConfig,
    PixelCNNObjective,
    PriorConfig,
    PriorObjective,
    VQConfig,
    VQObjective,
    train,
)
from diffusion_bridge_vq.training.config import RunConfig
from diffusion_bridge_vq.training.distributed import accelerate as accelerate_module
from diffusion_bridge_vq.training.fault_tolerance import run_state
from diffusion_bridge_vq.training.sharding import whole

VQVAE = TINY["vqvae"] | {"in_channels": 1, "out_channels": 1, "num_vq_embeddings": 16, "sample_size": 8}
UNET = TINY["unet"] | {"sample_size": 4}
OBJECTIVE_CLASSES = {"vq": VQObjective, "prior": PriorObjective, "e2e": E2EObjective, "pixelcnn": PixelCNNObjective}
CONFIGS = {config.kind: config for config in (VQConfig, PriorConfig, E2EConfig, PixelCNNConfig)}


def split(work: Callable[..., None], *arguments: Any) -> None:
    """`work(*arguments)` as if launched with FSDP."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    _take_the_cpu_for_an_accelerator()
    work(*arguments)


def zero(stage: int, work: Callable[..., None], *arguments: Any) -> None:
    """`work(*arguments)` as if launched with DeepSpeed."""
    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
    _take_the_cpu_for_deepspeed()
    work(*arguments)


def _take_the_cpu_for_deepspeed() -> None:
    import deepspeed

    _take_the_cpu_for_an_accelerator()
    os.environ["ACCELERATE_USE_CPU"] = "false"
    accelerator = accelerate_module.Accelerator
    accelerate_module.Accelerator = lambda **options: accelerator(**options | {"cpu": False})  # type: ignore[misc]
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled, for minutes; gloo does it, too


def _take_the_cpu_for_an_accelerator() -> None:
    """For the rest of this process: Accelerate offers FSDP on no CPU."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)  # type: ignore[method-assign]


def place() -> tuple[int, int]:
    """Rank and number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def run(kind: str, folder: Path, overrides: dict[str, Any]) -> dict[str, Any] | None:
    """
    `train`, and what this process had in folder/seen-RANK-of-WORLD.pt: its state at each checkpoint (gathered, and
    the share of its numbers that lay here), the batches, the number of each code that training chose in them, and the
    random numbers that were next at each of them.

    The clock that `train` looks at gains a second at each look.
    """
    rank, world = place()
    config = configure(kind, folder, **overrides)
    seen: dict[str, Any] = {"states": {}, "shares": {}, "batches": [], "counts": [], "next": []}
    save, objective = run_state.save_checkpoint, OBJECTIVE_CLASSES[kind]
    forward, quantize = objective.forward, VectorQuantizer.forward

    def spy_on_save(directory, accelerator, modules, optimizer, state, keep):
        tensors = {f"{name}.{k}": v for name, module in modules.items() for k, v in module.state_dict().items()}
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in moments.items()}
        seen["states"][state["step"]] = {name: whole(tensor).clone() for name, tensor in tensors.items()}
        here = sum((t.to_local() if isinstance(t, DTensor) else t).numel() for t in tensors.values())
        seen["shares"][state["step"]] = here / sum(t.numel() for t in tensors.values())
        return save(directory, accelerator, modules, optimizer, state, keep)

    def spy_on_forward(self, images=None, class_labels=None, **encoded):
        seen["batches"].append(next(x for x in (images, *encoded.values()) if x is not None).clone())
        with torch.random.fork_rng(devices=[]):
            seen["next"].append(torch.rand(8))
        return forward(self, images, class_labels, **encoded)

    def spy_on_quantize(self, z):
        result = quantize(self, z)
        if self.training:
            seen["counts"].append(torch.bincount(result[2][2].flatten(), minlength=self.n_e))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_state, "save_checkpoint", spy_on_save)
        patch.setattr(objective, "forward", spy_on_forward)
        patch.setattr(VectorQuantizer, "forward", spy_on_quantize)
        patch.setattr(time, "perf_counter", itertools.count().__next__)
        trained = train(config)
    torch.save(seen, folder / f"seen-{rank}-of-{world}.pt")
    return trained


def configure(kind: str, folder: Path, **overrides: Any) -> RunConfig:
    """A run of 24 steps through all phases, with codes that are moved when a batch leaves them out."""
    settings: dict[str, Any] = {
        "output_dir": folder,
        "split": "test",
        "resolution": 8,
        "batch_size": 20,
        "gradient_accumulation_steps": 2,
        "max_train_steps": 24,
        "lr_warmup_steps": 5,
        "log_every": 4,
        "checkpoint_every": 12,
        "image_every": 0,
        "num_inference_steps": 2,
        "random_flip": True,
        "report_to": "none",
        "vqvae": VQVAE | {"ema_decay": 0.0, "num_vq_embeddings": 256},
    }
    bridge = {"unet": UNET, "class_conditional": True}
    settings |= {
        "vq": {},
        "prior": bridge,
        "e2e": bridge | {"mode": "stable", "joint_fraction": 0.25, "freeze_fraction": 0.75},
        "pixelcnn": {
            "prior": {"width": 8, "num_layers": 2, "dropout": 0.5},
            "class_conditional": True,
            "eval_every": 6,
        },
    }[kind]
    return CONFIGS[kind].from_preset("digits", **settings | overrides)


def run_into(fault: str, kind: str, folder: Path, overrides: dict[str, Any]) -> None:
    """
    A run in which process 1 meets a `fault` in its 12th batch, the second of step 6: too large "latents", NaN as
    "loss", or as "gradient" of a finite loss. Into folder/RANK-of-WORLD.pt: the error, and the state before that step.
    """
    rank, world = place()
    objective, batches, before = OBJECTIVE_CLASSES[kind], itertools.count(1), {}
    forward = objective.forward

    def bad(self, images, class_labels=None):
        batch = next(batches)
        if batch == 11:
            tensors = {name: value for name, value in self.state_dict().items() if name.split(".")[0] in self.trained}
            before.update({name: whole(value).clone() for name, value in tensors.items()})
        output = forward(self, images, class_labels)
        if rank == 1 and batch == 12:
            name, loss = next(iter(output.losses.items()))
            if fault == "latents":
                output.metrics["latent_rms"] = torch.tensor(2e4)
            elif fault == "loss":
                output.losses[name] = loss * torch.nan
            else:
                loss.register_hook(lambda gradient: gradient * torch.nan)
        return output

    with pytest.MonkeyPatch.context() as patch, pytest.raises(FloatingPointError) as error:
        patch.setattr(objective, "forward", bad)
        train(configure(kind, folder, **overrides))
    torch.save({"before": before, "message": str(error.value)}, folder / f"{rank}-of-{world}.pt")


def main(fault: str, folder: Path) -> None:
    """
    A launched run in which process 1 comes to grief at its third batch, by an exception or a signal; and, if `fault`
    says so, process 0 hangs there. Each leaves its number in folder/pid-RANK before.
    """
    forward = VQObjective.forward
    batches = itertools.count()

    def fail(self, images, class_labels=None):
        if next(batches) == 2:
            rank = os.environ["RANK"]
            (folder / f"pid-{rank}").write_text(str(os.getpid()))
            if rank == "1" and fault == "exception":
                raise RuntimeError(f"the third batch of process 1 of {PartialState().num_processes} is bad")
            if rank == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "signal, the other hangs":
                while True:  # as in a collective that doesn't notice
                    time.sleep(1)
        return forward(self, images, class_labels)

    VQObjective.forward = fail  # type: ignore[method-assign]
    train(configure("vq", folder))


if __name__ == "__main__":
    if sys.argv[1] in ("fsdp", "deepspeed"):
        faulthandler.dump_traceback_later(200, exit=True)  # where it hangs, if it does
        dist.init_process_group("gloo")  # Accelerate would make it for an accelerator
        {"fsdp": _take_the_cpu_for_an_accelerator, "deepspeed": _take_the_cpu_for_deepspeed}[sys.argv[1]]()
        run("prior", Path(sys.argv[2]), {"init_from": Path(sys.argv[3])})
    else:
        main(sys.argv[1], Path(sys.argv[2]))
