"""From the settings of a run to its images, and to the batches that it trains on."""

import itertools
import signal
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from ..data import ImageDataset, StreamedImages, load_images, stream_images
from ..data.pixels import to_pixels
from .config import RunConfig
from .objectives import Objective

Batch = dict[str, torch.Tensor]


class EncodedImages(Dataset[Batch]):
    """
    Every image as a frozen autoencoder encodes it, in the device's memory, with the labels.

    Args:
        encode (`Callable`): images (B, C, H, W) in [-1, 1] on the device -> a tensor (B, ...).
        images (`Dataset`): what `load_images` gives, or a part of it.
        name (`str`): of the tensor in a batch.
        batch_size (`int`), num_workers (`int`): of the encoding.
        device (`torch.device`): where everything goes.
        mirrored (`bool`): have the mirror image of every image, too.
    """

    @torch.no_grad()
    def __init__(
        self,
        encode: Callable[[torch.Tensor], torch.Tensor],
        images: Dataset,
        name: str,
        batch_size: int,
        num_workers: int,
        device: torch.device,
        mirrored: bool,
    ):
        parts: dict[str, list[torch.Tensor]] = {name: [], "labels": []}
        loader = DataLoader(images, batch_size=batch_size, num_workers=num_workers)
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws a seed; the run's randomness stays as it was
            for flip in (False, True) if mirrored else (False,):
                for batch in tqdm(loader, desc="encoding", unit="batch"):
                    pixels = to_pixels(batch["images"].to(device))
                    parts[name].append(encode(pixels.flip(-1) if flip else pixels))
                    if "labels" in batch:
                        parts["labels"].append(batch["labels"].to(device))
        self.tensors = {name: torch.cat(tensors) for name, tensors in parts.items() if tensors}

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitems__(self, indices: list[int]) -> Batch:
        """A whole batch by one index operation each."""
        rows = torch.tensor(indices, device=next(iter(self.tensors.values())).device)
        return {name: tensor[rows] for name, tensor in self.tensors.items()}

    @staticmethod
    def collate(batch: Batch) -> Batch:
        return batch


def hold_out(images: Dataset, fraction: float, seed: int) -> tuple[Subset, Subset]:
    """
    Images to train on, and a fraction of them (at least one image, rounded) that is held out, drawn by `seed`.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()  # type: ignore[arg-type]
    count = max(1, round(fraction * len(order)))
    return Subset(images, sorted(order[count:])), Subset(images, sorted(order[:count]))


class Loaded(NamedTuple):
    """`loader`: of the training batches. `held_out`: of the batches that early stopping scores."""

    loader: DataLoader
    held_out: DataLoader | None = None


def open_images(config: RunConfig) -> ImageDataset | StreamedImages:
    """The images of `config.split`, in memory, on disk or streamed. Raises as `load_images` and `stream_images`."""
    if config.streaming:
        return stream_images(
            config.dataset,
            split=config.split,
            seed=config.seed,
            buffer_size=config.shuffle_buffer,
            **image_options(config),
        )
    return load_images(config.dataset, split=config.split, **image_options(config))


def make_loader(
    config: RunConfig, accelerator: Accelerator, objective: Objective, images: ImageDataset | StreamedImages
) -> Loaded:
    """
    Batches of images, or of what `objective` caches of them, which is encoded here.

    Raises:
        ValueError: fewer images than one batch of all processes.
    """
    workers: dict[str, Any] = {"num_workers": config.num_workers, "pin_memory": accelerator.device.type == "cuda"}
    workers["worker_init_fn"] = outlive_first_signal
    batch = config.batch_size * accelerator.num_processes
    too_few = f"{images.name} has {{}} images to train on, fewer than one batch of {batch}."
    if isinstance(images, StreamedImages):
        accelerator.print(f"a stream of {images.name}")
        first = len(images.head(batch))
        if first < batch:
            raise ValueError(too_few.format(first))
        return Loaded(DataLoader(images, batch_size=config.batch_size, drop_last=True, **workers))
    training: Dataset = images
    held_out: Dataset | None = None
    if objective.early_stopping is not None:
        training, held_out = hold_out(images, objective.early_stopping.holdout_fraction, config.seed)
    count = len(training)  # type: ignore[arg-type]
    accelerator.print(f"{count} images of {images.name} to train on")
    if count < batch:
        raise ValueError(too_few.format(count))
    if objective.cached_input is None or config.dry_run:  # a dry run encodes its batches one by one
        workers["collate_fn"] = ImageDataset.collate  # also of a Subset, which passes batches through
    else:
        name, encoding = objective.cached_input, (config.batch_size, config.num_workers, accelerator.device)
        if held_out is not None:
            held_out = EncodedImages(objective.encode, held_out, name, *encoding, mirrored=False)
        training = EncodedImages(objective.encode, training, name, *encoding, mirrored=config.random_flip)
        workers = {"collate_fn": EncodedImages.collate}
    return Loaded(
        DataLoader(training, batch_size=config.batch_size, shuffle=True, drop_last=True, **workers),
        None if held_out is None else DataLoader(held_out, batch_size=config.batch_size, **workers),
    )


def model_inputs(batch: Batch, device: torch.device | None = None) -> dict[str, torch.Tensor]:
    """Arguments of an objective: uint8 images become floats in [-1, 1]; what was encoded stays as it is."""
    batch = {name: tensor if device is None else tensor.to(device) for name, tensor in batch.items()}
    inputs = {"class_labels": batch.pop("labels")} if "labels" in batch else {}
    if "images" in batch:
        inputs["images"] = to_pixels(batch.pop("images"))
    return inputs | batch


class TrainingBatches:
    """
    The batches of a run, epoch by epoch, in an order that its seed fixes, and the position in them.

    Args:
        loader (`DataLoader`): as `accelerator.prepare` returns it.
        accelerator (`Accelerator`): of the run.
        config (`RunConfig`), name (`str`): of the run and its data, for messages.
    """

    def __init__(self, loader: Any, accelerator: Accelerator, config: RunConfig, name: str):
        self.loader, self.accelerator, self.config, self.name = loader, accelerator, config, name
        self.epoch = self.batches_done = 0
        self.main_process_reads = isinstance(loader, DataLoaderDispatcher)  # and sends the others their share

    def rest_of_epoch(self) -> Iterator[Batch]:
        """The batches of this epoch from the position on; then the position is the start of the next."""
        self.loader.set_epoch(self.epoch)
        loader = self.loader
        if self.batches_done:
            loader = self.accelerator.skip_first_batches(self.loader, self.batches_done)
        iterator = self._read(loader)
        while True:
            # loading leaves the run's randomness alone, so that a resumed epoch draws what the whole one did
            with torch.random.fork_rng(devices=[]):
                batch = next(iterator, None)
            if batch is None:
                break
            self.batches_done += 1
            yield batch
        self.epoch, self.batches_done = self.epoch + 1, 0

    def first(self, count: int) -> Iterator[Batch]:
        """The first batches, without moving the position."""
        return itertools.islice(self._read(self.loader), count)

    def _read(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """
        What is left of an epoch.

        Raises:
            ValueError: a whole one has no batch, since no worker of a stream reads enough images for it.
        """
        empty = not self.batches_done
        try:
            for batch in loader:
                empty = False
                yield batch
        except ValueError as error:
            if not (empty and "does not contain any data" in str(error)):  # Accelerate's words for it
                raise
            raise ValueError(
                f"{self.name} has no batch of {self.config.batch_size} images for each process: none of "
                f"its {self.config.num_workers} workers reads that many. Take fewer `num_workers` or "
                "a smaller `batch_size`."
            ) from error


def outlive_first_signal(_: int) -> None:
    """
    For workers of a DataLoader. Signals often go to all of a process group: the run needs batches until its step is
    done. The second one, or the main process that is done with them, ends them as ever.
    """

    def note(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)


def preview_images(images: ImageDataset | StreamedImages, count: int) -> torch.Tensor:
    """`count` images, fewer of a small set, uint8 (n, C, H, W): from all over the data set, the first of a stream."""
    if isinstance(images, StreamedImages):
        return torch.stack([item["images"] for item in images.head(count)])
    indices = torch.linspace(0, len(images) - 1, min(count, len(images)), dtype=torch.float64).long().tolist()
    return torch.stack([images[i]["images"] for i in indices])


def image_options(config: RunConfig) -> dict[str, Any]:
    """What `load_images` and `stream_images` need to know of the run."""
    return {
        "resolution": config.resolution,
        "channels": config.channels,
        "image_column": config.image_column,
        "label_column": config.label_column,
    }
