"""The comparison of benchmarks/peers on the digits, with tiny networks."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from tiny_models import autoencoder_settings, make_autoencoder, unet_settings, with_running_statistics

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, OUBridgeScheduler
from diffusion_bridge_vq.training.presets import PRESETS

sys.path.append(str(Path(__file__).resolve().parents[2]))  # `python -m benchmarks.peers` is run there
from benchmarks.peers import measure, rows
from benchmarks.peers.data import Data
from benchmarks.peers.settings import SETTINGS


@pytest.fixture
def scripts(monkeypatch):
    """A function that imports a script of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The digits with tiny networks, 4 x 4 latents of 3 channels and 16 codes; a tokenizer with random weights."""
    torch.manual_seed(0)
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    sizes = autoencoder_settings(3, latent_channels=3)
    vqvae = with_running_statistics(make_autoencoder(3, in_channels=1, out_channels=1, quantizer_type="ema"))
    unet = UNet2DModel(**unet_settings(attention_head_dim=4, sample_size=4))
    scheduler = OUBridgeScheduler(**PRESETS["digits"]["common"]["scheduler"])
    DiffusionBridgeVQPipeline(vqvae, unet, scheduler).save_pretrained(checkpoint)
    common = PRESETS["digits"]["common"] | {"vqvae": sizes | {"layers_per_block": 1, "quantizer_type": "ema"}}
    common |= {"unet": unet_settings(attention_head_dim=4), "batch_size": 64}
    pixels = {"block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1}
    pixels |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    setting = replace(
        SETTINGS["digits"],
        preset="tiny-peers",
        checkpoint=checkpoint,
        transformer={"width": 16, "layers": 1, "heads": 2},
        pixelcnn={"width": 8, "num_layers": 2, "kernel_size": 3},
        pixel_unet=pixels,
        trajectories=16,
        bridge_steps=(3, 2),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny-peers", PRESETS["digits"] | {"common": common})
        patch.setitem(SETTINGS, "digits", setting)
        patch.setattr(measure, "_TIMED", {1: 1, 32: 1})
        classes = {cls for table in rows.ROWS.values() for cls in table.values()}
        for cls in {cls for cls in classes if isinstance(cls.search, dict)}:  # the others' is of the setting
            quick = {name: tuple(v for v in values if v != 50)[:2] for name, values in cls.search.items()}
            patch.setattr(cls, "search", quick | ({"steps": (3, 2)} if "steps" in quick else {}))
        yield


@pytest.fixture(scope="module")
def data(tiny) -> Data:
    return Data(SETTINGS["digits"], "digits")
