"""
The tables of docs/concepts/scaling.md: costs of the paper's miniImageNet and of ImageNet at 256 pixels, and a step on
one and on two processes of this CPU as the formulas predict it and as it is.

python benchmarks/scaling.py

Networks are built without memory (on the meta device); operations and activations are counted, not guessed.
"""

import argparse
import multiprocessing as mp
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import UNet2DModel
from torch.nn.parallel import DistributedDataParallel

from diffusion_bridge_vq import GumbelVQModel
from diffusion_bridge_vq.training.presets import preset_values
from diffusion_bridge_vq.training.scaling import (
    count_flops,
    count_saved_bytes,
    exchanged_bytes,
    state_bytes,
    step_seconds,
    work_hours,
)

#: An f8 autoencoder and a U-Net on 32 x 32 latents.
IMAGENET = {
    "vqvae": {
        "block_out_channels": [128, 128, 256, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "num_vq_embeddings": 16384,
    },
    "unet": {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [256, 512, 768],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "num_class_embeds": 1001,
    },
}


@dataclass
class Setting:
    """A data set and its networks. `side`: of latents as the U-Net takes them, padded to a multiple of its factor."""

    name: str
    images: int
    resolution: int
    side: int
    batch: int
    steps: int
    networks: dict[str, Any]


SETTINGS = (
    Setting("miniImageNet, 84 px", 50_000, 84, 24, 128, 200_000, preset_values("miniimagenet", "prior")),
    Setting("ImageNet, 256 px, f8", 1_281_167, 256, 32, 1024, 400_000, IMAGENET),
)
# Assumed, not measured: 40 % of an A100's 312 TFLOP/s in bf16; 100 GB/s between GPUs of a machine of eight, 25 GB/s
# (200 Gbit/s) between machines; 8 cores for each GPU, which each decode 20 million pixels of images a second.
RATE, INSIDE, BETWEEN, DECODED_PIXELS = 125e12, 100e9, 25e9, 8 * 20e6
GPUS, DRAWN, DRAWING_STEPS = (1, 8, 64), 50_000, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of the measurement; 0 for the tables alone")
    parser.add_argument("--steps", type=int, default=8, help="of each round")
    args = parser.parse_args()
    for setting in SETTINGS:
        print_costs(setting)
    if args.rounds:
        compare(args.rounds, args.steps)


def print_costs(setting: Setting) -> None:
    with torch.device("meta"):
        vqvae = GumbelVQModel(**setting.networks["vqvae"], sample_size=setting.resolution)
        unet = UNet2DModel(**setting.networks["unet"], sample_size=setting.side)
        images = torch.empty(1, 3, setting.resolution, setting.resolution)
        latents = torch.empty(1, setting.networks["unet"]["in_channels"], setting.side, setting.side)
        labels = torch.zeros(1, dtype=torch.long) if unet.config.num_class_embeds else None

        def forward() -> torch.Tensor:
            sample: torch.Tensor = unet(latents, torch.zeros(1), class_labels=labels).sample
            return sample

        trained, frozen = (sum(p.numel() for p in module.parameters()) for module in (unet, vqvae))
        with torch.no_grad():
            encode = count_flops(lambda: vqvae.quant_conv(vqvae.encoder(images)))
            decode = count_flops(lambda: vqvae.decoder(vqvae.post_quant_conv(latents)))
            call = count_flops(forward)
        step, saved = count_flops(lambda: forward().sum().backward()), count_saved_bytes(forward)
    draw = DRAWING_STEPS * call + decode
    print(f"\n{setting.name}: U-Net {trained / 1e6:.1f}M, autoencoder {frozen / 1e6:.1f}M weights")
    print(f"GFLOP an image: encode {encode / 1e9:.1f}, U-Net {call / 1e9:.1f}, train {step / 1e9:.1f}, ", end="")
    print(f"decode {decode / 1e9:.1f}, draw {draw / 1e9:.0f}; activations {saved / 1e6:.0f} MB an image in float32")
    print("\n| GPUs | images a GPU and step | memory, DDP (FSDP) | sent a step | compute + exchange | ", end="")
    print("training | encoding | drawing 50,000 | first bottleneck |\n" + "|---" * 9 + "|")
    for gpus in GPUS:
        own = setting.batch / gpus
        memory = [state_bytes(trained, frozen, gpus, sharded) + own * saved for sharded in (False, True)]
        sent = exchanged_bytes(trained, gpus)
        bandwidth = INSIDE if gpus <= 8 else BETWEEN
        seconds = step_seconds(own * step, RATE), step_seconds(0, 1, sent, bandwidth)
        decoding = own * setting.resolution**2 / DECODED_PIXELS
        names = {"computing": seconds[0], "exchange": seconds[1], "decoding images": decoding}
        slowest = max(names, key=lambda name: names[name])
        total = sum(seconds)
        print(
            f"| {gpus} | {own:g} | {memory[0] / 1e9:.1f} ({memory[1] / 1e9:.1f}) GB | {sent / 1e6:.0f} MB | "
            f"{1e3 * seconds[0]:.1f} + {1e3 * seconds[1]:.1f} ms | {setting.steps * total / 3600:.1f} h | "
            f"{work_hours(setting.images, encode, RATE, gpus) * 60:.2f} min | "
            f"{work_hours(DRAWN, draw, RATE, gpus) * 60:.2f} min | {slowest} ({1e3 * names[slowest]:.0f} ms) |"
        )


# ------------------------------------------------------------------------------------- prediction and measurement


def compare(rounds: int, steps: int) -> None:
    """A step of the digits' U-Net on one process, the speed of the exchange, and a step on two processes."""
    preset = preset_values("digits", "prior")
    unet = UNet2DModel(**preset["unet"], sample_size=4)
    latents, times = torch.rand(preset["batch_size"], 8, 4, 4), torch.zeros(preset["batch_size"])
    flops = count_flops(lambda: unet(latents, times).sample.sum().backward())
    trained = sum(p.numel() for p in unet.parameters())
    queue: Any = mp.get_context("spawn").Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (f"file://{Path(folder)}/rendezvous", preset, rounds, steps, queue)
        processes = [mp.get_context("spawn").Process(target=measure, args=(rank, *arguments)) for rank in range(2)]
        for process in processes:
            process.start()
        found = queue.get()
        for process in processes:
            process.join()
    alone, both, exchange, together = (statistics.median(times) for times in zip(*found, strict=True))
    sent = exchanged_bytes(trained, 2)
    rate, busy, bandwidth = flops / alone, flops / both, sent / exchange
    print(f"\ndigits, {preset['batch_size']} images a process, {flops / 1e9:.1f} GFLOP, {sent / 1e6:.1f} MB sent")
    print(f"one process: {rate / 1e9:.2f} GFLOP/s; each of two: {busy / 1e9:.2f}; exchange {bandwidth / 1e6:.0f} MB/s")
    print("| processes | predicted step | measured step |\n|---|---|---|")
    print(f"| 1 | {1e3 * step_seconds(flops, rate):.0f} ms (defines the rate) | {1e3 * alone:.0f} ms |")
    print(f"| 2 | {1e3 * step_seconds(flops, busy, sent, bandwidth):.0f} ms | {1e3 * together:.0f} ms |")


def measure(rank: int, rendezvous: str, preset: dict[str, Any], rounds: int, steps: int, queue: Any) -> None:
    """Into `queue`, for each round: seconds of a step alone, of one next to the other, of an exchange, and of both."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    unet = UNet2DModel(**preset["unet"], sample_size=4)
    latents, times = torch.rand(preset["batch_size"], 8, 4, 4), torch.zeros(preset["batch_size"])
    gradients = torch.rand(sum(p.numel() for p in unet.parameters()))
    wrapped = DistributedDataParallel(unet)

    def step(model: torch.nn.Module) -> None:
        model(latents, times).sample.sum().backward()

    def timed(work: Any) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            work()
        return (time.perf_counter() - start) / steps

    step(wrapped)
    found = []
    for _ in range(rounds):
        dist.barrier()
        alone = timed(lambda: step(unet)) if rank == 0 else 0.0
        dist.barrier()
        both = timed(lambda: step(unet))
        dist.barrier()
        exchange = timed(lambda: dist.all_reduce(gradients))
        dist.barrier()
        found.append((alone, both, exchange, timed(partial(step, wrapped))))
    if rank == 0:
        queue.put(found)
    dist.barrier()
    del wrapped
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
