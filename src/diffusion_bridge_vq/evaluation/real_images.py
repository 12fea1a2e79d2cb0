"""The real images that models are compared with."""

import os
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..data import ImageDataset
from .arguments import as_device, check_count, check_model
from .features import extract, load_extractor
from .fingerprints import fingerprint_tensors
from .processes import Processes

_EXTRACTOR_BATCH = 32
_STORED_PART = 1024


class Labeled(NamedTuple):
    """
    Images, uint8 (n, C, H, W), their classes, (n,) int64, and the images of a column of conditions, uint8; None where
    the data set has none.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    conditions: torch.Tensor | None


class RealImages:
    """
    Images of the train and test splits, taken evenly over each, and their features.

    Args:
        dataset (`str`): its name in the results; "cifar10" and "miniimagenet" have places in the paper's tables.
        train (`ImageDataset`): the training images, as `load_images` returns them.
        test (`ImageDataset`): the images to compare with.
        num_images (`int`): of each split, at least 1.
        extractor (`str`): see [`load_extractor`].
        device (`torch.device`): of extractor and models.
        features_dir (`Path`, *optional*): where the features of training images are stored.
        processes ([`Processes`], *optional*): that read images and compute features together; without it this process
            works alone.

    Attributes:
        class_names (`list[str]`, *optional*): of the train split; labels of both splits are numbers in this list.
        class_counts (`list[int]`, *optional*): training images of each class.
        test_conditions (`torch.Tensor`, *optional*): of the test images, uint8 (n, C, H, W), where `test` was loaded
            with a column of conditions.

    Raises:
        TypeError, ValueError: a split with fewer images, a test class that isn't in the train split, or an extractor
            that can't be loaded.
    """

    def __init__(
        self,
        dataset: str,
        train: ImageDataset,
        test: ImageDataset,
        num_images: int,
        extractor: str,
        device: torch.device | str,
        features_dir: Path | None = None,
        processes: Processes | None = None,
    ):
        for name, split in (("train", train), ("test", test)):
            check_model(name, split, ImageDataset)
        check_count("num_images", num_images)
        self.dataset, self.device, self.extractor_name = dataset, as_device(device), extractor
        for split in (train, test):
            if num_images > len(split):
                raise ValueError(f"{split.name} has {len(split)} images, fewer than {num_images}: lower `num_images`.")
        self._train_split, self._features_dir = train, features_dir
        self.processes = processes or Processes()
        self.train = _take(train, num_images, self.processes).images
        self.test, test_labels, self.test_conditions = _take(test, num_images, self.processes)
        self.class_names = train.class_names
        self.class_counts = _count(train)
        self.test_labels = _renumber(test_labels, test.class_names, train.class_names)
        self.fingerprint = fingerprint_tensors(self.train, self.test)
        self._features: dict[str, torch.Tensor] = {}

    @cached_property
    def extractor(self) -> Any:
        return load_extractor(self.extractor_name, self.device)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """
        Features (n, d) of uint8 images (n, C, H, W). They are remembered: metrics, and models with one autoencoder,
        share them.
        """
        key = fingerprint_tensors(images)
        if key not in self._features:
            self._features[key] = self.processes.rows(
                lambda rows: extract(self.extractor, images[rows], batch_size=_EXTRACTOR_BATCH), len(images)
            )
        return self._features[key]

    def training_set(self, count: int) -> Labeled:
        """`count` images of the train split, or all if there are fewer, evenly spaced."""
        return _take(self._train_split, count, self.processes)

    def training_features(self, images: torch.Tensor) -> torch.Tensor:
        """
        [`features`] of many images. Parts of 1,024 images are stored in `features_dir`, so that an evaluation that was
        stopped, or another one in the same folder, computes only what is missing.

        Raises:
            ValueError: a damaged file.
        """
        return torch.cat([self._stored_features(part) for part in images.split(_STORED_PART)])

    def _stored_features(self, images: torch.Tensor) -> torch.Tensor:
        if self._features_dir is None:
            return self.features(images)
        path = self._features_dir / f"{self.extractor_name}-{fingerprint_tensors(images)}.safetensors"
        found = self.processes.decide(lambda: _read_features(path, len(images)))
        if found is None:
            found = self.features(images)
            self.processes.decide(lambda: _write_features(path, found))
        return found


def _write_features(path: Path, features: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file({"features": features.contiguous()}, temporary)
    os.replace(temporary, path)


def _read_features(path: Path, count: int) -> torch.Tensor | None:
    """None if there is no such file."""
    if not path.is_file():
        return None
    try:
        features = load_file(path).get("features")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and it is computed again.") from error
    if features is None or features.ndim != 2 or len(features) != count:
        raise ValueError(f"{path} has no features of {count} images: remove it, and it is computed again.")
    return features


def evenly(items: torch.Tensor, count: int) -> torch.Tensor:
    """`count` of the rows, evenly spaced (all if there are fewer): of a set sorted by class, some of each."""
    return items[torch.linspace(0, len(items) - 1, min(count, len(items))).long()]


def _take(split: ImageDataset, count: int, processes: Processes) -> Labeled:
    """`count` images evenly from a data set, or all if there are fewer."""
    numbers = evenly(torch.arange(len(split)), count)
    batch = processes.share(lambda rows: split.__getitems__(numbers[rows].tolist()).tensors, len(numbers))
    return Labeled(batch["images"], batch.get("labels"), batch.get("conditions"))


def _count(split: ImageDataset) -> list[int] | None:
    if split.labels is None or split.class_names is None:
        return None
    return torch.bincount(split.labels, minlength=len(split.class_names)).tolist()


def _renumber(labels: torch.Tensor | None, names: list[str] | None, target: list[str] | None) -> torch.Tensor | None:
    """Labels of one split by the class names of another: each split numbers the classes that it has."""
    if labels is None or names is None or target is None:
        return None
    unknown = sorted(set(names) - set(target))
    if unknown:
        raise ValueError(
            f"The test split has classes that the train split lacks: {', '.join(unknown[:5])}. "
            "If nothing is measured by class, leave out `label_column`."
        )
    return torch.tensor([target.index(name) for name in names])[labels]
