"""The registry: which metrics an evaluation can run, and what each needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import code_metrics, image_metrics
from .measurement import Measurement
from .model_outputs import ModelOutputs


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
    "fid": Metric(
        image_metrics.sample_distances, frozenset({"samples"}), settings=lambda o: _extractor(o) | _sampling(o)
    ),
    "rfid": Metric(image_metrics.reconstruction_distance, settings=_extractor),
    "nll": Metric(
        code_metrics.masked_bits,
        frozenset({"masked_bits"}),
        count=_few_images,
        settings=lambda o: {"reference": "test images"} | o.prior.masked_facts(),
        parts=tuple({"mask": name} for name in code_metrics.MASKS),
    ),
    "bits": Metric(
        code_metrics.code_bits,
        frozenset({"code_bits"}),
        count=_few_images,
        settings=lambda o: {"reference": "test images"},
    ),
    "kl": Metric(
        code_metrics.code_histograms,
        frozenset({"samples"}),
        count=lambda o: min(code_metrics.KL_IMAGES, len(o.real.test)),
        settings=_sampling,
    ),
    "reconstruction": Metric(image_metrics.reconstruction_quality),
    "elbo": Metric(
        code_metrics.elbo,
        frozenset({"elbo"}),
        count=_few_images,
        settings=lambda o: {"reference": "test images", "timesteps_per_image": code_metrics.ELBO_TIMESTEPS},
    ),
    "class_accuracy": Metric(
        image_metrics.class_accuracy,
        frozenset({"labels"}),
        settings=lambda o: _extractor(o) | _training_images(o) | _sampling(o),
    ),
    "novelty": Metric(
        image_metrics.distance_to_training_images,
        frozenset({"samples"}),
        settings=lambda o: _extractor(o) | _training_images(o) | _sampling(o),
    ),
    "timing": Metric(
        code_metrics.sampling_time,
        frozenset({"samples"}),
        count=lambda o: code_metrics.TIMING_REPEATS,
        settings=lambda o: {"batch_size": code_metrics.TIMING_BATCH} | o.prior.drawing_facts,
        per_device=True,
    ),
}
