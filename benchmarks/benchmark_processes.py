"""
Two processes against one: encoding, reading a stream, drawing and evaluating; and a prior that is trained from latents
on disk against latents in memory.

python benchmarks/benchmark_processes.py

Each kind of work is the same on one process and on two, both in this run, with one thread a process. A time is that of
the slowest process, from a common start to its end. Processor time of the busiest process is what the time would be on
cores that nothing else uses.
"""

import argparse
import json
import multiprocessing as mp
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from diffusion_bridge_vq import DiffusionBridgeVQPipeline
from diffusion_bridge_vq.data import encoded as encoded_module
from diffusion_bridge_vq.data import load_images, stream_images
from diffusion_bridge_vq.evaluation import (
    EvaluationConfig,
    ModelOutputs,
    Processes,
    RealImages,
    SampleStore,
    run_metrics,
)
from diffusion_bridge_vq.sample_folder import draw_into_folder
from diffusion_bridge_vq.training import (
    PriorConfig,
    build_objective,
    encode_images,
    launched_processes,
    load_autoencoder,
)
from diffusion_bridge_vq.training.data import open_images
from diffusion_bridge_vq.training.distributed.accelerate import make_accelerator
from diffusion_bridge_vq.training.trainer import Trainer

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"
CHECKPOINT = CHECKPOINTS / "digits"
GRAY = {"resolution": 16, "channels": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream-images", type=int, default=6000, help="of 128 x 128 pixels, to read and encode")
    parser.add_argument("--draw", type=int, default=384, help="images to draw, in 20 steps")
    parser.add_argument("--evaluate", type=int, default=256, help="images to evaluate, of 297")
    parser.add_argument("--train-steps", type=int, default=40)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_stream(folder / "stream", args.stream_images)
        found = {count: launch(count, folder, args) for count in (1, 2)}
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, one thread a process\n")
    print("| work | n | one process | two processes | ratio | processor time of the busiest, ratio |")
    print("|---|---|---|---|---|---|")
    for work in found[1][0]["seconds"]:
        wall, busy = ([max(own[kind][work] for own in found[n]) for n in (1, 2)] for kind in ("seconds", "processor"))
        count = found[1][0]["n"][work]
        print(f"| {work} | {count} | {wall[0]:.1f} s | {wall[1]:.1f} s | {wall[1] / wall[0]:.2f} | ", end="")
        print(f"{busy[1] / busy[0]:.2f} |")
    shares = [own["decoded"] / args.stream_images for own in found[2]]
    print(f"\nshare of the stream that each of two decoded: {', '.join(f'{share:.2f}' for share in shares)}")
    disk, memory = (found[1][0]["train"][kind] for kind in ("disk", "memory"))
    print(f"a prior's step from latents on disk: {disk:.1f} ms, in memory: {memory:.1f} ms ({memory / disk:.2f})")


def write_stream(folder: Path, count: int) -> None:
    """Noise, which takes long to decode, in eight parquet files."""
    import io

    import datasets
    import numpy as np
    from PIL import Image

    folder.mkdir()
    generator = np.random.default_rng(0)
    for shard in range(8):
        rows = []
        for _ in range(count // 8):
            file = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (128, 128, 3), dtype=np.uint8)).save(file, "PNG")
            rows.append({"bytes": file.getvalue(), "path": None})
        table = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
        table.to_parquet(folder / f"train-{shard:05}-of-00008.parquet", batch_size=50)


def launch(count: int, folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """What each of `count` processes measured."""
    own = folder / f"of-{count}"
    own.mkdir()
    processes = [
        mp.get_context("spawn").Process(target=measure, args=(rank, count, own, args)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [json.loads((own / f"{rank}.json").read_text()) for rank in range(count)]


def measure(rank: int, count: int, folder: Path, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    if count > 1:
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        os.environ |= {name: str(value) for name, value in variables.items()} | {"ACCELERATE_USE_CPU": "true"}
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=count)
    accelerator = launched_processes(cpu=True)
    found: dict[str, Any] = {"seconds": {}, "processor": {}, "n": {}}

    def timed(name: str, n: int, work: Callable[[], Any]) -> Any:
        accelerator.wait_for_everyone()
        start, used = time.perf_counter(), time.process_time()
        result = work()
        found["seconds"][name], found["processor"][name] = time.perf_counter() - start, time.process_time() - used
        found["n"][name] = n
        return result

    color = load_autoencoder(CHECKPOINTS / "cifar10-small")
    stream = stream_images(str(folder.parent / "stream"), resolution=32)
    options = {"accelerator": accelerator, "precision": "float32"}
    timed("encoding", args.stream_images, lambda: encode_images(color, stream, folder / "color", **options))

    stream = stream_images(str(folder.parent / "stream"), resolution=128, buffer_size=64)
    stream.share(rank, count)
    found["decoded"] = timed("reading a stream", args.stream_images, lambda: sum(1 for _ in stream))

    pipe = DiffusionBridgeVQPipeline.from_pretrained(CHECKPOINT)
    pipe.set_progress_bar_config(disable=True)
    draw = {"num_images": args.draw, "accelerator": accelerator, "num_inference_steps": 20, "batch_size": 32}
    timed("drawing", args.draw, lambda: draw_into_folder(pipe, folder / "drawn", **draw))

    train, test = (load_images("digits", **GRAY, split=split, in_memory=False) for split in ("train", "test"))
    real = RealImages("digits", train, test, args.evaluate, "none", "cpu", processes=Processes(accelerator))
    settings = EvaluationConfig(num_inference_steps=20, num_nll_images=args.evaluate // 2, num_nll_samples=1)
    outputs = ModelOutputs("bridge", pipe, real, SampleStore(folder / "figures.safetensors"), settings, 32)
    metrics = ("kl", "reconstruction", "nll", "bits")
    timed("evaluating", args.evaluate, lambda: run_metrics(metrics, outputs, folder))

    if count == 1:
        encode_images(load_autoencoder(CHECKPOINT), train, folder / "encoded", **options)
        found["train"] = time_steps(folder, args.train_steps)
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (folder / f"{rank}.json").write_text(json.dumps(found))
    if count > 1:
        dist.barrier()
        dist.destroy_process_group()


def time_steps(folder: Path, steps: int) -> dict[str, float]:
    """Milliseconds of a step of the digits' prior from either source, in turn: the medians."""
    sources = {kind: prior_on_latents(folder, kind) for kind in ("disk", "memory")}
    batches = {kind: trainer.batches() for kind, trainer in sources.items()}
    times: dict[str, list[float]] = {kind: [] for kind in sources}
    for step in range(steps):
        for kind, trainer in sources.items():
            start = time.perf_counter()
            trainer.step(next(batches[kind]), step)
            times[kind].append(1e3 * (time.perf_counter() - start))
    return {kind: sorted(own)[len(own) // 2] for kind, own in times.items()}


def prior_on_latents(folder: Path, kind: str) -> Trainer:
    limit = encoded_module.IN_MEMORY_BYTES
    encoded_module.IN_MEMORY_BYTES = 0 if kind == "disk" else limit
    try:
        config = PriorConfig.from_preset(
            "digits", init_from=CHECKPOINT, latents=folder / "encoded", output_dir=folder / kind, report_to="none"
        )
        images = open_images(config)
    finally:
        encoded_module.IN_MEMORY_BYTES = limit
    trainer = Trainer(config, make_accelerator(config), build_objective(config, images.num_classes), images)
    trainer.model.train()
    return trainer


if __name__ == "__main__":
    main()
