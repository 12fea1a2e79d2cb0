"""Sizes of the components: all of them follow from the resolution of the run."""

from typing import Any

import pytest
from diffusers.utils import logging
from tiny_run import TINY, config

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, PixelCNNVQPipeline
from diffusion_bridge_vq.training import E2EConfig, PixelCNNConfig, PriorConfig, VQConfig, build_objective, train

ONE_STEP = {"max_train_steps": 1, "checkpoint_every": 0, "batch_size": 64}


def drawn_size(trained: dict[str, Any]) -> tuple[int, int]:
    """Width and height of an image of the pipeline."""
    if "prior" in trained:
        return PixelCNNVQPipeline(**trained)(1).images[0].size
    return DiffusionBridgeVQPipeline(**trained)(1, 1).images[0].size


@pytest.mark.parametrize("resolution", [8, 16])
def test_pipelines_draw_what_was_trained_on(tmp_path, resolution):
    """Trained in one stage, or in two: at the digits' resolution and at half of it."""
    options = ONE_STEP | {"resolution": resolution}
    first = train(config(VQConfig, tmp_path / "vq", **options))["vqvae"]
    first.save_pretrained(tmp_path / "vq" / "vqvae")
    runs = [config(E2EConfig, tmp_path / "e2e", **options | {"max_train_steps": 2, "joint_fraction": 0.5})]
    runs.append(config(PriorConfig, tmp_path / "prior", init_from=tmp_path / "vq", **options))
    pixelcnn = {"init_from": tmp_path / "vq", "prior": {"width": 8, "num_layers": 2}, "vqvae": TINY["vqvae"]}
    runs.append(
        PixelCNNConfig.from_preset("digits", output_dir=tmp_path / "p", report_to="none", **options, **pixelcnn)
    )
    for run in runs:
        trained = train(run)
        assert trained["vqvae"].config.sample_size == first.config.sample_size == resolution
        assert drawn_size(trained) == (resolution, resolution)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_attention_needs_channels_for_a_head(tmp_path):
    unet = TINY["unet"] | {"attention_head_dim": 64}
    with pytest.raises(ValueError, match="64 channels for each attention head, more than a block has"):
        build_objective(config(E2EConfig, tmp_path, unet=unet))


def test_steps_of_grids_that_begin_far_from_noise_are_refused_before_training(tmp_path):
    process = {"scheduler": {"timestep_spacing": "leading"}, "dry_run": True}
    train(config(E2EConfig, tmp_path, num_inference_steps=50, **process))
    with pytest.raises(ValueError, match=r"`num_inference_steps` 300, of the grids .* at noise level 897 of 1000"):
        train(config(E2EConfig, tmp_path, num_inference_steps=300, **process))


def test_an_autoencoder_with_other_downsampling(tmp_path):
    blocks = {"block_out_channels": [8], "down_block_types": ["DownEncoderBlock2D"]}
    vqvae = TINY["vqvae"] | blocks | {"up_block_types": ["UpDecoderBlock2D"]}
    objective = build_objective(config(E2EConfig, tmp_path, vqvae=vqvae))
    assert (objective.vqvae.config.sample_size, objective.unet.config.sample_size) == (8, 8)


def test_loaded_components_take_the_resolution_of_the_run(tmp_path, monkeypatch):
    """What was trained on 8 pixels goes on with 16, and is saved as what it is then; a line says so."""
    small = build_objective(config(E2EConfig, tmp_path / "small"))
    small.vqvae.save_pretrained(tmp_path / "pipeline" / "vqvae")
    small.unet.save_pretrained(tmp_path / "pipeline" / "unet")
    said = []
    monkeypatch.setattr(logging.get_logger("diffusion_bridge_vq.training.build"), "warning", said.append)
    for cls in (E2EConfig, PriorConfig):
        objective = build_objective(config(cls, tmp_path / "run", init_from=tmp_path, resolution=16))
        assert (objective.vqvae.config.sample_size, objective.unet.config.sample_size) == (16, 8)
    assert len(said) == 2 and all("8 pixels" in line and "`resolution` is 16" in line for line in said)
    build_objective(config(E2EConfig, tmp_path / "run", init_from=tmp_path))
    assert len(said) == 2
    objective.vqvae.save_pretrained(tmp_path / "again")
    assert type(objective.vqvae).load_config(tmp_path / "again")["sample_size"] == 16


def test_classes_that_a_stream_does_not_know_beforehand(tmp_path):
    options = {"class_conditional": True, "dataset": "shards"}
    with pytest.raises(ValueError, match="needs classes, but shards has none; give `label_column`"):
        build_objective(config(E2EConfig, tmp_path, **options))
    with pytest.raises(ValueError, match="bare integers are known only after all are read"):
        build_objective(config(E2EConfig, tmp_path, **options, streaming=True, label_column="cls"))
