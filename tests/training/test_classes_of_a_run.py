"""Names of classes: saved with the run and its pipeline."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_run import config

from diffusion_bridge_vq import DiffusionBridgeVQPipeline
from diffusion_bridge_vq.pipelines import save_components
from diffusion_bridge_vq.run_folder import RunFolder
from diffusion_bridge_vq.training import E2EConfig, train

SHORT = {"batch_size": 4, "max_train_steps": 2, "checkpoint_every": 0}


def photos(folder: Path, *names: str) -> str:
    for number, name in enumerate(names):
        (folder / "train" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (8, 8), 40 * number + i).save(folder / "train" / name / f"{i}.png")
    return str(folder)


@pytest.fixture(scope="module")
def animals(tmp_path_factory) -> Path:
    """A run on cats and dogs, with its pipeline."""
    folder = tmp_path_factory.mktemp("animals")
    run = RunFolder(folder / "run")
    dataset = photos(folder / "photos", "cat", "dog")
    components = train(config(E2EConfig, run.path, dataset=dataset, class_conditional=True, **SHORT))
    save_components(components, run, run.read_id2label())
    return folder


def test_they_are_saved_with_run_and_pipeline(animals):
    run = RunFolder(animals / "run")
    assert json.loads(run.config.read_text())["id2label"] == {"0": "cat", "1": "dog"}
    assert run.read_id2label() == RunFolder(run.pipeline).read_id2label() == {0: "cat", 1: "dog"}
    pipe = DiffusionBridgeVQPipeline.from_pretrained(run.pipeline)
    images = [
        pipe(class_labels=[label], num_inference_steps=2, generator=torch.manual_seed(0), output_type="pt").images
        for label in ("dog", 1)
    ]
    assert torch.equal(*images)


def test_a_run_without_classes_names_none(animals, tmp_path):
    train(config(E2EConfig, tmp_path, dataset=str(animals / "photos"), **SHORT))
    assert RunFolder(tmp_path).read_id2label() is None


@pytest.mark.parametrize("names", [["cat"], {"a": "cat"}, "cat", 5])
def test_names_that_are_none_are_refused(tmp_path, names):
    """Somebody else's run may say anything."""
    (tmp_path / "config.json").write_text(json.dumps({"id2label": names}))
    with pytest.raises(ValueError, match=r"'id2label' of .*config\.json must name classes by number, got"):
        RunFolder(tmp_path).read_id2label()
