"""Figures of a row's samples, and the search for its sampling settings."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from diffusion_bridge_vq.evaluation import (
    extract,
    frechet_distance,
    load_extractor,
    novelty,
    precision_recall,
    train_classifier,
    wilson_interval,
)
from diffusion_bridge_vq.evaluation.fingerprints import fingerprint_tensors
from diffusion_bridge_vq.evaluation.real_images import evenly

from .data import Data
from .row import Row

_DRAWING_BATCH = 100
_SEARCH_SEED = 1000  # added to the row's, so that the settings aren't chosen by the samples that are measured
_LOSES_NOTHING = 1.02  # times the lowest distance, for the number of steps
_NEIGHBORS = 3
_CLASSIFIER_IMAGES = 10_000
_TIMED = {1: 5, 32: 2}  # batch size: repeats


class Figures:
    """
    Measures images of a data set.

    Args:
        data ([`Data`]): has the real images.
        features (`str`): "latents", those of the tokenizer of table A, or an extractor of the package.
        num_images (`int`): real images that samples are compared with, at most; evenly from the setting's split.
        store (`Path`): a folder for an extractor's features of real images and reconstructions: rows and starts of the
            command share them.

    Raises:
        ValueError: an extractor that can't be loaded; fewer images than a distance of its features needs.
    """

    def __init__(self, data: Data, features: str, num_images: int, store: Path):
        self.data, self.features, self.store = data, features, store
        self.extractor: Callable[[torch.Tensor], torch.Tensor] = (
            (lambda images: data.encode(images).flatten(1)) if features == "latents" else load_extractor(features)
        )
        split = data.train if data.setting.reference == "train" else data.test
        other = data.test if split is data.train else data.train
        self.reference, self.others = evenly(split.images, num_images), evenly(other.images, num_images)
        self.real = self.kept(self.reference)
        self.check_count("num_images", num_images)
        enough = len(self.others) > self.real.shape[1]
        self.floor = frechet_distance(self.kept(self.others), self.real) if enough else None
        self._facts: dict[str, Any] = {}

    def check_count(self, name: str, count: int) -> None:
        """
        Raises:
            ValueError: a Frechet distance of these features needs more images.
        """
        if count <= (dimensions := self.real.shape[1]):
            raise ValueError(
                f"{name} {count} is too few for a distance of {dimensions} features: give more than {dimensions}."
            )

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features (n, d)."""
        return extract(self.extractor, images)

    def kept(self, images: torch.Tensor) -> torch.Tensor:
        """Features that are stored, since images of the same pixels come again."""
        if self.features == "latents":
            return self(images)
        path = self.store / f"{self.features}-{fingerprint_tensors(images)}.safetensors"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".partial")
            save_file({"features": self(images).contiguous()}, temporary)
            os.replace(temporary, path)
        try:
            return load_file(path)["features"]
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{path} is damaged: remove it, and it is computed again.") from error

    def distance(self, images: torch.Tensor) -> float:
        """Frechet distance to the real images."""
        return frechet_distance(self(images), self.real)

    def of_samples(self, row: Row, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        """All figures of samples of these classes."""
        features = self(images)
        near = precision_recall(features, self.real, _NEIGHBORS)
        found: dict[str, Any] = {
            "frechet_real": frechet_distance(features, self.real),
            "precision": near.precision,
            "recall": near.recall,
        }
        reconstructions = row.reconstruct(self.reference)
        if reconstructions is not None:
            own = self.kept(reconstructions)
            found["frechet_own"] = frechet_distance(features, own)
            found["frechet_reconstruction"] = frechet_distance(own, self.real)
        found |= self._accuracy(features, labels)
        train, test = (self._classified(split) for split in ("train", "test"))
        found["near_train"] = novelty(features, train, test).fraction
        return found

    def _accuracy(self, features: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        if "classifier" not in self._facts:
            labels_of = {name: getattr(self.data, name).labels for name in ("train", "test")}
            train, test = (self._classified(name) for name in ("train", "test"))
            classifier = train_classifier(train, evenly(labels_of["train"], len(train)), self.data.num_classes)
            right = classifier(test) == evenly(labels_of["test"], len(test))
            self._facts |= {"classifier": classifier, "accuracy_test": right.double().mean().item()}
        right = self._facts["classifier"](features) == labels
        interval = wilson_interval(int(right.sum()), len(right))
        accuracy = {"accuracy": right.double().mean().item(), "accuracy_interval": interval}
        return accuracy | {"accuracy_test": self._facts["accuracy_test"]}

    def _classified(self, name: str) -> torch.Tensor:
        """Features of the images that the classifier, and the search for copies, know."""
        if name not in self._facts:
            self._facts[name] = self.kept(evenly(getattr(self.data, name).images, _CLASSIFIER_IMAGES))
        return self._facts[name]


def draw(row: Row, count: int, seed: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 (count, C, H, W) and their classes, all in turn; the global generator stays as it was."""
    labels = row.data.class_cycle(count)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        images = torch.cat([row.draw(part, **options) for part in labels.split(_DRAWING_BATCH)])
    return images, labels


def search_options(row: Row, figures: Figures, seed: int, count: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """
    Sampling settings of a row, and all that was tried: {option: value, ..., "frechet_real": value}. Options are
    searched one after the other, for the lowest distance to the real images; steps for the fewest within 2 % of it.
    With a `count` of 0 nothing is tried, and the first value of each is taken.
    """
    chosen = {name: values[0] for name, values in row.search.items()}
    tried: list[dict[str, Any]] = []
    if count == 0:
        return chosen, tried

    def distance(options: dict[str, Any]) -> float:
        known = [t["frechet_real"] for t in tried if all(t[name] == value for name, value in options.items())]
        if not known:
            images, _ = draw(row, count, seed + _SEARCH_SEED, **options)
            known = [figures.distance(images)]
            tried.append(options | {"frechet_real": known[0]})
        return known[0]

    for name, values in row.search.items():
        found = {value: distance(chosen | {name: value}) for value in values}
        lowest = min(found.values())
        good = [value for value in values if found[value] <= lowest * (_LOSES_NOTHING if name == "steps" else 1)]
        chosen[name] = min(good)
    return chosen, tried


def cpu_seconds(row: Row, **options: Any) -> dict[str, float]:
    """CPU seconds per image, decoding included, by batch size: the least of a few repeats, after one before."""
    found = {}
    for size, repeats in _TIMED.items():
        labels = row.data.class_cycle(size)
        seconds = []
        with torch.random.fork_rng():
            for _ in range(repeats + 1):
                started = time.process_time()
                row.draw(labels, **options)
                seconds.append(time.process_time() - started)
        found[f"seconds_batch_{size}"] = min(seconds[1:]) / size
    return found
