"""
A new kind of run is an objective, its configuration and its preset, and nothing else: here a denoising autoencoder,
which stops early by what it does on held-out images, and a run on what a frozen autoencoder makes of the images.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_run import SETTINGS, TINY, assert_same_state, logged, stopped_at_a_checkpoint
from torch import nn

from diffusion_bridge_vq import GumbelVQModel
from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.training import (
    PRESETS,
    EarlyStoppingRule,
    Objective,
    ObjectiveOutput,
    RunConfig,
    build_objective,
    option,
    train,
    trains,
)
from diffusion_bridge_vq.training.build import build_autoencoder
from diffusion_bridge_vq.training.data import hold_out
from diffusion_bridge_vq.training.options import POSITIVE
from diffusion_bridge_vq.training.time_budget import steps_within


@dataclass(frozen=True)
class DenoisingConfig(RunConfig):
    kind = "denoising"

    noise: float = option(0.3, "standard deviation of the noise on the images", POSITIVE)


@trains(DenoisingConfig)
class DenoisingObjective(Objective):
    trained = saved = ("vqvae",)
    early_stopping = EarlyStoppingRule("error", holdout_fraction=0.1, every=2, patience=2)

    def __init__(self, vqvae: GumbelVQModel, noise: float):
        super().__init__()
        self.vqvae, self.noise = vqvae, noise

    @classmethod
    def from_config(cls, config: DenoisingConfig, num_classes, class_names):
        return cls(build_autoencoder(config), config.noise)

    def forward(self, images, class_labels=None):
        noisy = images + self.noise * torch.randn_like(images)
        return ObjectiveOutput({"denoising": (self.vqvae(noisy).sample - images).square().mean()}, {})

    @torch.no_grad()
    def held_out_score(self, components, inputs):
        errors = [(components["vqvae"](x["images"]).sample - x["images"]).square().flatten(1).mean(1) for x in inputs]
        return torch.cat(errors).mean().item()


@pytest.fixture
def preset(monkeypatch):
    monkeypatch.setitem(PRESETS["digits"], "denoising", {"noise": 0.2, "l1_weight": 1.0, "learning_rate": 1e-2})


def config(folder: Path, **overrides) -> DenoisingConfig:
    return DenoisingConfig.from_preset("digits", output_dir=folder, vqvae=TINY["vqvae"], **SETTINGS | overrides)


def test_its_config_has_bounds_and_a_preset(tmp_path, preset):
    assert (config(tmp_path).noise, config(tmp_path).learning_rate) == (0.2, 1e-2)
    with pytest.raises(ValueError, match=r"`noise` must be positive, got 0\.0"):
        config(tmp_path, noise=0.0)
    assert type(build_objective(config(tmp_path))) is DenoisingObjective


def test_it_trains_and_gives_the_weights_with_the_best_score(tmp_path, preset):
    components = train(config(tmp_path, max_train_steps=12, validation_split="test", validate_every=4))
    losses, scores = logged(tmp_path, "loss/denoising"), logged(tmp_path, "heldout/error")
    assert list(losses) == list(scores) == [2, 4, 6, 8, 10, 12] and losses[12] < 0.9 * losses[2]
    assert list(logged(tmp_path, "validation/denoising")) == [4, 8, 12]
    digits = load_images("digits", resolution=8, channels=1)
    _, held_out = hold_out(len(digits), 0.1, seed=0)
    images = torch.stack([digits[number]["images"] for number in held_out]).float() / 127.5 - 1
    with torch.no_grad():
        error = (components["vqvae"](images).sample - images).square().mean().item()
    assert error == pytest.approx(min(scores.values()), rel=1e-4)


def test_it_stops_when_its_patience_ends(tmp_path, preset, monkeypatch):
    scores = iter([3.0, 2.0, 2.5, 2.2])
    monkeypatch.setattr(DenoisingObjective, "held_out_score", lambda *_: next(scores))
    train(config(tmp_path, max_train_steps=20))
    assert logged(tmp_path, "heldout/error") == {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.2}


def test_it_resumes_bit_for_bit(tmp_path, preset, monkeypatch):
    train(config(tmp_path / "whole"))
    with stopped_at_a_checkpoint(monkeypatch):
        train(config(tmp_path / "parts"))
    train(config(tmp_path / "parts", resume=True))
    assert_same_state(tmp_path / "whole", tmp_path / "parts", 8, ("model", "ema", "best", "optimizer", "random-0"))


def test_its_steps_are_timed(tmp_path, preset, charge):
    charge(DenoisingObjective, lambda objective: 0.5)
    assert steps_within(config(tmp_path), 60) == 120


@dataclass(frozen=True)
class ScaleConfig(RunConfig):
    kind = "scale"


@trains(ScaleConfig)
class ScaleObjective(Objective):
    """Learns by how much to scale codes' squared numbers to give 1: something small on cached inputs."""

    trained, saved, cached_input = ("scale",), ("vqvae", "scale"), "squares"

    def __init__(self, vqvae: GumbelVQModel):
        super().__init__()
        self.vqvae, self.scale = vqvae.requires_grad_(False).eval(), nn.Linear(1, 1, bias=False)

    @classmethod
    def from_config(cls, config, num_classes, class_names):
        return cls(build_autoencoder(config))

    def encode(self, images):
        return self.vqvae.encode_codes(self.vqvae.encode(images).latents).float().square().mean((1, 2))[:, None]

    def forward(self, images=None, class_labels=None, squares=None):
        squares = self.encode(images) if squares is None else squares
        return ObjectiveOutput({"scale": (self.scale(squares) - 1).square().mean()}, {})


def test_inputs_of_its_own_are_encoded_once(tmp_path, monkeypatch):
    build_objective(config(tmp_path)).vqvae.save_pretrained(tmp_path / "vq" / "vqvae")
    images, encode = [0], ScaleObjective.encode

    def count(self, batch):
        images[0] += len(batch)
        return encode(self, batch)

    monkeypatch.setattr(ScaleObjective, "encode", count)
    settings = SETTINGS | {"batch_size": 100, "init_from": tmp_path / "vq", "max_train_steps": 20}
    components = train(ScaleConfig.from_preset("digits", output_dir=tmp_path / "run", **settings))
    assert images == [1500 + 1] and components.keys() == {"vqvae", "scale"}
    assert not components["scale"].training
