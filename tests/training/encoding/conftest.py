"""The autoencoder, images and encodings that the tests of this folder share."""

import shutil

import datasets
import pytest
import torch
from encoding_work import encode
from tiny_models import make_autoencoder

from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.data.pixels import to_pixels
from diffusion_bridge_vq.training import load_autoencoder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="package")
def autoencoder(tmp_path_factory):
    """A folder with an untrained one, `vqvae/`."""
    folder = tmp_path_factory.mktemp("autoencoder")
    torch.manual_seed(0)
    vqvae = make_autoencoder(sample_size=8, in_channels=1, out_channels=1)
    vqvae.normalizer.running_mean.fill_(0.1)
    vqvae.save_pretrained(folder / "vqvae")
    return folder


@pytest.fixture(scope="package")
def images():
    return load_images("digits", resolution=8, channels=1, split="test")


@pytest.fixture(scope="package")
def latents(autoencoder, images):
    """z_e of all images, and of their mirror images."""
    vqvae = load_autoencoder(autoencoder).eval()
    pixels = to_pixels(torch.stack([item["images"] for item in images]))
    with torch.no_grad():
        return vqvae.encode(pixels).latents, vqvae.encode(pixels.flip(-1)).latents


@pytest.fixture(scope="package")
def folder(tmp_path_factory, autoencoder):
    """Of one process: latents in half precision, with mirror images."""
    folder = tmp_path_factory.mktemp("encoded")
    encode(folder, autoencoder, mirrored=True)
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")
