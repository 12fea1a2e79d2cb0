"""Runs on a folder of encoded images against runs that encode the same images themselves."""

import pytest
import torch
from encoding_work import encode
from tiny_models import make_autoencoder
from tiny_run import SETTINGS, TINY, assert_same_state, config, logged, stopped_at_a_checkpoint

from diffusion_bridge_vq.training import PixelCNNConfig, PriorConfig, load_autoencoder, train

FILES = ("model", "ema", "optimizer", "random-0")
PIXELCNN = {"prior": {"width": 8, "num_layers": 2}, "eval_every": 2, "patience": 9, "batch_size": 256}


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("autoencoder")
    torch.manual_seed(0)
    vqvae = make_autoencoder(
        latent_channels=4, num_vq_embeddings=8, sample_size=8, in_channels=1, out_channels=1
    ).train()
    vqvae.encode(torch.rand(64, 1, 8, 8))  # so that its normalizer has statistics
    vqvae.eval().save_pretrained(folder / "vqvae")
    return folder


@pytest.fixture(scope="module")
def latents(tmp_path_factory, autoencoder):
    folder = tmp_path_factory.mktemp("latents")
    encode(folder, autoencoder, split="train", precision="float32", mirrored=True)
    return folder


@pytest.fixture(scope="module")
def codes(tmp_path_factory, autoencoder):
    folder = tmp_path_factory.mktemp("codes")
    encode(folder, autoencoder, split="train", what="codes")
    return folder


@pytest.fixture(scope="module")
def unlabeled(tmp_path_factory, autoencoder):
    """Of a folder of images."""
    from PIL import Image

    images = tmp_path_factory.mktemp("images")
    for number in range(20):
        Image.new("L", (8, 8), number).save(images / f"{number}.png")
    folder = tmp_path_factory.mktemp("unlabeled")
    encode(folder, autoencoder, str(images))
    return folder


def prior(folder, autoencoder, **options):
    return config(PriorConfig, folder, init_from=autoencoder, random_flip=True, **options)


def pixelcnn(folder, autoencoder, **options):
    settings = SETTINGS | PIXELCNN | {"vqvae": TINY["vqvae"], "init_from": autoencoder, "max_train_steps": 4}
    return PixelCNNConfig.from_preset("digits", output_dir=folder, **settings | options)


def test_a_prior_learns_the_same_from_either(autoencoder, latents, tmp_path):
    """The same images and mirror images in the same order; with classes, whose names the folder has."""
    options = {"class_conditional": True, "max_train_steps": 4}
    train(prior(tmp_path / "cached", autoencoder, cache_latents=True, **options))
    trained = train(prior(tmp_path / "given", autoencoder, latents=latents, **options))
    assert logged(tmp_path / "given", "loss/prior") == pytest.approx(
        logged(tmp_path / "cached", "loss/prior"), rel=1e-6
    )
    assert trained["unet"].config.num_class_embeds == 11
    grids = {path.name for path in (tmp_path / "given").glob("*.png")}
    assert grids == {"samples-000004.png"}  # there are no images to reconstruct
    assert (tmp_path / "cached" / "encoded" / "encoding.json").is_file()


def test_a_run_on_latents_resumes_bit_for_bit(autoencoder, latents, tmp_path, monkeypatch):
    train(prior(tmp_path / "whole", autoencoder, latents=latents))
    with stopped_at_a_checkpoint(monkeypatch):
        train(prior(tmp_path / "parts", autoencoder, latents=latents))
    train(prior(tmp_path / "parts", autoencoder, latents=latents, resume=True))
    assert_same_state(tmp_path / "whole", tmp_path / "parts", 8, FILES)


def test_a_pixelcnn_learns_the_same_from_either(autoencoder, codes, tmp_path):
    """Also what is held out is the same."""
    train(pixelcnn(tmp_path / "images", autoencoder))
    train(pixelcnn(tmp_path / "codes", autoencoder, latents=codes))
    for name in ("loss/cross_entropy", "heldout/bits_per_code"):
        assert logged(tmp_path / "codes", name) == pytest.approx(logged(tmp_path / "images", name), rel=1e-6)


def test_what_the_run_cannot_use_is_refused(autoencoder, latents, codes, unlabeled, tmp_path):
    def refused(message, **options):
        with pytest.raises(ValueError, match=message):
            train(config(PriorConfig, tmp_path / "run", **{"init_from": autoencoder, "latents": latents} | options))

    refused(r"holds codes, but this run is trained on latents: encode the images with `--what latents`", latents=codes)
    refused("was encoded from images of 8 pixels, but `resolution` is 16", resolution=16)
    refused(
        "`class_conditional` needs classes, but .*encode the images with their labels",
        **{"latents": unlabeled, "class_conditional": True, "batch_size": 4},
    )
    refused("20 images to train on, fewer than one batch of 400", latents=unlabeled)
    refused("`random_flip` needs mirror images in", latents=unlabeled, random_flip=True, batch_size=4)
    refused("read from disk as they are: drop `streaming`", streaming=True)
    refused("drop `cache_latents`", cache_latents=True)
    refused(r"holds no encoded images: encoding\.json can't be read", latents=tmp_path)
    other = load_autoencoder(autoencoder)
    torch.nn.init.ones_(other.quant_conv.bias)
    other.save_pretrained(tmp_path / "other" / "vqvae")
    refused("was encoded by another autoencoder than the one in", init_from=tmp_path / "other")
    other.normalizer.running_var.fill_(2.0)
    other.save_pretrained(tmp_path / "other" / "vqvae")
    refused("was encoded with another normalizer than that of", init_from=tmp_path / "other")
    with pytest.raises(ValueError, match=r"holds latents, but this run is trained on codes: .*`--what codes`"):
        train(pixelcnn(tmp_path / "run", autoencoder, latents=latents))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_goes_on_with_the_same_data_only(autoencoder, latents, codes, tmp_path):
    train(config(PriorConfig, tmp_path / "run", init_from=autoencoder, latents=latents, max_train_steps=4))
    encode(tmp_path / "half", autoencoder, split="train")  # in half precision
    with pytest.raises(ValueError, match=r"The data have changed since .*fingerprint: "):
        train(config(PriorConfig, tmp_path / "run", init_from=autoencoder, latents=tmp_path / "half", resume=True))
