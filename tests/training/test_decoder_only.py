"""Runs that train the decoder alone on: `decoder_only`."""

from pathlib import Path

import pytest
import torch
from diffusers import VQModel
from tiny_models import autoencoder_settings, make_autoencoder, make_pipeline, with_running_statistics
from tiny_run import SETTINGS

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, PixelCNNPrior, PixelCNNVQPipeline
from diffusion_bridge_vq.commands import export_checkpoint
from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.pipelines import load_pipeline, save_trained
from diffusion_bridge_vq.run_folder import RunFolder
from diffusion_bridge_vq.training import VQConfig, load_autoencoder, train

DECODER = {"decoder", "post_quant_conv"}


def config(folder: Path, **options) -> VQConfig:
    """Without arguments of the autoencoder, which are those of what is loaded."""
    settings = {name: value for name, value in SETTINGS.items() if name != "lr_warmup_steps"}
    return VQConfig.from_preset("digits", output_dir=folder, **settings | {"decoder_only": True} | options)


@pytest.mark.parametrize("quantizer", ["gumbel", "ema"])
def test_a_decoder_that_is_trained_on_keeps_all_codes(quantizer, tmp_path):
    """Encoder, codebook and normalizer stay bit for bit, averaged weights included; images come nearer."""
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "latent_channels": 4, "num_vq_embeddings": 8}
    saved = with_running_statistics(make_autoencoder(quantizer_type=quantizer, **sizes))
    saved.save_pretrained(tmp_path / "start" / "vqvae")
    options = {"init_from": tmp_path / "start", "max_train_steps": 20, "learning_rate": 1e-2, "ema_decay": 0.5}
    run = config(tmp_path / "run", batch_size=32, lr_warmup_steps=2, **options)
    trained = train(run)["vqvae"].eval()
    before, after = saved.state_dict(), trained.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith(("decoder.", "post_quant_conv.")) for name in moved)
    images = load_images("digits", resolution=8, channels=1).__getitems__(range(64)).tensors["images"] / 127.5 - 1
    errors = [(model(images).sample - images).square().mean().item() for model in (trained, saved)]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("option", ["init_from", "vqvae_from"])
def test_the_encoder_may_be_that_of_a_stock_model(option, tmp_path):
    torch.manual_seed(0)
    sizes = autoencoder_settings(latent_channels=4, num_vq_embeddings=8, in_channels=1, out_channels=1, sample_size=8)
    VQModel(**sizes).save_pretrained(tmp_path / "stock" / "vqvae")
    trained = train(config(tmp_path / "run", max_train_steps=2, lr_warmup_steps=0, **{option: tmp_path / "stock"}))
    run = RunFolder(tmp_path / "run")
    assert moved_weights(load_autoencoder(run.calibrated), trained["vqvae"]) == DECODER
    assert save_trained(trained, run) == [run.autoencoder]


def test_a_decoder_alone_needs_an_encoder(tmp_path):
    with pytest.raises(ValueError, match="give `init_from`, the folder"):
        config(tmp_path)


def moved_weights(one: torch.nn.Module, other: torch.nn.Module) -> set[str]:
    """The modules, by the first part of their names, that have other weights in `other`."""
    weights = other.state_dict()
    return {name.split(".")[0] for name, value in one.state_dict().items() if not torch.equal(value, weights[name])}


@pytest.fixture(params=["bridge", "pixelcnn"])
def start(request, tmp_path) -> Path:
    """A saved model with the names of two classes."""
    pipe, names = make_pipeline(classes=3, channels=1), {0: "cat", 1: "dog"}
    if request.param == "bridge":
        pipe = DiffusionBridgeVQPipeline(pipe.vqvae, pipe.unet, pipe.scheduler, names)
    else:
        pipe = PixelCNNVQPipeline(pipe.vqvae, PixelCNNPrior(32, width=4, num_layers=1, num_class_embeds=3), names)
    pipe.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def test_the_model_that_it_started_from_gets_the_decoder(start, tmp_path, monkeypatch):
    """Its prior and classes stay, from the run and from a checkpoint of it, also if that model was moved since."""
    run = RunFolder(tmp_path / "run")
    assert save_trained(train(config(run.path, init_from=start)), run) == [run.pipeline]
    moved = tmp_path / "moved"
    start.rename(moved)
    place = str(run.checkpoint(8)), "--init-from", str(moved), "--output-dir", str(tmp_path / "exported")
    monkeypatch.setattr("sys.argv", ["export_checkpoint.py", *place])
    export_checkpoint.main()
    before = load_pipeline(moved)
    for folder in (run.pipeline, tmp_path / "exported" / "pipeline"):
        after = load_pipeline(folder)
        assert type(after) is type(before) and after.id2label == {0: "cat", 1: "dog"}
        for name, part in before.components.items():
            if isinstance(part, torch.nn.Module):
                assert moved_weights(part, after.components[name]) == (DECODER if name == "vqvae" else set())


def test_a_prior_that_cannot_be_loaded_costs_no_decoder(start, tmp_path, caplog):
    run = RunFolder(tmp_path / "run")
    trained = train(config(run.path, init_from=start))
    for weights in start.glob("*/*.safetensors"):
        weights.write_bytes(b"cut off")
    with caplog.at_level("WARNING"):
        assert save_trained(trained, run) == [run.autoencoder]
    assert "saved alone, without the model in" in caplog.text


def test_a_prior_on_other_codes_gets_no_decoder(start, tmp_path, caplog):
    """The folder that a run started from may hold another model when it ends."""
    run = RunFolder(tmp_path / "run")
    trained = train(config(run.path, init_from=start))
    pipe = load_pipeline(start)
    with torch.no_grad():
        pipe.vqvae.quantize.embedding.weight[0] += 1
    pipe.save_pretrained(start)
    with caplog.at_level("WARNING"):
        assert save_trained(trained, run) == [run.autoencoder]
    assert "its prior is one on other codes" in caplog.text
    pipe.vqvae = trained["vqvae"]
    pipe.save_pretrained(start)
    assert save_trained(trained, run) == [run.pipeline] and not run.autoencoder.exists()
