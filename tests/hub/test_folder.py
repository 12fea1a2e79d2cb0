"""`from_pretrained` from a folder: what diffusers' own tests ask of a pipeline. The Hub is in test_hub_load.py."""

import json
import logging
import shutil

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from heard_logs import heard
from pipeline_files import INDEX, draw
from tiny_models import SKEWED, make_pipeline

from diffusion_bridge_vq import DiffusionBridgeVQPipeline


@pytest.mark.parametrize("classes", [None, 4])
def test_round_trip(tmp_path, classes):
    pipe = make_pipeline(classes=classes)
    pipe.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    index = json.loads((tmp_path / INDEX).read_text())
    assert {k: v for k, v in index.items() if not k.startswith("_")} == {
        "vqvae": ["diffusion_bridge_vq.models.autoencoder_gumbel_vq", "GumbelVQModel"],
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusion_bridge_vq.schedulers.scheduling_ou_bridge", "OUBridgeScheduler"],
    }
    loaded = DiffusionBridgeVQPipeline.from_pretrained(tmp_path)
    assert not loaded.vqvae.training and not loaded.unet.training
    assert {k: loaded.scheduler.config[k] for k in SKEWED} == SKEWED
    assert torch.equal(draw(loaded), draw(pipe))


def test_a_loaded_pipeline_with_a_stock_scheduler_is_saved_again(tmp_path, pipe):
    pipe.save_pretrained(tmp_path / "once")
    loaded = DiffusionBridgeVQPipeline.from_pretrained(tmp_path / "once")
    loaded.scheduler = loaded.scheduler.to_diffusers(DPMSolverMultistepScheduler)
    loaded.save_pretrained(tmp_path / "twice")
    again = DiffusionBridgeVQPipeline.from_pretrained(tmp_path / "twice")
    assert type(again.scheduler) is DPMSolverMultistepScheduler
    assert torch.equal(draw(again), draw(loaded))


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("safe", [True, False])
def test_own_folder(tmp_path, pipe, caplog, safe, variant):
    """In a folder of one's own pickled weights are read too, with torch's restricted reader."""
    pipe.save_pretrained(tmp_path, safe_serialization=safe, variant=variant)
    logger = logging.getLogger("diffusers.pipelines.pipeline_utils")
    with heard(caplog, logger), caplog.at_level(logging.INFO, logger.name):
        loaded = DiffusionBridgeVQPipeline.from_pretrained(str(tmp_path), variant=variant)
    assert all(f"Loaded {name} as" in caplog.text for name in ("vqvae", "unet", "scheduler"))
    assert torch.equal(draw(loaded), draw(pipe))
    with pytest.raises(ValueError, match="You are trying to load the model files of the `variant=bf16`"):
        DiffusionBridgeVQPipeline.from_pretrained(tmp_path, variant="bf16")


def test_options(tmp_path, pipe, caplog):
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionBridgeVQPipeline.from_pretrained(
        tmp_path, dtype={"vqvae": torch.bfloat16, "default": torch.float16}, device_map="cpu"
    )
    assert (loaded.vqvae.dtype, loaded.unet.dtype) == (torch.bfloat16, torch.float16)
    expected = pipe.unet.conv_in.weight.half()
    assert torch.equal(loaded.unet.conv_in.weight, expected) and not torch.equal(
        expected.float(), pipe.unet.conv_in.weight
    )
    with heard(caplog, logging.getLogger("diffusers.pipelines.pipeline_utils")):
        loaded = DiffusionBridgeVQPipeline.from_pretrained(tmp_path, scheduler=pipe.scheduler, safety_checker=None)
    assert "['safety_checker'] are not expected" in caplog.text
    assert loaded.scheduler is pipe.scheduler
    shutil.rmtree(tmp_path / "scheduler")
    assert torch.equal(draw(DiffusionBridgeVQPipeline.from_pretrained(tmp_path, scheduler=pipe.scheduler)), draw(pipe))
    with pytest.raises(ValueError, match=r"no file .*scheduler_config\.json"):
        DiffusionBridgeVQPipeline.from_pretrained(tmp_path)
