"""Which folder a pipeline is loaded from, and the message for another."""

from pathlib import Path

import pytest
from tiny_models import make_pipeline

from diffusion_bridge_vq import DiffusionBridgeVQPipeline
from diffusion_bridge_vq.pipelines import load_pipeline
from diffusion_bridge_vq.pipelines.saved_folder import find_pipeline_folder


@pytest.fixture
def run(tmp_path) -> Path:
    """A run that ended, without weights."""
    folder = tmp_path / "outputs" / "run"
    (folder / "pipeline").mkdir(parents=True)
    (folder / "pipeline" / "model_index.json").touch()
    (folder / "checkpoints" / "step-00000004").mkdir(parents=True)
    return folder


def test_the_folder_of_a_run(run):
    assert find_pipeline_folder(run) == find_pipeline_folder(run / "pipeline") == run / "pipeline"


def test_a_run_loads_as_its_pipeline(tmp_path):
    """It was 'neither a folder here nor a repository on the Hub'."""
    make_pipeline().save_pretrained(tmp_path / "run" / "pipeline")
    for load in (DiffusionBridgeVQPipeline.from_pretrained, load_pipeline):
        assert isinstance(load(tmp_path / "run"), DiffusionBridgeVQPipeline)


def test_the_home_folder_is_expanded(run, monkeypatch):
    monkeypatch.setenv("HOME", str(run.parent))
    assert find_pipeline_folder("~/run") == run / "pipeline"


@pytest.mark.parametrize("name", ["user/model", "model", "a-user/a.model_2"])
def test_ids_of_the_hub_are_left_alone(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_pipeline_folder(name) is None


def test_a_checkpoint_of_a_run(run):
    checkpoint = run / "checkpoints" / "step-00000004"
    with pytest.raises(ValueError, match=r"is a checkpoint of a run: write its pipeline with .*export_checkpoint.py"):
        find_pipeline_folder(checkpoint)


def test_a_run_that_is_not_over(run):
    (run / "pipeline" / "model_index.json").unlink()
    (run / "pipeline").rmdir()
    with pytest.raises(ValueError, match=r"The run in .* isn't over: write its pipeline with"):
        find_pipeline_folder(run)


def test_the_run_of_an_autoencoder(tmp_path):
    (tmp_path / "vqvae").mkdir()
    with pytest.raises(ValueError, match="trained an autoencoder alone, which draws nothing"):
        find_pipeline_folder(tmp_path)


def test_a_component(run):
    (run / "pipeline" / "unet").mkdir()
    with pytest.raises(ValueError, match=r"unet is a component of a pipeline: give .*run/pipeline'"):
        find_pipeline_folder(run / "pipeline" / "unet")


def test_a_file(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="is a file: give the folder"):
        find_pipeline_folder(tmp_path / "model.safetensors")


def test_another_folder(run, tmp_path):
    with pytest.raises(ValueError, match=r"has no model_index.json.*run/pipeline"):
        find_pipeline_folder(run.parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no model_index.json, so it isn't the folder of a pipeline"):
        find_pipeline_folder(tmp_path / "empty")


def test_a_folder_that_is_not_there(run):
    """It was looked up on the Hub."""
    with pytest.raises(ValueError, match=r"There is no folder .*outputs/rnu.* Did you mean .*outputs/run"):
        find_pipeline_folder(run.parent / "rnu")
