"""Runs that start from somebody else's autoencoder: statistics are measured, and what can't work is refused early."""

import json
import math
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from tiny_models import autoencoder_settings
from tiny_run import SETTINGS, TINY

from diffusion_bridge_vq.models import GumbelVQModel
from diffusion_bridge_vq.run_folder import RunFolder
from diffusion_bridge_vq.training import PriorConfig, calibration, load_autoencoder, train
from diffusion_bridge_vq.training.calibration import measure_latents
from diffusion_bridge_vq.training.checkpoint_components import load_components

PIXELS = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> Path:
    """A VQModel of diffusers whose latents are far from unit variance."""
    folder = tmp_path_factory.mktemp("stock")
    torch.manual_seed(0)
    gray = {"in_channels": 1, "out_channels": 1, "latent_channels": 4, "num_vq_embeddings": 8, "sample_size": 8}
    model = VQModel(**autoencoder_settings(**gray))
    with torch.no_grad():
        model.quant_conv.weight *= 20
        latents = model.encode(PIXELS / 127.5 - 1).latents.movedim(1, -1).flatten(0, 2)
        model.quantize.embedding.weight.copy_(latents[:: len(latents) // 8][:8])
    model.save_pretrained(folder)
    return folder


def config(folder: Path, **options) -> PriorConfig:
    settings = SETTINGS | {"unet": TINY["unet"], "max_train_steps": 2, "checkpoint_every": 2} | options
    return PriorConfig.from_preset("digits", output_dir=folder, **settings)


@torch.no_grad()
def test_what_is_measured(stock):
    vqvae = load_autoencoder(stock).eval()
    found = measure_latents(vqvae, PIXELS, batch_size=4)
    x = PIXELS / 127.5 - 1
    latents = vqvae.encode(x).latents.movedim(1, -1).flatten(0, 2)
    torch.testing.assert_close(found.mean.float(), latents.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.variance.float(), latents.var(0, correction=0), rtol=1e-4, atol=1e-5)
    error = (VQModel.from_pretrained(stock)(x).sample.clamp(-1, 1) - x).square().mean().item()
    assert found.psnr == pytest.approx(10 * math.log10(4 / error), abs=1e-3)
    spread = (x - x.mean((1, 2, 3), keepdim=True)).square().mean().item()
    assert found.explained == pytest.approx(1 - error / spread, abs=1e-4)


def test_a_run_measures_saves_and_resumes(stock, tmp_path, monkeypatch, capsys):
    trained = train(config(tmp_path / "run", vqvae_from=stock))
    assert (
        "has no statistics of its latents. Measured: latents of 256 images have standard d" in capsys.readouterr().out
    )
    run = RunFolder(tmp_path / "run")
    saved = GumbelVQModel.from_pretrained(run.calibrated)
    assert all(torch.equal(v, trained["vqvae"].state_dict()[k]) for k, v in saved.state_dict().items())
    assert json.loads(run.config.read_text())["vqvae_from"] == str(run.calibrated)
    last = json.loads(run.metrics.read_text().splitlines()[-1])
    assert last["train/latent_rms"] == pytest.approx(1, abs=0.2)
    components, _ = load_components(run.path)
    assert torch.equal(components["unet"].conv_in.weight, trained["unet"].conv_in.weight)
    # not measured again
    monkeypatch.setattr(calibration, "measure_latents", None)
    train(config(tmp_path / "run", vqvae_from=stock, resume=True, max_train_steps=3))


def test_one_that_has_statistics_stays(stock, tmp_path, monkeypatch):
    own = load_autoencoder(stock)
    own.use_statistics(torch.zeros(4), 7.0)
    own.save_pretrained(tmp_path / "vqvae")
    monkeypatch.setattr(calibration, "measure_latents", None)
    train(config(tmp_path / "run", vqvae_from=tmp_path, dry_run=True))
    assert not (tmp_path / "run").exists()


def test_bad_reconstructions_are_said(stock, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(calibration.logger, "warning", said.append)
    train(config(tmp_path / "run", vqvae_from=stock, dry_run=True))  # untrained, so it draws noise
    assert len(said) == 1 and "reconstructs digits badly: PSNR " in said[0] and not (tmp_path / "run").exists()


def changed(stock: Path, folder: Path, change) -> Path:
    model = VQModel.from_pretrained(stock)
    with torch.no_grad():
        change(model)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda m: m.quant_conv.weight[1:3].zero_(), r"Channels 1, 2 of the latents don't vary"),
        (lambda m: m.quant_conv.weight[0].fill_(torch.nan), "can't be used"),
        (lambda m: (m.encoder.conv_out.weight.mul_(1e25), m.quant_conv.weight.mul_(1e25)), "NaN or infinite"),
        (lambda m: m.quant_conv.weight.mul_(1e-6), "can't be normalized"),
    ],
)
def test_damaged_ones_are_refused_before_training(change, words, stock, tmp_path):
    with pytest.raises(ValueError, match=words):
        train(config(tmp_path / "run", vqvae_from=changed(stock, tmp_path / "bad", change)))
    assert not (tmp_path / "run").exists()


def test_other_models_are_refused(tmp_path):
    AutoencoderKL(block_out_channels=[4], norm_num_groups=2, layers_per_block=1).save_pretrained(tmp_path / "vqvae")
    with pytest.raises(ValueError, match="has AutoencoderKL, expected GumbelVQModel, or VQModel"):
        load_autoencoder(tmp_path)
    with pytest.raises(ValueError, match="There is no autoencoder in"):
        load_autoencoder(tmp_path / "none" / "at" / "all")


@pytest.fixture
def cached_hub(tmp_path, monkeypatch):
    """A function that puts a folder into the cache of the Hub as "user/NAME", which is all that can be reached."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(name: str, model, **options) -> None:
        place = tmp_path / "hub" / f"models--user--{name}"
        model.save_pretrained(place / "snapshots" / ("0" * 40) / "vqvae", **options)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("0" * 40)

    return put


def test_by_its_id_on_the_hub(stock, cached_hub):
    model = VQModel.from_pretrained(stock)
    cached_hub("safe", model)
    cached_hub("pickled", model, safe_serialization=False)
    loaded = load_autoencoder(Path("user/safe"))
    assert torch.equal(loaded.quantize.embedding.weight, model.quantize.embedding.weight)
    with pytest.raises(ValueError, match=r"no autoencoder in safetensors.*write safetensors once: VQModel.from_pretr"):
        load_autoencoder(Path("user/pickled"))
    with pytest.raises(OSError, match="neither a folder here nor a repository on the Hub"):
        load_autoencoder(Path("user/none"))
