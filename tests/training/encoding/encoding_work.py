"""What processes of the tests of this folder do, which import it by name, and what the tests encode with."""

import os
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from tiny_run import config

from diffusion_bridge_vq.data import load_images, stream_images
from diffusion_bridge_vq.training import PriorConfig, encode_images, encoding, load_autoencoder, train
from diffusion_bridge_vq.training.objectives import PriorObjective


def encode(folder: Path, autoencoder: Path, dataset: str = "digits", streaming: bool = False, **options: Any) -> Any:
    """`encode_images` with the images of a data set; of the digits, those of the test split."""
    split = options.pop("split", "test" if dataset == "digits" else "train")
    own = {"resolution": 8, "channels": 1, "split": split}
    images = stream_images(dataset, **own) if streaming else load_images(dataset, **own, in_memory=False)
    options |= {"accelerator": Accelerator(cpu=True), "split": split}
    return encode_images(load_autoencoder(autoencoder), images, folder, **options)


def encode_until_killed(shards: int, *arguments: Any) -> None:
    """This process is killed while it writes the shard after as many."""
    write, written = encoding.write_shard, []

    def write_and_die(description, folder, part, batches):
        if len(written) < shards:
            written.append(part)
            return write(description, folder, part, batches)

        def dying():
            yield next(batches)
            os.kill(os.getpid(), signal.SIGKILL)

        return write(description, folder, part, dying())

    encoding.write_shard = write_and_die
    encode(*arguments)


def content(folder: Path) -> dict[str, bytes]:
    """Of all files but the lock's."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def train_and_record(settings: dict[str, Any], folder: Path) -> None:
    """A run of these settings; the latents and the condition of each image that a process is given, into `folder`."""
    given: list[tuple[torch.Tensor, torch.Tensor]] = []
    loss = PriorObjective.bridge_loss

    def record(self, latents, timesteps, noise, class_labels, condition=None):
        given.append((latents.cpu(), condition.cpu()))
        return loss(self, latents, timesteps, noise, class_labels, condition)

    with patch.object(PriorObjective, "bridge_loss", record):
        train(config(PriorConfig, **settings))
    latents, conditions = (torch.cat(parts) for parts in zip(*given, strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    rank = os.environ.get("RANK", "0")
    save_file({"latents": latents, "conditions": conditions.contiguous()}, folder / f"{rank}.safetensors")


def recorded(folder: Path) -> list[dict[str, torch.Tensor]]:
    """Of each process."""
    return [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
