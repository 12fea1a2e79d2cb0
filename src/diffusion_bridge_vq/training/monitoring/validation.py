"""Losses on images that the run isn't trained on."""

from collections.abc import Mapping
from copy import copy

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from ...data import ImageDataset, load_images
from ..config import RunConfig
from ..data import Images, find_classes, image_options, make_label_table, model_inputs, outlive_first_signal
from ..objectives import Objective


class Validation:
    """
    The objective's losses on a validation split, with averaged weights.

    Noise is drawn from the same seed each time, so that two values differ by the weights alone. Every process takes
    its share of the images.

    Args:
        images (`Dataset`): as `load_images` gives them.
        batch_size (`int`), num_workers (`int`): of each process.
        seed (`int`): of the noise.
        accelerator (`Accelerator`): of the run.
        label_table (`torch.Tensor`, *optional*): see `model_inputs`.
    """

    def __init__(
        self,
        images: Dataset,
        batch_size: int,
        num_workers: int,
        seed: int,
        accelerator: Accelerator,
        label_table: torch.Tensor | None = None,
    ):
        share = range(accelerator.process_index, len(images), accelerator.num_processes)  # type: ignore[arg-type]
        self.loader = DataLoader(
            Subset(images, share), batch_size=batch_size, num_workers=num_workers, worker_init_fn=outlive_first_signal
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
        own = torch.tensor(weights).double()
        sums = [*(own @ torch.stack(values).cpu().double()).tolist(), own.sum().item()]
        *totals, n = (sum(parts) for parts in zip(*gather_object([sums]), strict=True))
        return {f"validation/{name}": total / n for name, total in zip(names, totals, strict=True)}


def make_validation(config: RunConfig, accelerator: Accelerator, training: Images) -> Validation | None:
    """
    Of `config.validation_split`; None without one. Its classes are numbered as those of the `training` images.

    Raises:
        ValueError: a split with fewer images than processes, or, for a class-conditional prior, without labels or of
            classes that aren't in the training split; and as `load_images`.
    """
    if config.validation_split is None:
        return None
    images = load_images(config.dataset, split=config.validation_split, **image_options(config))
    if len(images) < accelerator.num_processes:
        raise ValueError(
            f"`validation_split` has {len(images)} images for {accelerator.num_processes} processes; give more."
        )
    words = find_classes(config, training)[1]
    if config.uses_classes and not config.uses_words:
        _number_alike(images, training, config)
    table = make_label_table(config, images, words)
    return Validation(images, config.batch_size, config.num_workers, config.seed, accelerator, table)


def _number_alike(images: ImageDataset, training: Images, config: RunConfig) -> None:
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
