"""The section "loading" of benchmark.py, which says what it measures."""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from diffusion_bridge_vq.data import ImageDataset, StreamedImages, load_images, stream_images
from diffusion_bridge_vq.data import images as images_module
from diffusion_bridge_vq.training import E2EConfig, build_objective
from diffusion_bridge_vq.training.trainer import Trainer


def compare_loading(
    preset: str, dataset: str, args: argparse.Namespace, accelerator: Accelerator
) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each kind of loading the times of one training step in ms, and the speed relative to the fixed batch's."""
    size = {} if args.batch_size is None else {"batch_size": args.batch_size}
    with tempfile.TemporaryDirectory() as folder:
        shards = dataset
        if dataset == "digits":
            shards = folder
            write_digits(Path(folder) / "train-00000-of-00001.parquet")
        for kind, workers in (("in memory", 0), ("on access", args.num_workers), ("streamed", args.num_workers)):
            config = E2EConfig.from_preset(preset, dataset=dataset, num_workers=workers, **size)
            options = {"resolution": config.resolution, "channels": config.channels}
            limit = images_module.IN_MEMORY_BYTES
            if kind == "on access":
                images_module.IN_MEMORY_BYTES = 0
            try:
                images: ImageDataset | StreamedImages = (
                    stream_images(shards, **options) if kind == "streamed" else load_images(dataset, **options)
                )
            finally:
                images_module.IN_MEMORY_BYTES = limit
            run = Trainer(config, accelerator, build_objective(config, images.num_classes), images)
            run.model.train()
            yield kind, time_loading(run, args.repeats, args.loading_steps, warm=2 * workers + 1)


def write_digits(file: Path) -> None:
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    from diffusion_bridge_vq.data.digits import read_digits

    records, labels, _ = read_digits("train")
    table = Dataset.from_dict({"image": records}, features=Features({"image": ImageFeature()}))
    table.to_parquet(file, batch_size=len(labels) // 8)


def time_loading(run: Trainer, repeats: int, in_a_row: int, warm: int) -> dict[str, Any]:
    batches = run.batches()
    fixed = {name: tensor.clone() for name, tensor in next(batches).items()}
    late = run.config.max_train_steps // 2  # all terms of the loss have joined
    wait = torch.accelerator.synchronize if run.accelerator.device.type != "cpu" else lambda: None

    def step(loaded: bool) -> None:
        run.step(next(batches) if loaded else fixed, late)
        run.lr_scheduler.step()
        run.ema.update_parameters(run.trained)

    times = np.empty((repeats, 2))
    for i in range(-1, repeats):  # the first is a rehearsal
        for which in (0, 1) if i % 2 else (1, 0):
            for _ in range(warm):
                step(which == 0)
            wait()
            started = time.perf_counter()
            for _ in range(in_a_row):
                step(which == 0)
            wait()
            if i >= 0:
                times[i, which] = (time.perf_counter() - started) / in_a_row * 1e3
    batches.close()  # type: ignore[attr-defined]
    speeds = times[:, 1] / times[:, 0]
    return {
        "loaded_ms": np.median(times[:, 0]).item(),
        "fixed_ms": np.median(times[:, 1]).item(),
        "speed": np.median(speeds).item(),
        "speed_quartiles": np.quantile(speeds, [0.25, 0.75]).tolist(),
        "workers": run.config.num_workers,
    }
