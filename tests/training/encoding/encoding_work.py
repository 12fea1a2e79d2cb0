"""What the processes of test_encoding.py do, which import it by name, and what its neighbours encode with."""

import os
import signal
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from diffusion_bridge_vq.data import load_images, stream_images
from diffusion_bridge_vq.training import encode_images, encoding, load_autoencoder


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
