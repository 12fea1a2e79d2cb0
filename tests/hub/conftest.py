"""
Tests that talk to a Hub have the server as the fixture `hub`:

    def test_upload(hub, tmp_path):
        ...
        assert set(hub.files("tester/model")) >= {"model_index.json"}
"""

import json
import runpy
import sys
from pathlib import Path

import pytest
from hub_server import TOKEN, HubServer
from pipeline_files import read_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub(hub_server: HubServer, monkeypatch) -> HubServer:
    """An empty [`HubServer`] for every test. The client doesn't wait before it tries again."""
    hub_server.clear()
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return hub_server


@pytest.fixture
def cache(hub, tmp_path, monkeypatch):
    """The client's cache, new for every test."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def logged_in(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def example(logged_in, monkeypatch):
    """Runs a script of examples/ in this process, where the client doesn't wait."""

    def run_example(script: str, *arguments) -> None:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")

    return run_example


@pytest.fixture(scope="session")
def pipe():
    from tiny_models import SKEWED, make_pipeline

    return make_pipeline(**SKEWED | {"num_train_timesteps": 50})  # more than a call's own number of steps


@pytest.fixture(scope="session")
def files(pipe, tmp_path_factory) -> dict[str, bytes]:
    """Those of the saved pipeline."""
    folder = tmp_path_factory.mktemp("saved")
    pipe.save_pretrained(folder)
    return read_folder(folder)


@pytest.fixture
def run(pipe, tmp_path, monkeypatch) -> Path:
    """The folder of a run, full of this machine's paths."""
    from diffusion_bridge_vq import DiffusionBridgeVQPipeline
    from diffusion_bridge_vq.evaluation import append_result
    from diffusion_bridge_vq.grids import image_grid

    folder = tmp_path / "anna meier"
    pipe.save_pretrained(folder / "pipeline")
    # saved, loaded and saved again: diffusers writes where it was loaded from
    DiffusionBridgeVQPipeline.from_pretrained(folder / "pipeline").save_pretrained(folder / "pipeline")
    assert str(folder) in (folder / "pipeline" / "vqvae" / "config.json").read_text()
    image = image_grid(pipe(4, num_inference_steps=2).images, columns=2)
    for step in (4, 8):
        image.save(folder / f"samples-{step:06d}.png")
    settings = {
        "preset": "digits",
        "dataset": str(tmp_path / "faces"),
        "output_dir": str(folder),
        "init_from": str(tmp_path),
        "max_train_steps": 8,
        "batch_size": 4,
        "num_inference_steps": 3,
        "seed": 0,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    lines = [{"step": step, "loss/prior": 1 / step} for step in (4, 8)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1')
    (folder / "evaluation").mkdir()
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--model", f"it={folder}/pipeline", "--dataset", str(tmp_path)])
    append_result(folder / "evaluation" / "results.json", "psnr", 20.5, n=7, seed=3, model="it", dataset="faces")
    return folder
