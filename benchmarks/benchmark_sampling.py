"""The sections "samplers" and "growth" of benchmark.py, which says what they measure."""

import itertools
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_formats import in_other_formats, same_codes
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DModel,
)
from torch.utils.flop_counter import FlopCounterMode

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, OUBridgeScheduler, PixelCNNPrior, PixelCNNVQPipeline
from diffusion_bridge_vq.evaluation.timing import seconds_per_sample
from diffusion_bridge_vq.figures import new_figure, save_figure
from diffusion_bridge_vq.models import GumbelSoftmaxQuantizer
from diffusion_bridge_vq.sampling import sample_latents

Draw = Callable[[], Any]


class Clock:
    """Times calls for at most `budget` seconds in all: what would go over it isn't started."""

    def __init__(self, budget: float, repeats: int, device: torch.device):
        self.end, self.repeats, self.device = time.perf_counter() + budget, repeats, device

    def time(self, draw: Draw, batch_size: int, expected: float = 0.0) -> dict[str, Any]:
        """Seconds of a call and memory; `expected` seconds are taken for granted before the first one."""
        if expected > self.left:
            return {"skipped": f"about {expected:.0f} s a call, {max(0.0, self.left):.0f} s left of the budget"}
        cuda = self.device.type == "cuda"
        try:
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            draw()  # the first call, with all that happens once
            if cuda:
                torch.cuda.synchronize()
            first = time.perf_counter() - started
            repeats = max(1, min(self.repeats, int(self.left / max(first, 1e-9))))
            found = seconds_per_sample(draw, batch_size, repeats, warmup=0, device=self.device)
        except torch.OutOfMemoryError as error:
            return {"skipped": str(error).split(". ")[0]}
        row: dict[str, Any] = {"seconds": found.median * batch_size, "seconds_per_image": found.median}
        row |= {"quartiles": [found.lower_quartile, found.upper_quartile], "repeats": repeats, "first_call": first}
        if cuda:
            row["peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
        return row

    @property
    def left(self) -> float:
        return self.end - time.perf_counter()


def compare_samplers(
    pipe: DiffusionBridgeVQPipeline,
    prior: PixelCNNPrior,
    batch_sizes: list[int],
    steps: int,
    clock: Clock,
    compiled: bool,
    peaks: tuple[float, float] | None,
    trained: bool = False,
) -> Iterator[dict[str, Any]]:
    """
    A row for each sampler and batch size; `peaks` are FLOP/s and bytes/s of the device, for the floor. Whether other
    number formats give the same codes is asked of `trained` networks only.
    """
    unet, bridge = pipe.unet, pipe.scheduler
    height, width = pipe._latent_size()
    pixelcnn = PixelCNNVQPipeline(pipe.vqvae, prior)
    ddpm = DDPMPipeline(unet, bridge.to_diffusers(DDPMScheduler))
    ddim = DDIMPipeline(unet, bridge.to_diffusers(DDIMScheduler))
    swapped = DiffusionBridgeVQPipeline(pipe.vqvae, unet, bridge.to_diffusers(DPMSolverMultistepScheduler))
    fast = DiffusionBridgeVQPipeline(deepcopy(pipe.vqvae), deepcopy(unet), bridge) if compiled else pipe
    other_formats = in_other_formats(pipe) if unet.device.type == "cpu" and unet.dtype == torch.float32 else {}
    student, compiled_student = as_student(pipe), as_student(fast)
    other_students = {
        name.replace("bridge", "student, 1 step"): as_student(other) for name, other in other_formats.items()
    }
    every = (pipe, pixelcnn, ddpm, ddim, swapped, student, compiled_student, fast)
    for each in (*every, *other_formats.values(), *other_students.values()):
        each.set_progress_bar_config(disable=True)

    def samplers(n: int) -> dict[str, Draw]:
        stock: dict[str, Any] = {"batch_size": n, "num_inference_steps": steps, "output_type": "np"}
        images: dict[str, Any] = stock | {"output_type": "pt"}
        return {
            "bridge": lambda: pipe(**images),
            "bridge, no decoding": lambda: pipe(**images | {"output_type": "latent"}),
            "student, 1 step": lambda: student(n, 1, output_type="pt"),
            "student, 4 steps": lambda: student(n, 4, output_type="pt"),
            **{name: lambda other=other: other(n, 1, output_type="pt") for name, other in other_students.items()},
            **{name: lambda other=other: other(**images) for name, other in other_formats.items()},
            "bridge, compiled": lambda: fast(**images),
            "bridge, compiled, no decoding": lambda: fast(**images | {"output_type": "latent"}),
            "student, 1 step, compiled": lambda: compiled_student(n, 1, output_type="pt"),
            "bridge, ancestral": lambda: pipe(**images, solver="ancestral"),
            "bridge, diffusers' DPM-Solver++": lambda: swapped(**images),
            "stock DDPMPipeline, no decoding": lambda: ddpm(**stock),
            "stock DDIMPipeline, no decoding": lambda: ddim(**stock),
            "PixelCNN, cached": lambda: pixelcnn(n, output_type="pt"),
            "PixelCNN, naive": lambda: pixelcnn._decode_codes(naive_pixelcnn(prior, n, height, width)),
        }

    odd = any(side % 2 ** (len(unet.config.block_out_channels) - 1) for side in (height, width))

    def is_compiled(name: str) -> bool:
        return "compiled" in name

    before: dict[str, tuple[int, float]] = {}  # batch and seconds
    # compiled ones last: they may take most of the time
    for names in ([not is_compiled(k) for k in samplers(1)], [compiled and is_compiled(k) for k in samplers(1)]):
        for n, name in itertools.product(batch_sizes, itertools.compress(samplers(1), names)):
            known_n, known_seconds = before.get(name, (1, 0.0))
            expected = 2 * known_seconds * max(1.0, n / known_n)
            row: dict[str, Any] = {"sampler": name, "batch_size": n}
            if name == "bridge, compiled" and expected < clock.left:
                fast.compile(n)
            if is_compiled(name) and fast.unet._compiled_call_impl is None:
                row["skipped"] = "not compiled"
            elif name.startswith("stock") and unet.config.num_class_embeds is not None:
                row["skipped"] = "diffusers' pipelines take no network with classes"
            elif name.startswith("stock") and odd:
                row["skipped"] = f"diffusers' pipelines take no {height} x {width} grid"
            else:
                row |= clock.time(samplers(n)[name], n, expected)
            if "seconds" in row and trained and name in other_formats:
                row["same_codes"] = same_codes(pipe, other_formats[name], steps)
            if "seconds" in row:
                before[name] = (n, row["seconds"])
                own_floor = name in other_formats or name.startswith(("PixelCNN", "student"))
                if not own_floor:
                    shape = (n, unet.config.in_channels, height, width)
                    row |= floor(unet, shape, steps, row["seconds"], peaks)
            yield row


def as_student(pipe: DiffusionBridgeVQPipeline) -> DiffusionBridgeVQPipeline:
    """The same networks, drawing as a student does: what one of this size costs. Its images mean nothing."""
    last = len(pipe.scheduler) - 1
    table = {steps: [last * (steps - i) // steps for i in range(steps)] for steps in (1, 4)}
    scheduler = OUBridgeScheduler.from_config(
        pipe.scheduler.config, prediction_type="sample", few_step_timesteps=table, distilled_guidance_scale=1.0
    )
    return DiffusionBridgeVQPipeline(pipe.vqvae, pipe.unet, scheduler)


@torch.no_grad()
def naive_pixelcnn(prior: PixelCNNPrior, n: int, height: int, width: int) -> torch.Tensor:
    """One whole forward pass for each position, as PixelCNNs were sampled first."""
    device = next(prior.parameters()).device
    codes = torch.zeros(n, height, width, dtype=torch.long, device=device)
    for row, column in itertools.product(range(height), range(width)):
        logits = prior(codes).logits[:, :, row, column].float()
        codes[:, row, column] = torch.multinomial(logits.softmax(dim=1), 1)[:, 0]
    return codes


@torch.no_grad()
def floor(
    unet: UNet2DModel,
    shape: tuple[int, ...],
    steps: int,
    seconds: float,
    peaks: tuple[float, float] | None,
) -> dict[str, Any]:
    """What the network's calls cost at least: arithmetic at the peak rate, or the weights read once a step."""
    side = 2 ** (len(unet.config.block_out_channels) - 1)  # as `denoise` pads
    padded = (*shape[:2], *(s + -s % side for s in shape[2:]))
    with torch.device("meta"):
        network = UNet2DModel.from_config(unet.config)
        with FlopCounterMode(display=False) as counter:
            labels = (
                {}
                if unet.config.num_class_embeds is None
                else {"class_labels": torch.zeros(padded[0], dtype=torch.long)}
            )
            network(torch.empty(padded), torch.zeros((), dtype=torch.long), **labels)
    flops = steps * counter.get_total_flops()
    read = steps * sum(p.numel() * p.element_size() for p in unet.parameters())
    row: dict[str, Any] = {"gflops": flops / 1e9, "weights_gb": read / 1e9}
    if peaks is not None:
        lowest = max(flops / peaks[0], read / peaks[1])
        row |= {"floor_seconds": lowest, "times_the_floor": seconds / lowest}
    return row


def measure_growth(
    unet: UNet2DModel,
    bridge: OUBridgeScheduler,
    axes: dict[str, list[int]],
    quantizer_size: tuple[int, int],
    clock: Clock,
) -> Iterator[dict[str, Any]]:
    """
    Seconds while one of batch, steps, grid (its side), codes, positions grows and the others stay at their first.

    codes and positions are of the quantizer: d channels, K codes, `quantizer_size` is (d, K of "positions").
    """
    device, dtype, channels = unet.device, unet.dtype, unet.config.in_channels
    first = {axis: values[0] for axis, values in axes.items()}
    for axis, values in axes.items():
        known, seconds = values[0], 0.0
        for value in values:
            at = first | {axis: value}
            if axis in ("codes", "positions"):
                d, num_codes = quantizer_size
                quantizer = GumbelSoftmaxQuantizer(value if axis == "codes" else num_codes, d).to(device).eval()
                z = torch.randn(1, d, at["positions"], device=device)
                draw: Draw = lambda q=quantizer, z=z: q.encode_codes(z)  # noqa: E731
                expected = 2 * seconds * value / known
            else:
                shape = (at["batch"], channels, at["grid"], at["grid"])
                draw = lambda shape=shape, n=at["steps"]: sample_latents(  # noqa: E731
                    unet, bridge, shape, n, device=device, dtype=dtype, solver="dpmsolver++"
                )
                # attention grows with the square of the positions
                expected = 2 * seconds * (value / known) ** (4 if axis == "grid" else 1)
            row = {"axis": axis, "value": value} | clock.time(draw, 1, expected)
            if "seconds" in row:
                known, seconds = value, row["seconds"]
            yield row


def slopes(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Exponent of each axis between its two largest values; 1 is linear."""
    found = {}
    for axis in dict.fromkeys(row["axis"] for row in rows):
        points = [(row["value"], row["seconds"]) for row in rows if row["axis"] == axis and "seconds" in row]
        if len(points) > 1:
            (x0, y0), (x1, y1) = points[-2:]
            found[axis] = float(np.log(y1 / y0) / np.log(x1 / x0))
    return found


def plot_growth(rows: list[dict[str, Any]], path: Path) -> None:
    """One log-log curve for each axis; nothing without matplotlib."""
    figure = new_figure(figsize=(6, 4))
    if figure is None:
        return
    axes = figure.add_subplot()
    for axis in dict.fromkeys(row["axis"] for row in rows):
        points = [(row["value"], row["seconds"]) for row in rows if row["axis"] == axis and "seconds" in row]
        axes.loglog(*zip(*points, strict=True), marker="o", label=axis)
    axes.set(xlabel="batch, steps, side of the grid, codes, positions", ylabel="seconds a call")
    axes.legend()
    save_figure(figure, path)
