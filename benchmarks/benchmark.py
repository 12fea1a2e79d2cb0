"""
How fast the package is, compared with the bare network, other samplers and the limits of the device.

    python benchmarks/benchmark.py --output outputs/benchmark.json
    python benchmarks/benchmark.py --cifar10 path/to/cifar10 --only loading

1. Training step: that of `train` with `PriorObjective` (Accelerate, learning rate schedule, averaged weights) against
   the same U-Net with stock `DDPMScheduler`, MSE, backward, and the same clipping, AdamW and moving average. Neither
   loads or encodes images.
2. Sampling: `sample_latents`, and the pipeline without decoding, against the network and three numbers a step.
   Both sides have the same weights and noise, so that results must agree: "difference" is relative to the largest
   value. They take turns, and the ratio is the median over pairs: other work on the machine slows both.
3. Memory of quantizing latents in float32: the peak above latents and codebook. It includes z_q and, in "train"
   (forward and backward), the gradients of latents and codebook, which nobody can save; they are given
   next to it. On CUDA it is the allocator's peak. On Linux each case has a fresh process: a single sample first, then
   the peak resident set (VmHWM, set back through /proc/self/clear_refs) minus the resident set just before.
4. Waits of the host for the device in a training step, in the loop over sampling steps and in a whole call of
   `sample_latents`, by PyTorch's check: "ok", or its message. CUDA only.
5. Loading: the steps of `train` (end-to-end, all terms) on batches of a DataLoader, as `train` makes it, against the
   same steps on one batch that is there already. Images are in memory, decoded on access by workers, or streamed from
   parquet files through workers. Both sides take turns, each with untimed steps first: loading must neither profit
   from batches that were made during the other's steps, nor slow these.
6. Training: images a second of the prior's step as `train` does it (from its loader, latents cached on the device:
   those of the embedded digits, whatever the preset), in either layout of memory, compiled with --compile, and of
   what a step of diffusers' unconditional training example consists of, written again here. The bare loop of 1 takes
   turns with each; the ratio is of times. Peak memory on CUDA, without the bare loop's.
7. Samplers: seconds per image of the pipeline's 20 steps (eager, and compiled with --compile), the ancestral chain,
   diffusers' own DPM-Solver++, stock DDPMPipeline and DDIMPipeline on the same U-Net, and a PixelCNN, cached and
   naive (one forward pass for each position), at several batch sizes; on a CPU also in bfloat16 and with linear
   layers in int8, and with --pipeline the share of codes that are as in float32, 64 images from the same noise.
   Next to it the floor: the U-Net's FLOPs at the peak rate, or its weights read once a step, by --peak-tflops and
   --bandwidth-gbs.
8. Growth with batch, steps and side of the latent grid (sampling), and with codes and positions (quantizing), each
   alone; the exponent between the two largest values, and a log-log plot next to the JSON.

6, 7 and 8 take --budget seconds each at the most, and about one call more: a row that would go over it is skipped,
and says so.
"""

import argparse
import json
import math
import platform
import re
import sys
import time
from collections.abc import Iterable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import numpy as np
import torch
from accelerate import Accelerator
from benchmark_loading import compare_loading
from benchmark_quantizer import in_fresh_process, quantizer_memory
from benchmark_sampling import Clock, compare_samplers, measure_growth, plot_growth, slopes
from benchmark_training import Call, bare_step, compare_training, package_step
from diffusers import DDPMScheduler, UNet2DModel

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, GumbelVQModel, OUBridgeScheduler, PixelCNNPrior
from diffusion_bridge_vq.cli import check_output_folder, errors_as_lines, finite_number, local_path, whole_number
from diffusion_bridge_vq.sampling import sample_latents
from diffusion_bridge_vq.training import PRESETS, PriorConfig, PriorObjective

SECTIONS = ("overhead", "quantizer", "waits", "loading", "training", "samplers", "growth")


@errors_as_lines()
def main() -> None:
    parser = argparse.ArgumentParser(description="What the package costs compared with the bare network.")
    parser.add_argument("--preset", choices=PRESETS, help="U-Net and batch; default: cifar10 on CUDA, else digits")
    parser.add_argument("--batch-size", type=whole_number(1), help="default: the preset's")
    parser.add_argument(
        "--num-inference-steps", type=whole_number(1), help="steps of the sampling loop; default: the preset's"
    )
    parser.add_argument(
        "--repeats", type=whole_number(1), default=20, help="pairs of times behind each ratio; default: 20"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    parser.add_argument("--cpu", action="store_true", help="leave an accelerator alone")
    parser.add_argument(
        "--quantizer-shape", type=whole_number(1), nargs=5, default=[512, 128, 8, 8, 8192], help="B d h w K"
    )
    parser.add_argument("--cifar10", help="CIFAR-10 as parquet files, to measure its loading with cifar10-tiny, too")
    parser.add_argument(
        "--num-workers", type=whole_number(0), default=2, help="of on-access and streamed images; default: 2"
    )
    parser.add_argument("--loading-steps", type=whole_number(1), default=8, help="timed steps in a row; default: 8")
    parser.add_argument(
        "--budget", type=finite_number, default=60, help="seconds of sections 6, 7, 8 each; default: 60"
    )
    parser.add_argument(
        "--batch-sizes", type=whole_number(1), nargs="+", help="of samplers; default: 1 32 512 on CUDA, else 1 8"
    )
    parser.add_argument(
        "--sampler-steps", type=whole_number(1), default=20, help="of every bridge in samplers; default: 20"
    )
    parser.add_argument("--compile", action="store_true", help="training and samplers compiled, too: minutes on a CPU")
    parser.add_argument("--pipeline", help="samplers of a saved bridge instead of the preset's with random weights")
    parser.add_argument("--peak-tflops", type=finite_number, help="of the device and dtype, e.g. 790 (H100, bfloat16)")
    parser.add_argument("--bandwidth-gbs", type=finite_number, help="of the device's memory, e.g. 3350 (H100)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections; default: all")
    parser.add_argument("--output", type=local_path, default="outputs/benchmark.json", help="figures as JSON")
    args = parser.parse_args()
    if (args.peak_tflops is None) != (args.bandwidth_gbs is None):
        parser.error("--peak-tflops and --bandwidth-gbs are given together or not at all")
    check_output_folder(args.output.parent)

    accelerator = Accelerator(cpu=args.cpu, mixed_precision="no" if args.dtype == "float32" else "bf16")
    device, dtype = accelerator.device, getattr(torch, args.dtype)
    cuda = device.type == "cuda"
    options = {"batch_size": args.batch_size, "num_inference_steps": args.num_inference_steps}
    config = PriorConfig.from_preset(
        args.preset or ("cifar10" if cuda else "digits"),
        dataset="random latents",
        init_from=Path("random weights"),
        **{k: v for k, v in options.items() if v is not None},
    )
    n, side = config.num_inference_steps, config.resolution // 2 ** (len(config.vqvae["block_out_channels"]) - 1)
    shape = (config.batch_size, config.unet["in_channels"], side, side)
    report: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "device": f"{device.type}: {torch.cuda.get_device_name() if cuda else cpu_name()}",
        "versions": ", ".join(f"{m.__name__} {m.__version__}" for m in (torch, diffusers, accelerate)),
        "threads": torch.get_num_threads(),
        "dtype": args.dtype,
        "work": f"preset {config.preset}, latents {' x '.join(map(str, shape))}, {n} sampling steps",
        "repeats": args.repeats,
    }
    print(*(f"{key:10} {value}" for key, value in report.items()), sep="\n")

    torch.manual_seed(0)
    pixels = {"sample_size": config.resolution, "in_channels": config.channels, "out_channels": config.channels}
    vqvae, unet = GumbelVQModel(**pixels | config.vqvae), UNet2DModel(**{"sample_size": side} | config.unet)
    bridge = OUBridgeScheduler(**config.scheduler)
    bridge.set_timesteps(n)
    ddpm = bridge.to_diffusers(DDPMScheduler)  # the same process in DDPM's coordinates
    latents = torch.randn(shape).to(device)
    sampler = deepcopy(unet).to(device).type(dtype).eval()
    bare = bare_step(deepcopy(unet).to(device).train(), ddpm, config, latents, dtype)
    step = package_step(PriorObjective(vqvae, unet, bridge, config.weighting), config, accelerator, latents)
    bare_sample = bare_sampler(sampler, ddpm, bridge.timesteps.tolist(), shape)
    pipe = DiffusionBridgeVQPipeline(vqvae, sampler, bridge)
    pipe.set_progress_bar_config(disable=True)

    def sample(**kwargs: Any) -> torch.Tensor:
        return sample_latents(sampler, bridge, shape, n, device=device, dtype=dtype, solver="ancestral", **kwargs)

    def sample_pipeline() -> torch.Tensor:
        return pipe(config.batch_size, n, output_type="latent", return_dict=False, solver="ancestral")[0]

    if "overhead" in args.only:
        print(f"\n{'':16}{'package':>12}{'bare':>12}   ratio   quartiles     difference   (target: ratio 1.05)")
        report["overhead"] = {}
        for name, call, other, in_a_row in (
            ("training_step", step, bare, 10 if cuda else 1),  # on CUDA the host may run ahead, as in training
            ("sample_latents", sample, bare_sample, 1),
            ("pipeline", sample_pipeline, bare_sample, 1),
        ):
            report["overhead"][name] = row = compare(call, other, args.repeats, device, in_a_row)
            line = "{:16}{package_ms:9.4g} ms{bare_ms:9.4g} ms{ratio:8.3f}   {:.3f}-{:.3f}   {difference:.1e}"
            print(line.format(name, *row["ratio_quartiles"], **row))

    if "quantizer" in args.only:
        print("\nquantizer, peak above its inputs   (target: 300 MB)")
        report["quantizer_memory"] = {}
        for kind in ("gumbel", "ste", "ema"):
            for mode in ("eval", "train") if cuda or Path("/proc/self/clear_refs").exists() else ():
                row = (quantizer_memory if cuda else in_fresh_process)(kind, mode, args.quantizer_shape, device.type)
                report["quantizer_memory"][f"{kind} {mode}"] = row
                print(f"{kind + ' ' + mode:16}{row['peak_mb']:9.0f} MB, {row['gradients_mb']:.0f} of them gradients")

    if "waits" in args.only:
        print("\nwaits for the device")
        calls = {"training step": step, "sampling loop": lambda: sample(progress_bar=checked), "sampling call": sample}
        report["waits"] = {
            name: first_wait(call, name != "sampling loop") if cuda else "needs a GPU" for name, call in calls.items()
        }
        print(*(f"{name:16}{text}" for name, text in report["waits"].items()), sep="\n")

    if "loading" in args.only:
        print(f"\n{'':26}{'loaded':>12}{'fixed':>12}   speed   quartiles   (target: 0.95 of the fixed batch's)")
        report["loading"] = {}
        for preset, dataset in (("digits", "digits"), ("cifar10-tiny", args.cifar10)):
            if dataset is not None:
                for kind, row in compare_loading(preset, dataset, args, accelerator):
                    report["loading"][f"{preset} {kind}"] = row
                    line = "{:26}{loaded_ms:9.4g} ms{fixed_ms:9.4g} ms{speed:8.3f}   {:.3f}-{:.3f}"
                    print(line.format(f"{preset} {kind}", *row["speed_quartiles"], **row), flush=True)

    if "training" in args.only:
        print(f"\n{'':34}{'images/s':>10}{'bare':>10}   ratio of times, quartiles")
        report["training"] = []
        line = "{images_per_second:10.4g}{bare_images_per_second:10.4g}{ratio:8.3f}   {:.3f}-{:.3f}"
        clock = Clock(args.budget, args.repeats, device)
        for row in compare_training(vqvae, unet, bridge, config, accelerator, args.compile, clock):
            report["training"].append(row)
            text = row.get("skipped") or line.format(*row.get("ratio_quartiles", ()), **row)
            print(f"{row['step']:34}{text}", flush=True)

    args.output.parent.mkdir(parents=True, exist_ok=True)
    if "samplers" in args.only:
        if args.pipeline is not None:
            pipe = DiffusionBridgeVQPipeline.from_pretrained(args.pipeline)
            pipe.unet.to(device).type(dtype)
        print(f"\n{'':44}{'batch':>6}{'ms per image':>14}   times the floor   ({args.sampler_steps} steps)")
        size = {"num_codes": pipe.vqvae.quantize.n_e, "sample_size": pipe._latent_size()[0]}
        prior = PixelCNNPrior(**size | PRESETS[config.preset]["pixelcnn"]["prior"]).to(device).type(dtype).eval()
        pipe.vqvae.to(device).type(dtype).eval()
        peaks = None if args.peak_tflops is None else (args.peak_tflops * 1e12, args.bandwidth_gbs * 1e9)
        sizes = args.batch_sizes or ([1, 32, 512] if cuda else [1, 8])
        clock = Clock(args.budget, args.repeats, device)
        trained = args.pipeline is not None
        rows = compare_samplers(pipe, prior, sizes, args.sampler_steps, clock, args.compile, peaks, trained)
        report["samplers"] = [print_row(row, "{sampler:44}{batch_size:6}") for row in rows]

    if "growth" in args.only:
        print(f"\n{'':44}{'':>6}{'ms per call':>14}")
        axes = {"batch": [1, 4, 16, 64, 256], "steps": [4, 8, 16, 32, 64], "grid": [16, 32, 64]}
        axes |= {"codes": [1024, 4096, 16_384, 65_536], "positions": [4096, 16_384, 65_536]}
        if not cuda:
            axes |= {"batch": [1, 4, 16, 64], "steps": [4, 8, 16, 32], "grid": [4, 8, 16, 32]}
            axes |= {"codes": [256, 1024, 4096, 16_384], "positions": [256, 1024, 4096, 16_384]}
        channels = config.unet["in_channels"]
        rows = measure_growth(sampler, bridge, axes, (channels, 1024), Clock(args.budget, args.repeats, device))
        report["growth"] = [print_row(row, "{axis:44}{value:6}") for row in rows]
        report["growth_exponents"] = slopes(report["growth"])
        print(*(f"{axis:44}exponent {value:.2f}" for axis, value in report["growth_exponents"].items()), sep="\n")
        plot_growth(report["growth"], args.output.with_suffix(".png"))

    args.output.write_text(json.dumps(report, indent=1) + "\n")


def print_row(row: dict[str, Any], head: str) -> dict[str, Any]:
    floor = f"{row['times_the_floor']:18.2f}" if "times_the_floor" in row else ""
    same = f"   {row['same_codes']:.1%} of codes as in float32" if "same_codes" in row else ""
    text = f"   {row['skipped']}" if "skipped" in row else f"{1e3 * row['seconds_per_image']:11.4g} ms{floor}{same}"
    print(head.format(**row) + text, flush=True)
    return row


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def bare_sampler(unet: UNet2DModel, ddpm: DDPMScheduler, timesteps: list[int], shape: tuple[int, ...]) -> Call:
    """DDPM's ancestral chain as x <- a x + b unet(x, t) + c noise."""
    abar = np.append(np.cumprod(1 - np.asarray(ddpm.config.trained_betas)), 1.0)  # 1 at index -1, the clean end
    coefficients = []
    for t, s in zip(timesteps, [*timesteps[1:], -1], strict=True):
        ratio = abar[t] / abar[s]
        a = math.sqrt(ratio) * (1 - abar[s]) / (1 - abar[t])
        b = math.sqrt(abar[s]) * (1 - ratio) / (1 - abar[t])
        if ddpm.config.prediction_type == "epsilon":
            a, b = a + b / math.sqrt(abar[t]), -b * math.sqrt(1 / abar[t] - 1)
        coefficients.append((a, b, math.sqrt((1 - abar[s]) * (1 - ratio) / (1 - abar[t]))))
    on_device = torch.tensor(timesteps, device=unet.device)

    @torch.no_grad()
    def sample() -> torch.Tensor:
        x = torch.randn(shape, device=unet.device, dtype=unet.dtype)
        for t, (a, b, c) in zip(on_device, coefficients, strict=True):
            x = a * x + b * unet(x, t).sample
            if c:
                x = x + c * torch.randn_like(x)
        return x

    return sample


def compare(package: Call, bare: Call, repeats: int, device: torch.device, in_a_row: int) -> dict[str, Any]:
    """Times of one call in ms, and the ratio."""
    results = []
    for call in (package, bare):
        torch.manual_seed(0)
        results.append(call().float())
        call()
    wait = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    times = np.empty((repeats, 2))
    for i in range(repeats):
        for which in (0, 1) if i % 2 else (1, 0):
            wait()
            started = time.perf_counter()
            for _ in range(in_a_row):
                (package, bare)[which]()
            wait()
            times[i, which] = (time.perf_counter() - started) / in_a_row * 1e3
    ratios = times[:, 0] / times[:, 1]
    return {
        "package_ms": np.median(times[:, 0]).item(),
        "bare_ms": np.median(times[:, 1]).item(),
        "ratio": np.median(ratios).item(),
        "ratio_quartiles": np.quantile(ratios, [0.25, 0.75]).tolist(),
        "difference": ((results[0] - results[1]).abs().max() / results[1].abs().max()).item(),
    }


def first_wait(call: Call, everywhere: bool) -> str:
    torch.cuda.set_sync_debug_mode("error" if everywhere else "default")
    try:
        call()
    except RuntimeError as error:
        return f"failed: {str(error).splitlines()[0]}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "ok"


def checked(steps: Iterable) -> Iterator:
    """A "progress bar" that turns the check on for the loop alone."""
    torch.cuda.set_sync_debug_mode("error")
    yield from steps
    torch.cuda.set_sync_debug_mode("default")


if __name__ == "__main__":
    main()
