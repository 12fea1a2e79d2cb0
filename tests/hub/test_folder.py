"""`from_pretrained` from a folder: what diffusers' own tests ask of a pipeline. The Hub is in client_load.py."""

import logging
import shutil

import pytest
import torch
from tiny_pipeline import make_pipeline, rng

from diffusion_bridge_vq import DiffusionBridgeVQPipeline


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe(batch_size=2, generator=rng(5), num_inference_steps=3, output_type="pt").images


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("safe", [True, False])
def test_own_folder(tmp_path, pipe, caplog, safe, variant):
    """In a folder of one's own pickled weights are read too, with torch's restricted reader."""
    pipe.save_pretrained(tmp_path, safe_serialization=safe, variant=variant)
    logger = logging.getLogger("diffusers.pipelines.pipeline_utils")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, logger.name):
        loaded = DiffusionBridgeVQPipeline.from_pretrained(str(tmp_path), variant=variant)
    logger.removeHandler(caplog.handler)
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
    logger = logging.getLogger("diffusers.pipelines.pipeline_utils")
    logger.addHandler(caplog.handler)
    loaded = DiffusionBridgeVQPipeline.from_pretrained(tmp_path, scheduler=pipe.scheduler, safety_checker=None)
    logger.removeHandler(caplog.handler)
    assert "['safety_checker'] are not expected" in caplog.text
    assert loaded.scheduler is pipe.scheduler
    shutil.rmtree(tmp_path / "scheduler")
    assert torch.equal(draw(DiffusionBridgeVQPipeline.from_pretrained(tmp_path, scheduler=pipe.scheduler)), draw(pipe))
    with pytest.raises(ValueError, match=r"no file .*scheduler_config\.json"):
        DiffusionBridgeVQPipeline.from_pretrained(tmp_path)
