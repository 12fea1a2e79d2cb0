"""
examples/reproduce.py and evaluate.py as commands, on miniImageNet's layout of CSV splits: every stage in a fraction of
a second, and the same again.
"""

import csv
import json
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from narrow_networks import narrow_presets
from PIL import Image
from run_example import ROOT, run_example
from safetensors.torch import load_file
from tiny_models import make_gray_pipeline
from warm_processes import Script

from diffusion_bridge_vq import GumbelVQModel, comparison
from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.evaluation import read_results
from diffusion_bridge_vq.training.fault_tolerance.checkpoint import list_checkpoints


@pytest.fixture
def command(tmp_path) -> list:
    """Options of reproduce.py but for the folder."""
    dataset = tmp_path / "mini"
    write_csv_layout(dataset)
    options = ["--preset", "digits", "--dataset", dataset, "--test-split", "validation"]
    options += ["--budget", 0.01, "--batch-size", 8, "--device", "cpu"]
    options += ["--num-images", 40, "--num-nll-images", 8, "--num-nll-samples", 1, "--num-inference-steps", 2]
    return [*options, "--metrics", "nll", "kl", "--output-dir"]


def write_csv_layout(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    for split, source in (("train", "train"), ("val", "test")):
        digits = load_images("digits", resolution=16, channels=1, split=source)
        with (folder / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["filename", "label"])
            for i in range(100):
                item = digits[i]
                name = f"{split}{i}.png"
                Image.fromarray(item["images"][0].numpy()).save(folder / "images" / name)
                rows.writerow([name, f"n{item['labels']}"])


def reproduce(*arguments) -> subprocess.CompletedProcess[str]:
    return run_example("reproduce.py", *arguments, before=narrow_presets)


@pytest.mark.slow
def test_reproduce_and_evaluate(command, tmp_path):
    done = reproduce(*command, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    results = read_results(tmp_path / "evaluation" / "results.json")
    for model in ("bridge", "pixelcnn", "bridge-e2e"):
        names = {r["name"] for r in results if r["model"] == model and r["preset"] == "digits"}
        assert {"nll", "nll_top_left", "kl", "kl_floor"} <= names
    tables = (tmp_path / "evaluation" / "tables.md").read_text()
    value = next(r["value"] for r in results if r["model"] == "pixelcnn" and r["name"] == "nll")
    assert "All results on mini" in tables and f"{value:.4g}" in tables

    for stage in ("vq", "bridge", "pixelcnn", "bridge-e2e", "evaluation"):  # what one carries home, or to the next
        files = [p.relative_to(tmp_path / stage) for p in (tmp_path / stage).rglob("*") if p.is_file()]
        state = [p for p in files if p.parts[0] in ("pipeline", "vqvae")]
        own = ("checkpoints", "encoded", ".lock")  # what only the run itself needs
        figures = [p for p in files if p.parts[0] not in ("pipeline", "vqvae", *own)]
        assert len(state) <= 8 and (state or stage == "evaluation")
        assert 1 <= len(figures) <= 8 and all((tmp_path / stage / p).stat().st_size < 2**24 for p in figures), figures

    weights = tmp_path / "bridge" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.stat().st_mtime_ns
    measured = (tmp_path / "evaluation" / "results.json").read_bytes()
    again = reproduce(*command, tmp_path)
    assert again.returncode == 0 and again.stdout.count("done before") == 4
    assert again.stdout.count("(measured before)") == len(results)
    assert weights.stat().st_mtime_ns == before
    assert (tmp_path / "evaluation" / "results.json").read_bytes() == measured

    one = ["--model", f"bridge={tmp_path / 'bridge' / 'pipeline'}", "--num-images", 40]
    measured = run_example("evaluate.py", "reconstruction", *one, "--output-dir", tmp_path / "more")
    assert measured.returncode == 0, measured.stderr[-2000:]
    names = {r["name"] for r in read_results(tmp_path / "more" / "results.json")}
    assert names == {"psnr", "ssim", "usage", "perplexity"}
    failed = run_example(
        "evaluate.py", "fid", *one, "--extractor", "efficientnet-lite0", "--output-dir", tmp_path / "more"
    )
    assert failed.returncode == 2 and "1281 images" in failed.stderr


@pytest.mark.slow
def test_stages_need_only_what_the_ones_before_say(command, tmp_path):
    """On one machine vq, on the next its autoencoder and a prior, then the other prior: each is measured once."""

    def stages(*names, folder):
        done = reproduce(*command, folder, "--stage", *names)
        assert done.returncode == 0, done.stderr[-2000:]
        found = read_results(folder / "evaluation" / "results.json") if "evaluate" in names else []
        return done.stdout, [r["model"] for r in found if r["name"] == "nll"]

    first, second = tmp_path / "first", tmp_path / "second"
    stages("vq", folder=first)
    shutil.copytree(first / "vq" / "vqvae", second / "vq" / "vqvae")
    assert stages("bridge", "evaluate", folder=second)[1] == ["bridge"]
    trained = load_file(first / "vq" / "vqvae" / "diffusion_pytorch_model.safetensors")
    carried = load_file(second / "bridge" / "pipeline" / "vqvae" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(trained[name], tensor) for name, tensor in carried.items())
    output, measured = stages("vq", "pixelcnn", "evaluate", folder=second)
    assert "vq: done before" in output and measured == ["bridge", "pixelcnn"]
    assert "pixelcnn" in (second / "evaluation" / "tables.md").read_text()


def start(command: list, folder: Path, stage: str) -> Script:
    return Script(ROOT / "examples" / "reproduce.py", *command, folder, "--stage", stage, before=narrow_presets)


def wait_for(script: Script, found: Callable[[], bool]) -> None:
    while not found():
        assert script.process.is_alive(), script.end()
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_training_stage_goes_on(command, tmp_path):
    """Killed after its first checkpoint, and again while it saved what came out."""
    run = tmp_path / "vq"
    run.mkdir()
    (run / "steps.json").write_text("40")
    script = start(command, tmp_path, "vq")
    wait_for(script, (run / "checkpoints" / "step-00000010").is_dir)
    script.process.kill()
    script.end()
    assert not (run / "vqvae").exists()
    (run / "vqvae.partial").mkdir()
    done = reproduce(*command, tmp_path, "--stage", "vq")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resumed from" in done.stdout and "done before" not in done.stdout
    assert list_checkpoints(run / "checkpoints")[-1].name == "step-00000040"
    assert GumbelVQModel.from_pretrained(run / "vqvae").config.num_vq_embeddings == 64
    assert not (run / "vqvae.partial").exists()


@pytest.mark.slow
def test_an_evaluation_that_is_told_to_stop_goes_on(command, tmp_path):
    make_gray_pipeline().save_pretrained(tmp_path / "bridge" / "pipeline")
    evaluation = tmp_path / "evaluation"
    slow = [*command[:-1], "--num-nll-samples", 100, command[-1]]  # the last of an option counts
    script = start(slow, tmp_path, "evaluate")
    wait_for(script, (evaluation / "results.json").is_file)  # of the first mask
    script.process.terminate()
    stopped = script.end()
    assert stopped.returncode == 143 and "run the same command again" in stopped.stderr
    first = read_results(evaluation / "results.json")
    assert [r["name"] for r in first] == ["nll", "nll_joint"]
    done = reproduce(*slow, tmp_path, "--stage", "evaluate")
    assert done.returncode == 0, done.stderr[-2000:]
    found = read_results(evaluation / "results.json")
    assert found[:2] == first and len(found) == len({r["name"] for r in found}) == 8
    assert {"nll_top_left", "nll_joint_top_left", "kl", "kl_floor"} <= {r["name"] for r in found}
    assert (evaluation / "tables.md").is_file()


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs reproduce.py in this process; the line that it ended with."""
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def run(*stages_and_others: str) -> str:
        command = ["reproduce.py", "--dataset", "digits", "--output-dir", str(tmp_path), "--stage", *stages_and_others]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit, match="2"):
            runpy.run_path(str(ROOT / "examples" / "reproduce.py"), run_name="__main__")
        return capsys.readouterr().err

    return run


def test_an_evaluation_needs_a_pipeline(refused):
    assert "has no pipeline to evaluate" in refused("evaluate")


@pytest.mark.parametrize("stage", ["bridge", "evaluate"])
def test_a_run_of_another_preset_is_refused(refused, done_run, stage):
    assert "has preset digits, not cifar10: give another" in refused(stage, "--preset", "cifar10")


def test_a_run_of_another_seed_is_refused(refused, done_run):
    assert "has seed 0, not 1" in refused("bridge", "--preset", "digits", "--seed", "1")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--batch-size", "8"), "has batch_size 16, not 8"),
        (("--budget", "7"), "steps for budget 5.0, not 7.0"),
        (("--batch-size", "9"), "has batch_size 16, not 9"),
    ],
)
def test_a_run_of_another_time_or_batch_size_is_refused(refused, done_run, tmp_path, option, words):
    (tmp_path / "bridge" / "steps.json").write_text('{"steps": 40, "budget": 5.0}')
    assert words in refused("bridge", "--preset", "digits", "--batch-size", "16", *option)


def test_steps_that_were_timed_for_other_settings_are_refused(refused, tmp_path):
    """Of a stage that was interrupted before its first checkpoint."""
    (tmp_path / "vq").mkdir()
    timed = {"steps": 40, "budget": 5.0, "preset": "digits", "batch_size": 16, "mixed_precision": "no"}
    (tmp_path / "vq" / "steps.json").write_text(json.dumps(timed))
    start = ("vq", "--budget", "5", "--preset")
    assert "steps for batch_size 16, not 8" in refused(*start, "digits", "--batch-size", "8")
    assert "steps for preset digits, not cifar10-tiny" in refused(*start, "cifar10-tiny", "--batch-size", "16")


@pytest.mark.parametrize("content", ["ten", "-1", "1.5", "[]", "1e999", "true"])
def test_a_number_of_steps_that_is_none(refused, tmp_path, content):
    (tmp_path / "vq").mkdir()
    (tmp_path / "vq" / "steps.json").write_text(content)
    assert "steps.json" in (line := refused("vq", "--preset", "digits")) and "Remove it" in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "has preset None, not digits"),
        ("[]", "config.json must hold a JSON object, got list"),
        ("no JSON", "config.json isn't JSON"),
    ],
)
def test_settings_of_a_run_that_are_none(refused, done_run, tmp_path, content, words):
    (tmp_path / "bridge" / "config.json").write_text(content)
    assert words in refused("bridge", "--preset", "digits")


@pytest.fixture
def done_run(tmp_path) -> None:
    (tmp_path / "bridge" / "pipeline").mkdir(parents=True)
    settings = {"preset": "digits", "dataset": "digits", "split": "train", "seed": 0, "batch_size": 16}
    (tmp_path / "bridge" / "config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(("option", "split"), [("--train-split", "nope"), ("--test-split", "validation")])
def test_missing_data_is_refused_before_training(option, split, refused, tmp_path, monkeypatch):
    """That of the evaluation, too, and no folder stays."""
    monkeypatch.setattr(comparison, "steps_within", lambda config, seconds: pytest.fail("steps were timed"))
    line = refused(*comparison.TRAINING_STAGES, "evaluate", "--preset", "digits", option, split)
    assert f"has no split '{split}'" in line and not list(tmp_path.iterdir())
