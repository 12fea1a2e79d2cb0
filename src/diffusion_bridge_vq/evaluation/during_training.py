"""Evaluation at an interval of a run: what `train` calls with the components of a moment."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..data import load_images
from ..pipelines import DiffusionBridgeVQPipeline, PixelCNNVQPipeline
from .autoencoder_evaluator import RealImages
from .config import EvaluationConfig
from .evaluator import Evaluator
from .features import extract, load_extractor
from .results import RESULTS_FILE, read_results

if TYPE_CHECKING:
    from ..training import TrainedComponents
    from ..training.config import PriorRunConfig


def evaluation_of(config: "PriorRunConfig") -> "Callable[[TrainedComponents, int], dict[str, float]] | None":
    """
    What a run with `config.evaluate_every` passes to `train`: Frechet distances, precision, recall, KL map, PSNR and
    SSIM of `config.evaluate_images` samples and validation images, appended to output_dir/evaluation/results.json with
    the step. None if it isn't wanted.

    Raises:
        ValueError: fewer images than the Frechet distance needs, or an extractor that can't be had.
    """
    if not config.evaluate_every:
        return None
    real = _real_images(config)
    if os.environ.get("LOCAL_RANK", "0") == "0":  # one process downloads weights and looks at their features
        (one,) = extract(load_extractor(config.evaluate_extractor), real.test[:1])
        if config.evaluate_images <= len(one):
            raise ValueError(
                f"`evaluate_images` is {config.evaluate_images}, but the Frechet distance of {len(one)} features by "
                f"{config.evaluate_extractor} needs {len(one) + 1} at least."
            )

    def evaluate(trained: "TrainedComponents", step: int) -> dict[str, float]:
        real.device = trained.vqvae.device
        pipe: Any
        if trained.prior is not None:
            pipe = PixelCNNVQPipeline(trained.vqvae, trained.prior)
        else:
            pipe = DiffusionBridgeVQPipeline(trained.vqvae, trained.unet, trained.scheduler)
        folder = config.output_dir / "evaluation"
        folder.mkdir(parents=True, exist_ok=True)
        steps = min(config.num_inference_steps, len(trained.scheduler)) if trained.scheduler is not None else 1
        settings = EvaluationConfig(
            num_images=config.evaluate_images,
            num_inference_steps=steps,
            extractor=config.evaluate_extractor,
            seed=config.seed,
        )
        evaluator = Evaluator(config.kind, pipe, real, folder, settings, step=step)
        for metric in (evaluator.fid, evaluator.rfid, evaluator.kl, evaluator.reconstruction):
            metric()
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
        )
        for split in (config.split, config.validation_split)
    )
    return RealImages(train.name, train, validation, config.evaluate_images, config.evaluate_extractor, "cpu")
