"""What the processes of test_streams_on_processes.py do: they import it by name."""

import json
from pathlib import Path
from typing import Any

import process_work
from PIL import Image
from tiny_run import config

from diffusion_bridge_vq.data import decoding
from diffusion_bridge_vq.training import VQConfig, build_objective
from diffusion_bridge_vq.training.data import TrainingBatches, make_loader, open_images
from diffusion_bridge_vq.training.distributed.accelerate import make_accelerator


def read(dataset: Path | str, output: Path, skip: int) -> None:
    """
    Two epochs as a run reads them, the first without the first `skip` batches; the gray value of each image, batch by
    batch, and the number of images that this process decoded, into output/RANK.json.
    """
    run = config(
        VQConfig, output / "run", dataset=str(dataset), streaming=True, shuffle_buffer=8, batch_size=4, num_workers=0
    )
    accelerator = make_accelerator(run)
    decoded = []
    open_image = Image.open

    def count(*arguments: Any, **options: Any) -> Any:
        decoded.append(1)
        return open_image(*arguments, **options)

    images = open_images(run)
    loader: Any = make_loader(run, accelerator, build_objective(run), images).loader
    decoding.Image.open = count  # type: ignore[assignment]
    batches = TrainingBatches(accelerator.prepare(loader), accelerator, run, images.name)
    batches.batches_done = skip
    epochs = [[batch["images"][:, 0, 0, 0].tolist() for batch in batches.rest_of_epoch()] for _ in range(2)]
    rank, _ = process_work.place()
    (output / f"{rank}.json").write_text(json.dumps({"epochs": epochs, "decoded": len(decoded)}))
