"""Runs that go to the Hub while they train."""

import json
import shutil
import threading

import pytest
import torch
from heard_logs import heard
from hub_server import TOKEN
from huggingface_hub import ModelCard
from pipeline_files import draw
from push_helpers import LOGGERS, own_files
from tiny_run import TINY

from diffusion_bridge_vq import DiffusionBridgeVQPipeline
from diffusion_bridge_vq.hub import PushOptions, upload_while_training


def wait_until(condition):
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.01)  # time.sleep does nothing here
    raise AssertionError("it never came")


def test_beside_training(hub, cache, pipe, run, tmp_path, caplog):
    """The folder fills up; the connection goes and comes back; at the end all is there."""
    folder = tmp_path / "growing"
    # down before it starts
    hub.fail("POST", ".", cut=0, times=10_000)
    with heard(caplog, *LOGGERS), upload_while_training(folder, PushOptions("tester/model"), token=TOKEN, every=0.02):
        assert "Training starts all the same" in caplog.text
        folder.mkdir()
        for name in ("config.json", "metrics.jsonl", "samples-000004.png"):
            shutil.copy(run / name, folder)
        wait_until(lambda: "the next one comes in" in caplog.text)
        hub.faults.clear()
        wait_until(lambda: "tester/model" in hub.repos and "samples.png" in hub.files("tester/model"))
        assert "README.md" not in hub.files("tester/model")
        shutil.copytree(run / "pipeline", folder / "pipeline")
    assert hub.repos["tester/model"].private
    assert torch.equal(draw(DiffusionBridgeVQPipeline.from_pretrained("tester/model", token=TOKEN)), draw(pipe))
    assert "README.md" in hub.files("tester/model")


def test_nothing_comes_of_it(hub, cache, run, caplog, monkeypatch):
    """A Hub that is never there costs a warning; one that says no does so at the start; a failed run isn't pushed."""
    with heard(caplog, *LOGGERS):
        hub.fail("POST", ".", status=500, times=10_000)
        with upload_while_training(run, PushOptions("tester/model"), token=TOKEN):
            pass
        assert "push_to_hub.py" in caplog.text and str(run) in caplog.text
    hub.faults.clear()
    with (
        pytest.raises(PermissionError, match="hf auth login"),
        upload_while_training(run, PushOptions("tester/model"), token="hf_wrong"),
    ):
        raise AssertionError("training began")
    with pytest.raises(KeyboardInterrupt), upload_while_training(run, PushOptions("tester/model"), token=TOKEN):
        raise KeyboardInterrupt
    assert own_files(hub, "tester/model") == {}
    hub.log.clear()
    with upload_while_training(run, None):
        pass
    monkeypatch.setenv("RANK", "1")
    with upload_while_training(run, PushOptions("tester/model"), token=TOKEN):
        pass
    assert hub.log == []


def test_training_script(hub, cache, example, tmp_path, capsys):
    options = {
        "output-dir": tmp_path / "e2e",
        "resolution": 8,
        "batch-size": 400,
        "max-train-steps": 4,
        "num-inference-steps": 2,
        "report-to": "none",
        "vqvae": json.dumps(TINY["vqvae"]),
        "unet": json.dumps(TINY["unet"]),
        "push-to-hub": "tester/digits",
        "license": "mit",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    example("train_e2e.py", *arguments, "--dry-run")
    assert hub.log == []
    hub.fail("POST", "/commit/", cut=100, times=2)
    example("train_e2e.py", *arguments)
    assert f"Pushed: {hub.url}/tester/digits" in capsys.readouterr().out
    files = hub.files("tester/digits")
    assert {"samples.png", "reconstructions.png", "training/metrics.jsonl"} <= set(files)
    assert [name for name, content in files.items() if str(tmp_path).encode() in content] == []
    card = ModelCard(files["README.md"].decode())
    assert "4 steps" in card.text and "Optical Recognition" in card.text and card.data.license == "mit"
    pushed, kept = (
        DiffusionBridgeVQPipeline.from_pretrained(name) for name in ("tester/digits", tmp_path / "e2e" / "pipeline")
    )
    assert torch.equal(draw(pushed), draw(kept))
    with pytest.raises(SystemExit):
        example("train_e2e.py", "--public")
    assert "go with --push-to-hub" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        example("train_e2e.py", "--help")
    help_text = capsys.readouterr().out
    assert "--push-to-hub" in help_text and "--max-train-steps" in help_text
