"""Evaluation at an interval of a run: what `train` calls with the components of a step."""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..data import load_images
from ..pipelines import build_pipeline
from ..run_folder import RunFolder
from .config import EvaluationConfig
from .features import extract, load_extractor
from .model_outputs import ModelOutputs
from .real_images import RealImages
from .results import RESULTS_FILE, read_results
from .runner import run_metrics
from .sample_store import STORE_FILE, SampleStore

if TYPE_CHECKING:
    from ..training.kinds import PriorRunConfig

_METRICS = ("fid", "rfid", "kl", "reconstruction")


def evaluation_of(config: "PriorRunConfig") -> Callable[[Mapping[str, Any], int], dict[str, float]] | None:
    """
    What a run with `config.evaluate_every` passes to `train`: a function of components by name and the step. It
    appends Frechet distances, precision, recall, KL map, PSNR and SSIM of `config.evaluate_images` samples and
    validation images to output_dir/evaluation/results.json, with the step, and returns them by name. None without
    `evaluate_every`, and for runs that don't have it. Only on the main process anything is read and measured.

    Raises:
        ValueError: fewer images than the Frechet distance needs, or an extractor that can't be loaded.
    """
    if not config.evaluation_interval:
        return None
    if os.environ.get("RANK", "0") != "0":
        return lambda components, step: {}  # the main process evaluates, and reads the images
    real = _real_images(config)
    (one,) = extract(load_extractor(config.evaluate_extractor), real.test[:1])
    if config.evaluate_images <= len(one):
        raise ValueError(
            f"`evaluate_images` is {config.evaluate_images}, but the Frechet distance of {len(one)} features by "
            f"{config.evaluate_extractor} needs {len(one) + 1} at least."
        )
    folder = RunFolder(config.output_dir).evaluation

    def evaluate(components: Mapping[str, Any], step: int) -> dict[str, float]:
        folder.mkdir(parents=True, exist_ok=True)
        real.device = components["vqvae"].device
        steps = min(config.num_inference_steps, len(components["scheduler"])) if "scheduler" in components else 1
        settings = EvaluationConfig(
            num_images=config.evaluate_images,
            num_inference_steps=steps,
            extractor=config.evaluate_extractor,
            seed=config.seed,
        )
        store = SampleStore(folder / STORE_FILE)
        own = {} if config.image_condition is None else {"condition": config.image_condition}
        pipe = build_pipeline(components, None, **own)
        outputs = ModelOutputs(config.kind, pipe, real, store, settings)
        run_metrics(_METRICS, outputs, folder, step=step)
        results = read_results(folder / RESULTS_FILE)
        return {r["name"]: r["value"] for r in results if r.get("step") == step}

    return evaluate


def _real_images(config: "PriorRunConfig") -> RealImages:
    assert config.validation_split is not None
    train, validation = (
        load_images(
            config.dataset,
            split=split,
            resolution=config.resolution,
            channels=config.channels,
            image_column=config.image_column,
            label_column=config.label_column,
            condition_column=config.condition_column,
            in_memory=False,  # `evaluate_images` of them are read
        )
        for split in (config.split, config.validation_split)
    )
    return RealImages(train.name, train, validation, config.evaluate_images, config.evaluate_extractor, "cpu")
