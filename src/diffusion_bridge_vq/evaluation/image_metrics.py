"""Metrics of images: reconstructions and samples against real images."""

import math
from typing import Any

import torch

from .class_accuracy import train_classifier
from .code_metrics import codebook_use
from .frechet import check_features, frechet_distance
from .image_quality import SSIM_WINDOW, psnr, ssim
from .improved_precision_recall import precision_recall
from .intervals import wilson_interval
from .measurement import Measurement, mean
from .memorization import novelty
from .model_outputs import ModelOutputs

_SHEET_IMAGES = 64
_SHEET_SAMPLES = 100  # next to their nearest training images
_ROUNDING_PSNR = 10 * math.log10(12 * 255**2)  # of rounding to 8 bits, in dB


def sample_distances(outputs: ModelOutputs, count: int) -> Measurement:
    """
    Samples against reconstructions (the paper's FID) and against real images, and precision and recall, which show
    memorization and dropped modes. A perfect prior isn't at 0 either: `frechet_floor` is what reconstructions of as
    many training images get, if those are others. The first samples are kept for a sheet as Figure 5.
    """
    real = outputs.real
    test = real.features(real.test)
    check_features(test, "reference")  # an unsuitable extractor must fail before samples are drawn
    samples, reconstructions = real.features(outputs.samples), real.features(outputs.reconstructions)
    near = precision_recall(samples, reconstructions)
    reference = {"reference": "reconstructions of test images"}
    figures = {
        "frechet": {"value": frechet_distance(samples, reconstructions), **reference},
        "frechet_real": {"value": frechet_distance(samples, test), "reference": "test images"},
        "precision": {"value": near.precision, **reference},
        "recall": {"value": near.recall, **reference},
    }
    if not torch.equal(real.train, real.test):
        train = real.features(outputs.decode(outputs.quantize(outputs.encode(real.train))))
        figures["frechet_floor"] = {
            "value": frechet_distance(train, reconstructions),
            "reference": "reconstructions of train against test images",
        }
    return Measurement(figures, {"samples": outputs.samples[:_SHEET_IMAGES]})


def reconstruction_distance(outputs: ModelOutputs, count: int) -> Measurement:
    """Frechet distance of reconstructions from the test images: what no prior can get below."""
    distance = frechet_distance(*map(outputs.real.features, (outputs.reconstructions, outputs.real.test)))
    return Measurement({"frechet_reconstruction": {"value": distance, "reference": "test images"}})


def reconstruction_quality(outputs: ModelOutputs, count: int) -> Measurement:
    """
    PSNR in dB and SSIM of reconstructions, and how the test images use the codebook. An image's PSNR is at most that
    of rounding to 8 bits, since a blank one can come back exactly. Images smaller than SSIM's window have no SSIM.
    """
    test = outputs.real.test
    pairs = [images.float() / 255 for images in (outputs.reconstructions, test)]
    figures = {"psnr": mean(psnr(*pairs).clamp(max=_ROUNDING_PSNR)) | {"reference": "test images"}}
    if min(test.shape[2:]) >= SSIM_WINDOW:
        figures["ssim"] = mean(ssim(*pairs)) | {"reference": "test images"}
    return Measurement(figures | codebook_use(outputs, outputs.test_codes))


def class_accuracy(outputs: ModelOutputs, count: int) -> Measurement:
    """
    The accuracy of a classifier of real images ([`train_classifier`]) on test images, on their reconstructions, and
    on samples, whose class is the one they were drawn for; and the last as a fraction of the first. Samples have a
    class with a guidance scale (1 for class-conditional draws without guidance), or of the images that they were drawn
    from.
    """
    real, sample_labels = outputs.real, outputs.sample_labels  # other classes are refused before all work
    images, labels, _ = real.training_set(outputs.config.num_train_images)
    names, test_labels = real.class_names, real.test_labels
    assert labels is not None and names is not None and test_labels is not None  # as the metric's needs say
    classifier = train_classifier(real.training_features(images), labels, len(names))

    def accuracy(images: torch.Tensor, truth: torch.Tensor) -> dict[str, Any]:
        right = classifier(real.features(images)) == truth
        by_class = {name: right[truth == number] for number, name in enumerate(names)}
        interval = wilson_interval(int(right.sum()), len(right))
        of_each = {name: hits.double().mean().item() for name, hits in by_class.items() if len(hits)}
        balanced = sum(of_each.values()) / len(of_each)
        return {"value": right.double().mean().item(), "interval": interval, "balanced": balanced, "by_class": of_each}

    figures = {
        "class_accuracy_test": accuracy(real.test, test_labels),
        "class_accuracy_reconstructions": accuracy(outputs.reconstructions, test_labels),
    }
    if sample_labels is not None:
        figures["class_accuracy"] = accuracy(outputs.samples, sample_labels)
        of_test = figures["class_accuracy"]["value"] / max(figures["class_accuracy_test"]["value"], 1 / count)
        figures["class_accuracy_ratio"] = {"value": of_test, "reference": "samples / test images"}
    return Measurement(figures)


def distance_to_training_images(outputs: ModelOutputs, count: int) -> Measurement:
    """
    Memorization ([`novelty`]), in features and in pixels: the fraction of samples that are nearer to a training image
    than the 5th percentile of test images, .05 without memorization. The same for reconstructions of test images,
    which nothing can have memorized: it shows what the blur of the decoder alone does. The first samples are kept
    with their nearest training images, for a sheet.
    """
    real = outputs.real
    train = real.training_set(outputs.config.num_train_images).images
    spaces = {"features": real.features, "pixels": lambda images: images.flatten(1).float()}
    train_rows = {"features": real.training_features(train), "pixels": spaces["pixels"](train)}
    figures, nearest = {}, []
    for space, rows in spaces.items():
        for suffix, images in (("", outputs.samples), ("_reconstructions", outputs.reconstructions)):
            found = novelty(rows(images), train_rows[space], rows(real.test))
            figures[f"near_train_{space}{suffix}"] = {
                "value": found.fraction,
                "threshold": found.threshold,
                "nearest_distance": found.distances.min().item(),
                "reference": "training images, against the 5th percentile of test images",
            }
            if not suffix:
                nearest.append(train[found.nearest[:_SHEET_SAMPLES]])
    sheet = torch.stack([outputs.samples[:_SHEET_SAMPLES], *nearest], dim=1)  # (n, 3, C, H, W)
    return Measurement(figures, {"nearest": sheet})
