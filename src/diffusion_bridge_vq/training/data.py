"""From the settings of a run to its images, and to the batches that it trains on."""

import itertools
import json
import signal
from collections.abc import Iterable, Iterator, Sequence, Sized
from types import FrameType
from typing import Any, NamedTuple, TypeAlias

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher, prepare_data_loader
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Subset

from ..data import ImageDataset, StreamedImages, load_images, stream_images
from ..data.encoded import EncodedImages, find_encoded
from ..data.pixels import to_pixels
from ..models import choose_examples, find_vocabulary, words_to_labels
from ..models.weight_files import MAX_JSON_BYTES
from .agreement import on_main_process
from .cached_inputs import check_encoding, encode_for_run
from .config import RunConfig
from .objectives import Objective

Batch = dict[str, torch.Tensor]
_OTHER_SETTINGS = 2**14  # bytes of model_index.json

Images: TypeAlias = ImageDataset | StreamedImages | EncodedImages


def hold_out(total: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """
    Numbers of the images to train on, and of a fraction (at least one image, rounded) that is held out, drawn by
    `seed`.
    """
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()
    count = max(1, round(fraction * total))
    return sorted(order[count:]), sorted(order[:count])


class Loaded(NamedTuple):
    """`loader`: of the training batches. `held_out`: of the batches that early stopping scores."""

    loader: DataLoader
    held_out: DataLoader | None = None


def open_images(config: RunConfig) -> Images:
    """
    The images of `config.split`, in memory, on disk or streamed, or as they are encoded in `config.encoded_data`.
    Raises as `load_images`, `stream_images` and `EncodedImages`.
    """
    if config.encoded_data is not None:
        return EncodedImages(find_encoded(config.encoded_data), with_condition=config.image_condition is not None)
    if config.streaming:
        return stream_images(
            config.dataset,
            split=config.split,
            seed=config.seed,
            buffer_size=config.shuffle_buffer,
            **image_options(config),
        )
    return load_images(config.dataset, split=config.split, **image_options(config))


def make_loader(config: RunConfig, accelerator: Accelerator, objective: Objective, images: Images) -> Loaded:
    """
    Batches of images, or of what `objective` caches of them, which is encoded here if it isn't yet.

    Raises:
        ValueError: fewer images than one batch of all processes; images encoded for another run.
    """
    workers: dict[str, Any] = {"num_workers": config.num_workers, "pin_memory": accelerator.device.type == "cuda"}
    workers["worker_init_fn"] = outlive_first_signal
    batch = config.batch_size * accelerator.num_processes
    too_few = (
        f"{images.name} has {{}} images to train on, fewer than one batch of {batch}. Take a smaller `batch_size`."
    )
    cached = objective.cached_input is not None
    if isinstance(images, StreamedImages) and cached and not config.dry_run:
        images = encode_for_run(config, accelerator, objective, images)
    if isinstance(images, StreamedImages):
        first = len(images.head(batch))
        if first < batch:
            raise ValueError(too_few.format(first))
        shared = _share_stream(images, accelerator, config)
        loader = DataLoader(images, batch_size=config.batch_size, drop_last=True, **workers)
        return Loaded(_keep_whole(loader, accelerator) if shared else loader)
    total = images.num_images if isinstance(images, EncodedImages) else len(images)
    training: Sequence[int] = range(total)
    held_out: Sequence[int] | None = None
    if objective.early_stopping is not None:
        training, held_out = hold_out(total, objective.early_stopping.holdout_fraction, config.seed)
    if len(training) < batch:
        raise ValueError(too_few.format(len(training)))
    if config.balance_classes:  # before anything is encoded: without labels it is refused
        training = _balanced(training, images)
    if isinstance(images, EncodedImages):
        check_encoding(images, config, objective)
    elif cached and not config.dry_run:  # a dry run encodes its batches one by one
        images = encode_for_run(config, accelerator, objective, images)
    if isinstance(images, EncodedImages):
        training = images.rows_of(training, mirrored=config.random_flip)
        if images.in_memory:
            workers["num_workers"] = 0  # passing batches on would take longer than reading them
    workers["collate_fn"] = images.collate  # of a Subset, too, which passes batches through
    return Loaded(
        DataLoader(Subset(images, training), batch_size=config.batch_size, shuffle=True, drop_last=True, **workers),
        None if held_out is None else DataLoader(Subset(images, held_out), batch_size=config.batch_size, **workers),
    )


def _balanced(training: Sequence[int], images: ImageDataset | EncodedImages) -> list[int]:
    """
    Row numbers in which those of rarer classes are repeated a whole number of times, the same for all images of a
    class. A class has between two thirds and four thirds of the rows of the largest.
    """
    encoded = isinstance(images, EncodedImages)
    labels = images.image_labels if isinstance(images, EncodedImages) else images.labels
    if labels is None:
        instead = "encode them with `label_column`" if encoded else "give `label_column`"
        raise ValueError(f"{images.name} has no classes to balance: {instead}, or drop `balance_classes`.")
    rows = torch.as_tensor(training)
    _, own, counts = labels[rows].unique(return_inverse=True, return_counts=True)
    times = (counts.max() / counts).round().long()
    return rows.repeat_interleave(times[own]).tolist()


def _share_stream(images: StreamedImages, accelerator: Accelerator, config: RunConfig) -> bool:
    """Whether each of several processes reads its own share from now on; says what makes that slow, or prevents it."""
    count = accelerator.num_processes
    if count == 1:
        return False
    if images.counts_on_the_hub:
        accelerator.print(
            f"counting   the images in the tar files of {images.name}: each is read once, and never again"
        )
    parts = images.share(accelerator.process_index, count, lambda found: gather_object([found]))
    readers = count * max(1, config.num_workers)
    if not parts:
        accelerator.print(
            f"Process 0 reads and decodes {images.name} for all processes: image files don't say how many images they "
            "hold. From parquet files and tar shards each process reads its own share."
        )
    elif parts < readers:
        accelerator.print(
            f"{images.name} has {parts} files or row groups for {readers} readers ({count} processes, "
            f"{config.num_workers} workers each): several read through the same ones, and each image is decoded once. "
            f"Write at least {readers} files of about the same size, or take fewer `num_workers`."
        )
    return parts > 0


def _keep_whole(loader: DataLoader, accelerator: Accelerator) -> DataLoader:
    """The loader as Accelerate prepares it, which would divide among processes what is divided already."""
    options = {"num_processes": 1, "process_index": 0, "put_on_device": True, "dispatch_batches": False}
    prepared: Any = prepare_data_loader(loader, accelerator.device, non_blocking=True, **options)
    prepared._is_accelerate_prepared = True
    return prepared


def find_classes(config: RunConfig, images: Images) -> tuple[int | None, list[str] | None]:
    """Number and names of the classes that a run on these images learns: with `uses_words` the words of the labels."""
    if not config.uses_words:
        return images.num_classes, images.class_names
    if isinstance(images, EncodedImages) and images.words is not None:
        return len(images.words), images.words
    words = find_vocabulary(label_texts(images))
    return len(words) or None, words or None


def find_label_examples(config: RunConfig, images: Images) -> list[str] | None:
    """With `uses_words`, a few labels of these images, as they are written there, that show what a model can draw."""
    return choose_examples(label_texts(images)) or None if config.uses_words else None


def check_class_names(names: Sequence[str] | None) -> None:
    """
    Raises:
        ValueError: the pipeline in the end would be refused, for names that take more than its file may.
    """
    size = len(json.dumps({"id2label": dict(enumerate(names or ()))}, indent=2))
    if size > MAX_JSON_BYTES - _OTHER_SETTINGS:
        raise ValueError(
            f"The names of the {len(names or ()):,} classes take {size:,} bytes of model_index.json, which has at "
            f"most {MAX_JSON_BYTES:,}: name a `label_column` with fewer or shorter ones."
        )


def label_texts(images: Images) -> list[str]:
    """The names of the labels that these images have."""
    names = images.class_names or []
    if isinstance(images, ImageDataset) and images.labels is not None:  # a folder's names are those of all its splits
        return [names[number] for number in images.labels.unique().tolist()]
    return names


def make_label_table(config: RunConfig, images: Images, words: Sequence[str] | None) -> torch.Tensor | None:
    """With `uses_words`, the vector of each label of the images, (labels, K + 1); words outside are left out."""
    if not config.uses_words or words is None:
        return None
    return words_to_labels(images.class_names or (), words, skip_unknown=True)


def model_inputs(
    batch: Batch, device: torch.device | None = None, label_table: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """
    Arguments of an objective: uint8 images and conditions become floats in [-1, 1]; what was encoded stays as it is.
    Labels become rows of `label_table` if there is one.
    """
    batch = {name: tensor if device is None else tensor.to(device) for name, tensor in batch.items()}
    inputs = {"class_labels": batch.pop("labels")} if "labels" in batch else {}
    if label_table is not None and inputs:
        inputs["class_labels"] = label_table.to(inputs["class_labels"].device)[inputs["class_labels"]]
    if "images" in batch:
        inputs["images"] = to_pixels(batch.pop("images"))
    if "conditions" in batch:
        inputs["condition"] = to_pixels(batch.pop("conditions"))
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
        self._at_once, size = accelerator.num_processes * config.batch_size, self.count_images()
        #: images that all processes train on in an epoch; None for a stream
        self.epoch_images = None if size is None else size // self._at_once * self._at_once

    def rest_of_epoch(self) -> Iterator[Batch]:
        """The batches of this epoch from the position on; then the position is the start of the next."""
        self.loader.set_epoch(self.epoch)
        loader = self.loader
        if self.batches_done:
            loader = self.accelerator.skip_first_batches(self.loader, self.batches_done)
        iterator = self._read(loader)
        last = self._last_batch()
        while self.batches_done != last:
            # loading leaves the run's randomness alone, so that a resumed epoch draws what the whole one did
            with torch.random.fork_rng(devices=[]):
                batch = next(iterator, None)
            if batch is None:
                break
            self.batches_done += 1
            yield batch
        if last is not None:
            loader.end()  # Accelerate's, which it calls itself at the end of all batches
        self.epoch, self.batches_done = self.epoch + 1, 0

    def count_images(self) -> int | None:
        """All that there are to train on; None for a stream."""
        dataset = getattr(self.loader, "dataset", None)
        return len(dataset) if isinstance(dataset, Sized) else None

    def _last_batch(self) -> int | None:
        """The last batch of an epoch, if it isn't the loader's: the run began on processes that had fewer."""
        size = self.count_images()
        if size is None or self.epoch_images is None or size - self.epoch_images < self._at_once:
            return None
        return self.epoch_images // self._at_once

    def first(self, count: int) -> Iterator[Batch]:
        """The first batches, without moving the position."""
        return itertools.islice(self._read(self.loader), count)

    def _read(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """
        What is left of an epoch.

        Raises:
            ValueError: a whole one has no batch, since no worker of a stream reads enough images for it.
            Exception: what this process met, or the main one if it reads for all.
        """
        if isinstance(loader, DataLoaderDispatcher):  # the main process reads, and sends the others their share
            loader.base_dataloader = _EndingAtErrors(loader.base_dataloader)
        empty = not self.batches_done
        try:
            for batch in loader:
                empty = False
                yield batch
        except ValueError as error:
            if not (empty and "does not contain any data" in str(error)):  # Accelerate's words for it
                raise
            self._raise_failure(loader)
            raise ValueError(
                f"{self.name} has no batch of {self.config.batch_size} images for each process: none of "
                f"its {self.config.num_workers} workers reads that many. Take fewer `num_workers` or "
                "a smaller `batch_size`."
            ) from error
        self._raise_failure(loader)

    def _raise_failure(self, loader: Any) -> None:
        """On all processes, what ended the reading of the main one."""
        if isinstance(loader, DataLoaderDispatcher):
            on_main_process(self.accelerator, loader.base_dataloader.raise_failure)


class _EndingAtErrors:
    """
    A loader that ends where it fails, and keeps the error: the other processes wait for the main one's next batch, or
    for word that it was the last.
    """

    def __init__(self, loader: Any):
        self.loader: Any = loader.loader if isinstance(loader, _EndingAtErrors) else loader
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[Any]:
        return self._until_failure(iter(self.loader))

    def _until_failure(self, batches: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from batches
        except Exception as error:
            self.failure = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure


def outlive_first_signal(_: int) -> None:
    """
    For workers of a DataLoader. Signals often go to all of a process group: the run needs batches until its step is
    done. The second one, or the main process that is done with them, ends them as usual.
    """

    def note(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)


def preview_items(images: Images, count: int) -> Batch | None:
    """
    `count` images with what comes with them, fewer of a small set: from all over the data set, the first of a stream.
    None where only encoded ones are there.
    """
    if isinstance(images, EncodedImages):
        return None
    if isinstance(images, StreamedImages):
        items = list(images.head(count))
    else:
        indices = torch.linspace(0, len(images) - 1, min(count, len(images)), dtype=torch.float64).long().tolist()
        items = [images[i] for i in indices]
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def preview_images(images: Images, count: int) -> torch.Tensor | None:
    """The images of [`preview_items`], uint8 (n, C, H, W)."""
    items = preview_items(images, count)
    return None if items is None else items["images"]


def image_options(config: RunConfig) -> dict[str, Any]:
    """What `load_images` and `stream_images` need to know of the run."""
    return {
        "resolution": config.resolution,
        "channels": config.channels,
        "image_column": config.image_column,
        "label_column": config.label_column,
        **({} if config.condition_column is None else {"condition_column": config.condition_column}),
    }
