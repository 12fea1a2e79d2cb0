"""From the settings of a run to its images, and to what its loop iterates over."""

from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from ..data import ImageDataset, StreamedImages, load_images, stream_images
from ..models import GumbelVQModel
from .config import PixelCNNConfig, PriorConfig, PriorRunConfig, RunConfig
from .early_stopping import hold_out
from .encoded import EncodedImages
from .stopping import outlive_first_signal
from .validation import Validation


class Loaded(NamedTuple):
    """`loader`: of the training batches. `held_out`: codes of the images that a PixelCNN's early stopping looks at."""

    loader: DataLoader
    held_out: EncodedImages | None = None


def open_images(config: RunConfig) -> ImageDataset | StreamedImages:
    """The images of `config.split`, in memory, on disk or streamed. Raises as `load_images` and `stream_images`."""
    if config.streaming:
        return stream_images(
            config.dataset, split=config.split, seed=config.seed, buffer_size=config.shuffle_buffer, **_options(config)
        )
    return load_images(config.dataset, split=config.split, **_options(config))


def make_loader(
    config: RunConfig, accelerator: Accelerator, vqvae: GumbelVQModel, images: ImageDataset | StreamedImages
) -> Loaded:
    """
    Batches of images, or of their latents or codes, which are made here.

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
    encoding = (config.batch_size, config.num_workers, accelerator.device)
    held_out = None
    if isinstance(config, PixelCNNConfig):
        training, judged = hold_out(images, config.holdout_fraction, config.seed)
        if not config.dry_run:
            held_out = EncodedImages(vqvae, judged, "codes", *encoding, mirrored=False)
    count = len(training)  # type: ignore[arg-type]
    accelerator.print(f"{count} images of {images.name} to train on")
    if count < batch:
        raise ValueError(too_few.format(count))
    cached: Literal["codes", "latents"] | None = "codes" if isinstance(config, PixelCNNConfig) else None
    if isinstance(config, PriorConfig) and config.cache_latents:
        cached = "latents"
    if cached and not config.dry_run:  # whose batches the objective encodes
        training = EncodedImages(vqvae, training, cached, *encoding, mirrored=config.random_flip)
    if isinstance(training, EncodedImages):
        workers = {"collate_fn": EncodedImages.collate}
    else:
        workers["collate_fn"] = ImageDataset.collate  # also of a Subset, which passes batches through
    loader = DataLoader(training, batch_size=config.batch_size, shuffle=True, drop_last=True, **workers)
    return Loaded(loader, held_out)


def make_validation(
    config: RunConfig, accelerator: Accelerator, training: ImageDataset | StreamedImages
) -> Validation | None:
    """
    Of `config.validation_split`; None without one. Its classes are numbered as those of the `training` images.

    Raises:
        ValueError: a split with fewer images than processes, or, for a class-conditional prior, without labels or of
            classes that aren't in the training split; and as `load_images`.
    """
    if config.validation_split is None:
        return None
    images = load_images(config.dataset, split=config.validation_split, **_options(config))
    if len(images) < accelerator.num_processes:
        raise ValueError(
            f"`validation_split` has {len(images)} images for {accelerator.num_processes} processes; give more."
        )
    if isinstance(config, PriorRunConfig) and config.class_conditional:
        _number_alike(images, training, config)
    return Validation(images, config.batch_size, config.num_workers, config.seed, accelerator)


def _number_alike(images: ImageDataset, training: ImageDataset | StreamedImages, config: PriorRunConfig) -> None:
    """Number the classes of `images` by their names in `training`: each split counts its own."""
    instead = "Give another `validation_split`, or drop `class_conditional`."
    if images.labels is None or images.class_names is None:
        raise ValueError(
            f"The split {config.validation_split!r} has no labels for a class-conditional prior. {instead}"
        )
    known = {name: number for number, name in enumerate(training.class_names or ())}
    numbers = torch.tensor([known.get(name, -1) for name in images.class_names])
    labels = numbers[images.labels]
    if (labels < 0).any():
        unknown = [images.class_names[number] for number in images.labels[labels < 0].unique().tolist()]
        raise ValueError(
            f"{len(unknown)} classes of the split {config.validation_split!r} are unknown to the prior: "
            f"{', '.join(unknown[:10])}. Expected those of {config.split!r}, {', '.join(list(known)[:10])}. {instead}"
        )
    images.labels, images.class_names = labels, training.class_names


def preview_images(images: ImageDataset | StreamedImages, count: int) -> torch.Tensor:
    """`count` images, fewer of a small set, uint8 (n, C, H, W): from all over the data set, the first of a stream."""
    if isinstance(images, StreamedImages):
        return torch.stack([item["images"] for item in images.head(count)])
    indices = torch.linspace(0, len(images) - 1, min(count, len(images)), dtype=torch.float64).long().tolist()
    return torch.stack([images[i]["images"] for i in indices])


def _options(config: RunConfig) -> dict[str, Any]:
    return {
        "resolution": config.resolution,
        "channels": config.channels,
        "image_column": config.image_column,
        "label_column": config.label_column,
    }
