"""diffusers' AutoModel on the files that are pushed, with the code that they carry."""

import json

import pytest
import torch
from diffusers import AutoModel
from diffusers.utils import logging
from pipeline_files import INDEX, write_folder
from tiny_models import make_code_pipeline, make_images, make_pipeline

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, GumbelVQModel
from diffusion_bridge_vq.hub.push import pipeline_files
from diffusion_bridge_vq.model_card import read_run


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """The folder that a push would upload, and the pipeline."""
    folder = tmp_path_factory.mktemp("pipeline")
    pipe = make_code_pipeline()
    pipe.save_pretrained(folder / "saved")
    files = pipeline_files(read_run(folder / "saved"), "user/model")
    found = {path: content if isinstance(content, bytes) else content.read_bytes() for path, content in files.items()}
    return str(write_folder(folder / "pushed", found)), pipe


@pytest.mark.usefixtures("own_modules")
@torch.no_grad()
def test_models_of_the_package_without_it(pushed):
    folder, pipe = pushed
    vqvae = AutoModel.from_pretrained(folder, subfolder="vqvae", trust_remote_code=True)
    assert type(vqvae) is not GumbelVQModel and type(vqvae).__name__ == "GumbelVQModel"
    x = make_images(2, 6)
    assert torch.equal(vqvae(x).sample, pipe.vqvae(x).sample)
    unet = AutoModel.from_pretrained(folder, subfolder="unet", trust_remote_code=True)
    z, t = torch.randn(2, 3, 4, 4), torch.tensor([1, 15])
    assert torch.equal(unet(z, t).sample, pipe.unet.eval()(z, t).sample)


def test_a_u_net_of_diffusers_loads_as_well(tmp_path):
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path / "saved")
    files = pipeline_files(read_run(tmp_path / "saved"), "user/model")
    assert files["unet/modeling.py"] == b"from diffusers import UNet2DModel as Model\n"
    assert b"auto_map" not in files["unet/config.json"]


def test_code_is_not_run_unasked(pushed):
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModel.from_pretrained(pushed[0], subfolder="vqvae")


def test_the_package_reads_over_it(pushed, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(logging.get_logger("diffusers.configuration_utils"), "warning", said.append)
    pipe = DiffusionBridgeVQPipeline.from_pretrained(pushed[0])
    assert said == [] and type(pipe.vqvae) is GumbelVQModel
    pipe.save_pretrained(tmp_path)
    assert all("auto_map" not in json.loads((tmp_path / n).read_text()) for n in ("vqvae/config.json", INDEX))
