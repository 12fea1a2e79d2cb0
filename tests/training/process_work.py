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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from diffusers import UNet2DModel
from tiny_run import TINY
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from diffusion_bridge_vq import GumbelVQModel, OUBridgeScheduler, PixelCNNPrior
from diffusion_bridge_vq.data import StreamedImages
from diffusion_bridge_vq.models import VectorQuantizer
from diffusion_bridge_vq.training import (
    E2EConfig,
    E2EObjective,
    Objective,
    PixelCNNConfig,
    PixelCNNObjective,
    PriorConfig,
    PriorObjective,
    ReconstructionLoss,
    Trainer,
    VQConfig,
    VQObjective,
    train,
)
from diffusion_bridge_vq.training import run as run_module
from diffusion_bridge_vq.training.config import RunConfig
from diffusion_bridge_vq.training.distributed import accelerate as accelerate_module
from diffusion_bridge_vq.training.fault_tolerance import run_state, signals
from diffusion_bridge_vq.training.fault_tolerance.run_lock import run_lock
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


# ------------------------------------------------------------------------------------------------------- gradients

BATCH = 6  # of all processes together; halves of 3 differ in the 16 codes


def _vqvae(quantizer_type: str = "ema") -> GumbelVQModel:
    return GumbelVQModel(**VQVAE, quantizer_type=quantizer_type, ema_decay=0.9)


def _e2e(quantizer_type: str = "ema", classes: bool = False, **kwargs: Any) -> E2EObjective:
    unet = UNet2DModel(**UNET, num_class_embeds=4 if classes else None)
    return E2EObjective(_vqvae(quantizer_type), unet, OUBridgeScheduler(), class_dropout=0.5, **kwargs)


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "vq, gumbel": lambda: VQObjective(_vqvae("gumbel"), ReconstructionLoss(l1_weight=0.1)),
    "vq, ste": lambda: VQObjective(_vqvae("ste")),
    "vq, ema": lambda: VQObjective(_vqvae("ema")),
    "vq, adversarial": lambda: VQObjective(
        _vqvae("ste"), ReconstructionLoss(VQVAE["out_channels"], adversarial_weight=0.2, adversarial_from=1)
    ),
    "prior": lambda: PriorObjective(
        _vqvae(), UNet2DModel(**UNET, num_class_embeds=4), OUBridgeScheduler(), "elbo", class_dropout=0.5
    ),
    "e2e, before joining": lambda: _e2e(joint_from=3),
    "e2e, joining": lambda: _e2e(classes=True, joint_from=1, ramp_steps=2),
    "e2e, joint": lambda: _e2e("gumbel", weighting="min_snr"),
    "e2e, frozen": lambda: _e2e(classes=True, freeze_from=1),
    "e2e, paper": lambda: _e2e("gumbel", mode="paper", weighting="elbo"),
    "e2e, paper, eq. 5": lambda: _e2e("gumbel", mode="paper", weighting="elbo", regularization="kl"),
    "pixelcnn": lambda: PixelCNNObjective(
        _vqvae(), PixelCNNPrior(16, width=8, num_layers=2, sample_size=4, num_class_embeds=4), class_dropout=0.5
    ),
}


def save_steps(folder: Path) -> None:
    """
    Gradients and state of three steps of every objective, this process having its share of each batch, into `folder`.
    """
    rank, world = place()
    torch.save({name: _three_steps(make) for name, make in OBJECTIVES.items()}, folder / f"{rank}-of-{world}.pt")


def _three_steps(make: Callable[[], Objective]) -> dict[str, torch.Tensor]:
    rank, world = place()
    torch.manual_seed(0)
    objective = make().train()
    model: Any = objective
    if world > 1:
        unused = objective.has_unused_parameters
        model = DistributedDataParallel(objective, find_unused_parameters=unused)  # as in `train`
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.1)
    generator = torch.Generator().manual_seed(1)
    found: dict[str, torch.Tensor] = {}
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    for step in range(3):
        images = torch.rand(BATCH, 1, 8, 8, generator=generator) * (step + 1) - 1
        labels = torch.randint(3, (BATCH,), generator=generator)
        objective.set_step(step)
        with _noise_of_the_whole_batch(rank, world):
            losses = model(images[mine], labels[mine]).losses
            sum(losses.values()).backward()
        found |= {f"{step} {name}": p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
    return found | {f"state {name}": value for name, value in objective.state_dict().items()}


@contextmanager
def _noise_of_the_whole_batch(rank: int, world: int) -> Iterator[None]:
    """
    All processes draw the same: the noise of every sample, of which each takes that of its own. Rows are samples, or
    positions sample by sample.
    """

    def own(draw: Callable[[tuple[int, ...]], torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
        return draw((shape[0] * world, *shape[1:]))[rank * shape[0] : (rank + 1) * shape[0]]

    randn, rand, randint, exponential = torch.randn, torch.rand, torch.randint, torch.Tensor.exponential_

    def own_randint(high: int, size: tuple[int, ...], **kwargs: Any) -> torch.Tensor:
        if not size or size[0] * world != BATCH:  # a seed and the codebook's candidates aren't of a sample
            return randint(high, size, **kwargs)
        return own(lambda shape: randint(high, shape, **kwargs), size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda x: own(randn, tuple(x.shape)))
        patch.setattr(torch, "rand", lambda size, **kwargs: own(lambda shape: rand(shape, **kwargs), tuple(size)))
        patch.setattr(torch, "randint", own_randint)
        patch.setattr(
            torch.Tensor,
            "exponential_",
            lambda x, **kwargs: x.copy_(own(lambda shape: exponential(torch.empty(shape), **kwargs), tuple(x.shape))),
        )
        yield


# ------------------------------------------------------------------------------------------------------------ runs


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
        "e2e": bridge | {"joint_fraction": 0.25, "freeze_fraction": 0.75},
        "pixelcnn": {
            "prior": {"width": 8, "num_layers": 2, "dropout": 0.5},
            "class_conditional": True,
            "eval_every": 6,
        },
    }[kind]
    return CONFIGS[kind].from_preset("digits", **settings | overrides)


def refused(folder: Path) -> None:
    """A run that must not go on; its message goes into folder/refused-RANK."""
    with pytest.raises(ValueError) as error:
        train(configure("vq", folder, resume=True))
    (folder / f"refused-{place()[0]}").write_text(str(error.value))


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


# ------------------------------------------------------------------------------------- decisions of all processes


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


def run_with_unreadable_data(folder: Path) -> None:
    """Process 1 can't read the second batch of step 6. The error of each process goes into folder/refused-RANK."""
    rank, _ = place()
    batches = Trainer.batches

    def broken(self):
        for number, batch in enumerate(batches(self), start=1):
            if rank == 1 and number == 12:
                raise ValueError("image 7 can't be decoded")
            yield batch

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError) as error:
        patch.setattr(Trainer, "batches", broken)
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
        patch.setattr(StreamedImages, "share", lambda self, index, count: 0)
        train(configure("vq", folder / "run", **stream, **small))
    (folder / f"refused-{rank}").write_text(str(error.value))


def refused_at_once(folder: Path) -> None:
    """A run into a folder that another process holds. The error of each process goes into folder/refused-RANK."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError) as error:
        patch.setattr(run_module, "run_lock", lambda run: run_lock(run, wait_seconds=0))
        train(configure("vq", folder))
    (folder / f"refused-{place()[0]}").write_text(str(error.value))


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
