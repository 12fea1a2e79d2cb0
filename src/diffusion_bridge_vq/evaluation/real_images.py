"""The real images that models are compared with."""

from functools import cached_property
from typing import Any

import torch
from torch.utils.data import Dataset

from .arguments import as_device, check_count
from .features import extract, load_extractor
from .fingerprints import fingerprint_tensors

_EXTRACTOR_BATCH = 32


class RealImages:
    """
    Images of the train and test splits, taken evenly over each, and their features.

    Args:
        dataset (`str`): its name in the results; "cifar10" and "miniimagenet" have places in the paper's tables.
        train, test (`Dataset`): as `load_images` returns them.
        num_images (`int`): of each split, at least 1.
        extractor (`str`): see [`load_extractor`].
        device (`torch.device`): of extractor and models.

    Raises:
        ValueError: a split with fewer images, or an extractor that can't be loaded.
    """

    def __init__(
        self, dataset: str, train: Dataset, test: Dataset, num_images: int, extractor: str, device: torch.device | str
    ):
        check_count("num_images", num_images)
        self.dataset, self.device, self.extractor_name = dataset, as_device(device), extractor
        self.train, self.test = (_take(split, num_images) for split in (train, test))  # uint8 (n, C, H, W)
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
            self._features[key] = extract(self.extractor, images, batch_size=_EXTRACTOR_BATCH)
        return self._features[key]


def evenly(items: torch.Tensor, count: int) -> torch.Tensor:
    """`count` of the rows, evenly spaced (all if there are fewer): of a set sorted by class, some of each."""
    return items[torch.linspace(0, len(items) - 1, min(count, len(items))).long()]


def _take(split: Any, count: int) -> torch.Tensor:
    """`count` images evenly from a data set, uint8 (count, C, H, W)."""
    if count > len(split):
        raise ValueError(f"{split.name} has {len(split)} images, but {count} are asked for: lower `num_images`.")
    indices = evenly(torch.arange(len(split)), count).tolist()
    return torch.stack([item["images"] for item in split.__getitems__(indices)])
