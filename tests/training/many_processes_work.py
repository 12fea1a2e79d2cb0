"""What the processes of test_many_processes.py do: they import it by name."""

from pathlib import Path

import pytest
import torch
from tiny_models import make_conditioned_pipeline, make_gray_pipeline

from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.evaluation import (
    METRICS,
    EvaluationConfig,
    ModelOutputs,
    Processes,
    RealImages,
    SampleStore,
    code_metrics,
    real_images,
    run_metrics,
)
from diffusion_bridge_vq.sample_folder import draw_into_folder
from diffusion_bridge_vq.training import launched_processes

IMAGES = 10  # which neither two nor three processes divide into batches of equal size


def features(images: torch.Tensor) -> torch.Tensor:
    """Four features that need no network."""
    return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


def draw_and_evaluate(folder: Path, num_images: int = IMAGES) -> None:
    """
    `num_images` images into folder/samples, and all metrics of 20 into folder/results.json. Of a model that draws from
    images, as many into folder/drawn-from, and metrics into folder/conditioned/results.json.
    """
    accelerator = launched_processes(cpu=True)
    torch.manual_seed(0)
    pipe = make_gray_pipeline()
    pipe.set_progress_bar_config(disable=True)
    draw_into_folder(
        pipe, folder / "samples", num_images=num_images, accelerator=accelerator, batch_size=4, num_inference_steps=2
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TIMING_REPEATS", "TIMING_BATCH", "ELBO_TIMESTEPS"):
            patch.setattr(code_metrics, name, 1)
        patch.setattr(real_images, "load_extractor", lambda name, device: features)
        splits = (load_images("digits", resolution=16, channels=1, split=split) for split in ("train", "test"))
        real = RealImages("digits", *splits, 20, "quarters", "cpu", folder / "features", Processes(accelerator))
        config = EvaluationConfig(num_inference_steps=2, num_nll_images=7, num_nll_samples=2, num_train_images=50)
        outputs = ModelOutputs("bridge", pipe, real, SampleStore(folder / "figures.safetensors"), config, 6)
        run_metrics(METRICS, outputs, folder)
        pipe = make_conditioned_pipeline("low-resolution:4", 4)
        options = {"batch_size": 4, "num_inference_steps": 2, "conditions": list(torch.rand(3, 3, 4, 4))}
        draw_into_folder(pipe, folder / "drawn-from", num_images=num_images, accelerator=accelerator, **options)
        splits = (load_images("digits", resolution=8, split=split) for split in ("train", "test"))
        real = RealImages("digits", *splits, 20, "quarters", "cpu", processes=Processes(accelerator))
        (folder / "conditioned").mkdir(exist_ok=True)
        store = SampleStore(folder / "conditioned" / "figures.safetensors")
        outputs = ModelOutputs("bridge", pipe, real, store, config, 6)
        run_metrics(("fid", "nll", "bits", "elbo", "kl"), outputs, folder / "conditioned")
