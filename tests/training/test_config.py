import itertools
import typing
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from tiny_run import config as tiny_config

from diffusion_bridge_vq import OUBridgeScheduler
from diffusion_bridge_vq.evaluation import EXTRACTORS
from diffusion_bridge_vq.training import (
    PRESETS,
    E2EConfig,
    PixelCNNConfig,
    PriorConfig,
    VQConfig,
    build_objective,
)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_fit_together(preset):
    """Every preset's components can be made, and their sizes and channels agree; nothing is trained."""
    config = E2EConfig.from_preset(preset, dataset="digits", perceptual_weight=0.0)  # its features are real weights
    VQConfig.from_preset(preset, dataset="digits")
    with init_empty_weights():
        objective = build_objective(config)
    vqvae, unet = objective.vqvae, objective.unet
    assert vqvae.config.latent_channels == unet.config.in_channels == unet.config.out_channels
    assert config.resolution // vqvae.downsampling_factor == unet.config.sample_size
    assert vqvae.config.sample_size == config.resolution
    if preset.startswith(("cifar10", "miniimagenet")) and not preset.endswith("-tiny"):  # the paper's 57M
        assert sum(p.numel() for p in unet.parameters()) == pytest.approx(57e6, rel=0.02)


def test_paper_shapes():
    for preset, d, codes, side in (("cifar10", 128, 256, 8), ("miniimagenet", 32, 128, 21)):
        c = E2EConfig.from_preset(preset, dataset="x")
        with init_empty_weights():
            unet = build_objective(c).unet
        assert (c.vqvae["latent_channels"], c.vqvae["num_vq_embeddings"]) == (d, codes)
        assert unet.config.sample_size == side
        scheduler = OUBridgeScheduler(**c.scheduler)
        assert (len(scheduler), scheduler.stationary_std, scheduler.config.prediction_type) == (1000, 1.0, "epsilon")


def test_choices_hold_from_python_too():
    for name in ("mode", "weighting", "regularization", "mixed_precision", "perceptual_features"):
        chosen = getattr(E2EConfig.from_preset("digits"), name)
        with pytest.raises(ValueError, match=rf"`{name}` must be one of .*'{chosen}'.*, got 'none such'"):
            E2EConfig.from_preset("digits", **{name: "none such"})


def test_extractors_are_those_of_the_evaluation():
    """Training can't import them: it lies below."""
    assert typing.get_args(typing.get_type_hints(PriorConfig)["evaluate_extractor"]) == EXTRACTORS


def test_every_phase_has_a_loss(tmp_path):
    """Over all thirds of a run at which the prior may join, and the autoencoder be frozen."""
    thirds = (0.0, 0.33, 0.66, 1.0)
    images = torch.zeros(1, 1, 8, 8)
    for joint, freeze in itertools.product(thirds, thirds):
        settings = {"mode": "stable", "joint_fraction": joint, "freeze_fraction": freeze, "max_train_steps": 3}
        if joint > freeze or joint == 1:
            with pytest.raises(ValueError, match="`joint_fraction`"):
                tiny_config(E2EConfig, tmp_path, **settings)
            continue
        if freeze == 0:  # only of an autoencoder that is trained
            with pytest.raises(ValueError, match=r"`freeze_fraction` 0\.0 of 3 steps leaves none .* as `vqvae_from`"):
                tiny_config(E2EConfig, tmp_path, **settings)
            settings["resume"] = True
        objective = build_objective(tiny_config(E2EConfig, tmp_path, **settings)).train()
        for step in range(3):
            objective.set_step(step)
            terms = set(objective(images).losses)
            assert ("prior" in terms) == (step >= round(3 * joint))
            assert ("reconstruction" in terms) == (freeze == 1 or step < round(3 * freeze))
            assert terms


def test_mode_decoder_needs_an_encoder_that_was_trained(tmp_path):
    """The prior freezes its encoder when it joins: without a step before, codes would be those of random weights."""
    settings = {"joint_fraction": 0.1, "max_train_steps": 4}
    with pytest.raises(ValueError, match=r"`joint_fraction` 0\.1 of 4 steps leaves none for the encoder"):
        tiny_config(E2EConfig, tmp_path, **settings)
    for enough in ({"joint_fraction": 0.25}, {"vqvae_from": tmp_path}, {"init_from": tmp_path}, {"mode": "stable"}):
        tiny_config(E2EConfig, tmp_path, **settings | enough)


def test_a_preset_of_1024_codes_differs_in_nothing_else():
    for cls in (VQConfig, PriorConfig, PixelCNNConfig, E2EConfig):
        wide, more = (
            cls.from_preset(f"cifar10-wide-noise{end}", init_from=Path("x")).to_json() for end in ("", "-1024")
        )
        assert more["vqvae"].pop("num_vq_embeddings") == 4 * wide["vqvae"].pop("num_vq_embeddings") == 1024
        assert more == wide | {"preset": "cifar10-wide-noise-1024"}


def test_paper_mode_is_algorithm_1_unless_told_otherwise():
    paper = E2EConfig.from_preset("cifar10", dataset="x", mode="paper")
    assert (paper.weighting, paper.regularization, paper.regularization_weight) == ("elbo", "gamma", 1.0)
    assert (paper.l1_weight, paper.vqvae["quantizer_type"], paper.vqvae["latent_channels"]) == (0.0, "gumbel", 128)
    changed = E2EConfig.from_preset(
        "cifar10", dataset="x", mode="paper", weighting="simple", vqvae={"quantizer_type": "ste"}
    )
    assert (changed.weighting, changed.vqvae["quantizer_type"], changed.l1_weight) == ("simple", "ste", 0.0)
    default = E2EConfig.from_preset("cifar10", dataset="x")
    assert (default.mode, default.weighting, default.vqvae["quantizer_type"]) == ("decoder", "simple", "ema")
