"""The commands that a command names at its end are ones that its reader can paste."""

import json
import shlex
from pathlib import Path

import pytest

from diffusion_bridge_vq import OUBridgeScheduler
from diffusion_bridge_vq.cli import parse_config
from diffusion_bridge_vq.cli.next_steps import after_pipeline, after_training, command_line
from diffusion_bridge_vq.run_folder import RunFolder
from diffusion_bridge_vq.training import PixelCNNConfig, PriorConfig, VQConfig

STUDENT = {"prediction_type": "sample", "few_step_timesteps": {"1": [999]}, "distilled_guidance_scale": 2.0}


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("examples/train_e2e.py", ["python", "examples/push_to_hub.py"]),
        ("/home/me/clone/examples/sample.py", ["python", "/home/me/clone/examples/push_to_hub.py"]),
        ("dbvq train-e2e", ["dbvq", "push-to-hub"]),
    ],
)
def test_commands_are_started_as_this_one_was(program, words, monkeypatch):
    monkeypatch.setattr("sys.argv", [program, "--seed=3"])
    line = command_line("push-to-hub", Path("my runs/a"), "USER/MODEL")
    assert shlex.split(line) == [*words, "my runs/a", "USER/MODEL"]


def test_classes_are_drawn_in_turn(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["dbvq train-prior"])
    monkeypatch.chdir(tmp_path)
    folder = Path("a/pipeline")
    assert "classes" not in after_pipeline(folder, Path("a"))[0][0]
    folder.mkdir(parents=True)
    index = {"id2label": {"0": "cat", "1": "red"}}
    (folder / "model_index.json").write_text(json.dumps(index))
    (draw, _), _ = after_pipeline(folder, Path("a"))
    assert draw == "dbvq sample a/pipeline --all-classes --guidance-scale 2.5 --output a/samples.png"
    (folder / "model_index.json").write_text(json.dumps(index | {"label_examples": {"0": "Red cat", "1": "cat"}}))
    (draw, _), _ = after_pipeline(folder, Path("a"))
    assert draw.startswith("dbvq sample a/pipeline --class-labels 'Red cat' cat --guidance-scale 2.5 ")


@pytest.mark.parametrize(("settings", "guided"), [(STUDENT, False), ({}, True)])
def test_a_student_takes_no_guidance(settings, guided, tmp_path):
    OUBridgeScheduler(**settings).save_pretrained(tmp_path / "pipeline" / "scheduler")
    (tmp_path / "pipeline" / "model_index.json").write_text('{"id2label": {"0": "cat", "1": "dog"}}')
    (draw, _), _ = after_pipeline(tmp_path / "pipeline", tmp_path)
    assert "--all-classes" in draw and ("--guidance-scale" in draw) is guided


def test_after_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["dbvq train"])
    run = RunFolder(tmp_path / "a")
    config = VQConfig.from_preset("cifar10-tiny", dataset="photos", output_dir=run.path)
    ((line, _),) = after_training([run.autoencoder], config)
    start = "dbvq train-prior --preset cifar10-tiny --dataset photos "
    assert line == f"{start}--vqvae-from {run.path} --output-dir {run.path}-prior"
    options = {"resolution": 64, "split": "all", "streaming": True, "random_flip": False}
    config = VQConfig.from_preset("cifar10-tiny", dataset="photos", output_dir=run.path, **options)
    ((line, _),) = after_training([run.autoencoder], config)
    given = shlex.split(line)[2:]
    again = parse_config(PriorConfig, given)  # the prior sees the same images
    assert all(getattr(again, name) == getattr(config, name) for name in (*options, "channels", "dataset", "preset"))
    config = PixelCNNConfig.from_preset("digits", init_from=run.path, output_dir=run.path)
    (draw, _), (push, _) = after_training([run.pipeline], config)
    assert shlex.split(draw)[0] == "python" and "PixelCNNVQPipeline" in draw
    (run.pipeline / "unet").mkdir(parents=True)
    assert after_training([run.pipeline], config)[0][0].startswith("dbvq sample ")
    assert push == f"dbvq push-to-hub {run.path} USER/MODEL"
