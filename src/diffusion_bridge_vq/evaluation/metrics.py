"""The metrics that an evaluation can run: what each measures of a model, and what it needs for that."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ..data.pixels import to_pixels
from .class_accuracy import train_classifier
from .code_histograms import code_kl, code_perplexity, code_usage
from .frechet import check_features, frechet_distance
from .image_quality import SSIM_WINDOW, psnr, ssim
from .improved_precision_recall import precision_recall
from .intervals import wilson_interval
from .memorisation import novelty
from .model_outputs import ModelOutputs
from .paper_masks import paper_mask
from .real_images import evenly
from .timing import seconds_per_sample

_KL_IMAGES = 1000  # the paper's M
_ELBO_TIMESTEPS = 32  # per image
_TIMING_BATCH, _TIMING_REPEATS = 32, 10  # the paper's batch
_SHEET_IMAGES = 64
_SHEET_SAMPLES = 100  # next to their nearest training images
_ROUNDING_PSNR = 10 * math.log10(12 * 255**2)  # of rounding to 8 bits, in dB
_MASKS = {"center": "", "top-left": "_top_left"}  # and what their figures' names end with

Figures = dict[str, dict[str, Any]]


class Measurement(NamedTuple):
    """
    What a metric returns: {name: {"value": number, ...}} for results.json, and {kind: tensor} for pictures, which go
    to the [`SampleStore`].
    """

    figures: Figures
    pictures: dict[str, torch.Tensor] | None = None


def sample_distances(outputs: ModelOutputs, count: int) -> Measurement:
    """
    Samples against reconstructions (the paper's FID) and against real images, and precision and recall, which show
    memorisation and dropped modes. A perfect prior isn't at 0 either: `frechet_floor` is what reconstructions of as
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


def masked_bits(outputs: ModelOutputs, count: int, mask: str) -> Measurement:
    """
    Bits per masked code ([`bridge_nll`], [`pixelcnn_nll`]): mean over images, with the standard deviation over them.
    A bridge also has the joint estimate from all draws of an image.
    """
    latents, codes = (evenly(rows, count) for rows in (outputs.test_latents, outputs.test_codes))
    hidden, generator = paper_mask(mask, *codes.shape[1:]).to(outputs.real.device), outputs.generator()
    batches = [
        outputs.prior.masked_bits(z, k, hidden, generator)
        for z, k in zip(outputs.batches(latents), outputs.batches(codes), strict=True)
    ]
    return Measurement({f"{name}{_MASKS[mask]}": mean(torch.cat([b[name] for b in batches])) for name in batches[0]})


def code_bits(outputs: ModelOutputs, count: int) -> Measurement:
    """
    Bits per code of whole maps, comparable between priors on one autoencoder: exact of a PixelCNN, a bound of a
    bridge ([`bridge_code_bits`]). Mean and standard deviation over images.
    """
    codes = evenly(outputs.test_codes, count).to(outputs.real.device)
    return Measurement({"code_bits": mean(outputs.prior.code_bits(codes, outputs.generator(), outputs.batch_size))})


def code_histograms(outputs: ModelOutputs, count: int) -> Measurement:
    """KL map of Figure 4 and its mean, next to its floor (train against test), and how samples use the codebook."""
    sampled, test = outputs.sampled_codes(count), evenly(outputs.test_codes, count)
    train = outputs.quantize(outputs.encode(evenly(outputs.real.train, count)))
    num_codes = outputs.vqvae.config.num_vq_embeddings
    maps = {"kl": code_kl(sampled, test, num_codes), "kl_floor": code_kl(train, test, num_codes)}
    figures = {
        "kl": {"value": maps["kl"].mean().item(), "reference": "test images"},
        "kl_floor": {"value": maps["kl_floor"].mean().item(), "reference": "train against test images"},
    }
    return Measurement(figures | codebook_use(outputs, sampled, "_samples"), maps)


def elbo(outputs: ModelOutputs, count: int) -> Measurement:
    """-ELBO in bits per dimension, with its terms ([`bridge_elbo`])."""
    pixels = to_pixels(evenly(outputs.real.test, count).to(outputs.real.device))
    bound = outputs.prior.elbo(pixels, outputs.generator(), _ELBO_TIMESTEPS, outputs.batch_size)
    return Measurement({f"elbo_{name}": {"value": value} for name, value in bound._asdict().items()})


def sampling_time(outputs: ModelOutputs, count: int) -> Measurement:
    """Seconds per sample at batch 32, decoding included: median, with the quartiles. Of this device."""
    found = seconds_per_sample(
        lambda: outputs.prior.draw_images(_TIMING_BATCH), _TIMING_BATCH, count, device=outputs.real.device
    )
    quartiles = [found.lower_quartile, found.upper_quartile]
    return Measurement({"seconds_per_sample": {"value": found.median, "quartiles": quartiles}})


def class_accuracy(outputs: ModelOutputs, count: int) -> Measurement:
    """
    The accuracy of a classifier of real images ([`train_classifier`]) on test images, on their reconstructions, and
    on samples, whose class is the one they were drawn for; and the last as a fraction of the first. Samples have a
    class with a guidance scale (1 for class-conditional draws without guidance).
    """
    real = outputs.real
    images, labels = real.training_set(outputs.config.num_train_images)
    names, test_labels = real.class_names, real.test_labels
    assert labels is not None and names is not None and test_labels is not None  # as the metric's needs say
    classifier = train_classifier(real.training_features(images), labels, len(names))

    def accuracy(images: torch.Tensor, truth: torch.Tensor) -> dict[str, Any]:
        right = classifier(real.features(images)) == truth
        by_class = {name: right[truth == number] for number, name in enumerate(names)}
        interval = wilson_interval(int(right.sum()), len(right))
        of_each = {name: hits.double().mean().item() for name, hits in by_class.items() if len(hits)}
        return {"value": right.double().mean().item(), "interval": interval, "by_class": of_each}

    figures = {
        "class_accuracy_test": accuracy(real.test, test_labels),
        "class_accuracy_reconstructions": accuracy(outputs.reconstructions, test_labels),
    }
    if outputs.sample_labels is not None:
        figures["class_accuracy"] = accuracy(outputs.samples, outputs.sample_labels)
        of_test = figures["class_accuracy"]["value"] / max(figures["class_accuracy_test"]["value"], 1 / count)
        figures["class_accuracy_ratio"] = {"value": of_test, "reference": "samples / test images"}
    return Measurement(figures)


def distance_to_training_images(outputs: ModelOutputs, count: int) -> Measurement:
    """
    Memorisation ([`novelty`]), in features and in pixels: the fraction of samples that are nearer to a training image
    than the 5th percentile of test images, .05 without memorisation. The same for reconstructions of test images,
    which nothing can have memorised: it shows what the blur of the decoder alone does. The first samples are kept
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


def mean(values: torch.Tensor) -> dict[str, float]:
    """A figure that is the mean over images, with its standard deviation if there are several."""
    return {"value": values.mean().item()} | ({"std": values.std().item()} if len(values) > 1 else {})


def codebook_use(outputs: ModelOutputs, codes: torch.Tensor, suffix: str = "") -> Figures:
    num_codes = outputs.vqvae.config.num_vq_embeddings
    return {
        f"usage{suffix}": {"value": code_usage(codes, num_codes)},
        f"perplexity{suffix}": {"value": code_perplexity(codes, num_codes)},
    }


# --------------------------------------------------------------------------------------------------------- registry


def _every_image(outputs: ModelOutputs) -> int:
    return len(outputs.real.test)


def _few_images(outputs: ModelOutputs) -> int:
    return min(outputs.config.num_nll_images, len(outputs.real.test))


def _no_settings(outputs: ModelOutputs) -> dict[str, Any]:
    return {}


def _extractor(outputs: ModelOutputs) -> dict[str, Any]:
    return {"extractor": outputs.real.extractor_name}


def _training_images(outputs: ModelOutputs) -> dict[str, Any]:
    return {"train_images": outputs.config.num_train_images}


def _sampling(outputs: ModelOutputs) -> dict[str, Any]:
    return outputs.sampling_facts


@dataclass(frozen=True)
class Metric:
    """
    A metric as [`run_metrics`] runs it.

    Args:
        measure (`Callable`): (outputs of a model, number of images, keywords of a part) -> [`Measurement`].
        needs (`frozenset[str]`): what the model must have: "samples", "masked_bits", "code_bits" or "elbo", see
            [`EvaluatedPrior`]; or "labels" of the real images. A metric without needs measures the autoencoder.
        count (`Callable`): the number of images, n in the results.
        settings (`Callable`): what its figures depend on besides model, images, n and seed; stored with them.
        parts (`tuple[dict]`): keyword arguments of `measure`, if it is called several times. Each part is stored by
            itself.
        per_device (`bool`): whether another device needs figures of its own.
    """

    measure: Callable[..., Measurement]
    needs: frozenset[str] = frozenset()
    count: Callable[[ModelOutputs], int] = _every_image
    settings: Callable[[ModelOutputs], dict[str, Any]] = _no_settings
    parts: tuple[dict[str, Any], ...] = ({},)
    per_device: bool = False


METRICS = {
    "fid": Metric(sample_distances, frozenset({"samples"}), settings=lambda o: _extractor(o) | _sampling(o)),
    "rfid": Metric(reconstruction_distance, settings=_extractor),
    "nll": Metric(
        masked_bits,
        frozenset({"masked_bits"}),
        count=_few_images,
        settings=lambda o: {"reference": "test images"} | o.prior.masked_facts(),
        parts=tuple({"mask": name} for name in _MASKS),
    ),
    "bits": Metric(
        code_bits, frozenset({"code_bits"}), count=_few_images, settings=lambda o: {"reference": "test images"}
    ),
    "kl": Metric(
        code_histograms,
        frozenset({"samples"}),
        count=lambda o: min(_KL_IMAGES, len(o.real.test)),
        settings=_sampling,
    ),
    "reconstruction": Metric(reconstruction_quality),
    "elbo": Metric(
        elbo,
        frozenset({"elbo"}),
        count=_few_images,
        settings=lambda o: {"reference": "test images", "timesteps_per_image": _ELBO_TIMESTEPS},
    ),
    "class_accuracy": Metric(
        class_accuracy, frozenset({"labels"}), settings=lambda o: _extractor(o) | _training_images(o) | _sampling(o)
    ),
    "novelty": Metric(
        distance_to_training_images,
        frozenset({"samples"}),
        settings=lambda o: _extractor(o) | _training_images(o) | _sampling(o),
    ),
    "timing": Metric(
        sampling_time,
        frozenset({"samples"}),
        count=lambda o: _TIMING_REPEATS,
        settings=lambda o: {"batch_size": _TIMING_BATCH} | o.prior.drawing_facts,
        per_device=True,
    ),
}
