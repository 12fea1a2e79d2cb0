import dataclasses
import json
import re
from pathlib import Path

import pytest
from accelerate import init_empty_weights
from diffusers import UNet2DModel

from diffusion_bridge_vq import GumbelVQModel, OUBridgeScheduler
from diffusion_bridge_vq.training import PRESETS, E2EConfig, PixelCNNConfig, PriorConfig, VQConfig, parse_config


def test_command_line_changes_the_preset(capsys):
    config = parse_config(
        E2EConfig, ["--preset", "cifar10", "--dataset", "x", "--max-train-steps", "7", "--unet", '{"dropout": 0.1}']
    )
    assert (config.max_train_steps, config.dataset, config.batch_size) == (7, "x", 256)
    assert config.unet["dropout"] == 0.1 and config.unet["block_out_channels"] == [256, 464]  # merged, not replaced
    assert parse_config(E2EConfig, ["--preset=digits", "--no-random-flip"]).random_flip is False
    assert json.loads(json.dumps(config.to_json()))["preset"] == "cifar10"
    for arguments, words in [
        (["--preset", "mnist"], "no preset 'mnist'"),
        (["--unet", "{"], "not JSON"),
        (["--unet", "3"], "JSON object"),
        (["--batch-size", "0"], "`batch_size` must be at least 1"),
        (["--learning-rate", "-1"], "positive"),
        (["--ema-decay", "1"], "0.999"),
        (["--preset", "miniimagenet"], "give `dataset`"),
        (["--resolution", "30"], "divisible by 4"),
        (["--freeze-fraction", "1.5"], "[0, 1]"),
        (["--mode", "naive"], "stable"),
    ]:
        with pytest.raises(SystemExit):
            parse_config(E2EConfig, arguments)
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_config(PriorConfig, [])
    assert "train_vqvae" in capsys.readouterr().err


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_fit_together(preset):
    """Every preset's components can be made, and their sizes and channels agree; nothing is trained."""
    config = E2EConfig.from_preset(preset, dataset="digits")
    VQConfig.from_preset(preset, dataset="digits")
    with init_empty_weights():
        vqvae = GumbelVQModel(**{"in_channels": config.channels, "out_channels": config.channels} | config.vqvae)
        unet = UNet2DModel(**config.unet)
    OUBridgeScheduler(**config.scheduler)
    assert vqvae.config.latent_channels == unet.config.in_channels == unet.config.out_channels
    assert config.resolution // vqvae.downsampling_factor == unet.config.sample_size
    assert vqvae.config.sample_size == config.resolution
    if preset in ("cifar10", "cifar10-wide-noise", "miniimagenet"):  # the paper's 57M
        assert sum(p.numel() for p in unet.parameters()) == pytest.approx(57e6, rel=0.02)


def test_paper_shapes():
    for preset, d, codes, side in (("cifar10", 128, 256, 8), ("miniimagenet", 32, 128, 21)):
        c = E2EConfig.from_preset(preset, dataset="x")
        assert (c.vqvae["latent_channels"], c.vqvae["num_vq_embeddings"], c.unet["sample_size"]) == (d, codes, side)
        scheduler = OUBridgeScheduler(**c.scheduler)
        assert (len(scheduler), scheduler.stationary_std, scheduler.config.prediction_type) == (1000, 1.0, "epsilon")


def test_paper_mode_is_algorithm_1_unless_told_otherwise():
    paper = E2EConfig.from_preset("cifar10", dataset="x", mode="paper")
    assert (paper.weighting, paper.regularization, paper.regularization_weight) == ("elbo", "gamma", 1.0)
    assert (paper.l1_weight, paper.vqvae["quantizer_type"], paper.vqvae["latent_channels"]) == (0.0, "gumbel", 128)
    changed = E2EConfig.from_preset(
        "cifar10", dataset="x", mode="paper", weighting="simple", vqvae={"quantizer_type": "ste"}
    )
    assert (changed.weighting, changed.vqvae["quantizer_type"], changed.l1_weight) == ("simple", "ste", 0.0)
    stable = E2EConfig.from_preset("cifar10", dataset="x")
    assert (stable.weighting, stable.vqvae["quantizer_type"]) == ("simple", "ema")


def test_every_option_is_in_the_guide():
    guide = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    table = guide.split("## Flags by group")[1].split("\n## ")[0]
    named = set(re.findall(r"`--([a-z0-9-]+)`", table))
    kinds = (VQConfig, PriorConfig, PixelCNNConfig, E2EConfig)
    options = {f.name.replace("_", "-") for kind in kinds for f in dataclasses.fields(kind)}
    assert options - named == set() and named - options == {"help"}
