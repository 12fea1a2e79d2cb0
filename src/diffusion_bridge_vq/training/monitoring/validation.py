"""Losses on images that the run isn't trained on."""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, get_worker_info

from ...data import ImageDataset, StreamedImages, load_images, stream_images
from ..config import RunConfig
from ..data import Images, find_classes, image_options, make_label_table, model_inputs, outlive_first_signal
from ..objectives import Objective


class Validation:
    """
    The objective's losses on a validation split, with averaged weights.

    Noise is drawn from the same seed each time, so that two values differ by the weights alone. Every process takes
    its share of the images.

    Args:
        share (`Dataset`): images of this process; of a stream there may be none.
        batch_size (`int`), num_workers (`int`): of each process.
        seed (`int`): of the noise.
        accelerator (`Accelerator`): of the run.
        label_table (`torch.Tensor`, *optional*): see `model_inputs`.
    """

    def __init__(
        self,
        share: Dataset,
        batch_size: int,
        num_workers: int,
        seed: int,
        accelerator: Accelerator,
        label_table: torch.Tensor | None = None,
    ):
        self.loader = DataLoader(
            share, batch_size=batch_size, num_workers=num_workers, worker_init_fn=outlive_first_signal
        )
        self.seed, self.accelerator, self.label_table = seed, accelerator, label_table

    @torch.no_grad()
    def __call__(self, objective: Objective, averaged: Mapping[str, nn.Module]) -> dict[str, float]:
        """
        Means over all images: {"validation/TERM": value}.

        Args:
            objective (`Objective`): of the run; stays as it is.
            averaged (`Mapping[str, nn.Module]`): trained parts, used instead of its own.
        """
        validated = copy(objective)
        validated._modules = {**objective._modules, **averaged}
        validated.training = False  # not eval(), which would reach the run's own components
        device = self.accelerator.device
        names: list[str] = []
        values: list[torch.Tensor] = []  # of every batch; they stay on the device, so that nothing waits for it
        weights: list[int] = []
        with torch.random.fork_rng(), self.accelerator.autocast():
            torch.manual_seed(self.seed)
            for batch in self.loader:
                losses = validated(**model_inputs(batch, device, self.label_table)).losses
                names = list(losses)
                values.append(torch.stack([value.float() for value in losses.values()]))
                weights.append(len(batch["images"]))
        # float64 on the host, also across processes: MPS has none
        own, sums = torch.tensor(weights).double(), {}
        if values:
            sums = dict(zip(names, (own @ torch.stack(values).cpu().double()).tolist(), strict=True))
        parts = [(found, n) for found, n in gather_object([(sums, own.sum().item())]) if n]
        total = sum(n for _, n in parts)
        return {f"validation/{name}": sum(found[name] for found, _ in parts) / total for name in parts[0][0]}


class _StreamedShare(IterableDataset[dict[str, torch.Tensor]]):
    """
    Some parts of a stream, read anew each time.

    Args:
        images ([`StreamedImages`]): the stream, of `count` parts.
        parts (`Sequence[int]`): those of this process, of which workers take turns.
        numbers (`torch.Tensor`, *optional*): the number of each class among the run's.
    """

    def __init__(self, images: StreamedImages, parts: Sequence[int], count: int, numbers: torch.Tensor | None):
        self.images, self.parts, self.count, self.numbers = images, parts, count, numbers

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        for part in self.parts if worker is None else self.parts[worker.id :: worker.num_workers]:
            for _, item in self.images.read_part(part, self.count):
                if self.numbers is not None:
                    item["labels"] = self.numbers[item["labels"]]
                yield item


def make_validation(config: RunConfig, accelerator: Accelerator, training: Images) -> Validation | None:
    """
    Of `config.validation_split`; None without one. Its classes are numbered as those of the `training` images.

    Raises:
        ValueError: a loaded split with fewer images than processes, or, for a class-conditional prior, without labels
            or of classes that aren't in the training split; and as `load_images` and `stream_images`.
    """
    if config.validation_split is None:
        return None
    index, count = accelerator.process_index, accelerator.num_processes
    options: dict[str, Any] = {"split": config.validation_split, **image_options(config)}
    images: ImageDataset | StreamedImages
    words, numbers = find_classes(config, training)[1], None
    numbered = config.uses_classes and not config.uses_words
    share: Dataset
    if config.streaming:
        images = stream_images(config.dataset, **options)
        if numbered:
            numbers = _number_alike(images, training, config)
        parts = images.count_parts()
        share = _StreamedShare(images, range(index, parts, count), parts, numbers)
    else:
        images = load_images(config.dataset, **options)
        if len(images) < count:
            raise ValueError(f"`validation_split` has {len(images)} images for {count} processes; give more.")
        if numbered:
            numbers = _number_alike(images, training, config)
            assert images.labels is not None  # since it has classes
            images.labels, images.class_names = numbers[images.labels], training.class_names
        share = Subset(images, range(index, len(images), count))
    table = make_label_table(config, images, words)
    return Validation(share, config.batch_size, config.num_workers, config.seed, accelerator, table)


def _number_alike(images: ImageDataset | StreamedImages, training: Images, config: RunConfig) -> torch.Tensor:
    """The number of each class of `images` in `training`, by its name: each split counts its own."""
    instead = "Give another `validation_split`, or drop `class_conditional`."
    if not images.has_labels or images.class_names is None:
        raise ValueError(
            f"The split {config.validation_split!r} has no labels for a class-conditional prior. {instead}"
        )
    known = {name: number for number, name in enumerate(training.class_names or ())}
    numbers = torch.tensor([known.get(name, -1) for name in images.class_names])
    # a stream's labels aren't known before they are read
    labels = None if isinstance(images, StreamedImages) else images.labels
    there = torch.arange(len(numbers)) if labels is None else labels.unique()
    unknown = [images.class_names[number] for number in there[numbers[there] < 0].tolist()]
    if unknown:
        raise ValueError(
            f"{len(unknown)} classes of the split {config.validation_split!r} are unknown to the prior: "
            f"{', '.join(unknown[:10])}. Expected those of {config.split!r}, {', '.join(list(known)[:10])}. {instead}"
        )
    return numbers
