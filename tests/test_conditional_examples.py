"""examples/inpaint.py, sample.py and toy_bridge.py as commands, with tiny settings."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from run_example import run_example
from safetensors.torch import load_file
from tiny_models import make_gray_pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    make_gray_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_inpaint(pipeline, tmp_path):
    mask = tmp_path / "mask.png"
    Image.new("L", (16, 16), 255).save(mask)
    options = ["--num-images", 2, "--num-completions", 3, "--num-inference-steps", 4, "--output-dir", tmp_path]
    done = run_example("inpaint.py", pipeline, "--mask", mask, "--chain-steps", 2, *options)
    assert done.returncode == 0, done.stderr[-2000:]
    saved = load_file(tmp_path / "inpainting.safetensors")
    assert saved["completions"].shape == (2, 3, 1, 16, 16)
    assert (saved["masked"] == 0.5).all()  # everything is hidden
    assert torch.equal(load_file(tmp_path / "chain.safetensors")["chain"][-1], saved["completions"][:, 0])
    with Image.open(tmp_path / "inpainting.png") as image:
        assert image.size == (5 * 68, 2 * 68)
    assert json.loads((tmp_path / "inpainting.json").read_text())["chain_steps"] == [0, 3]

    failed = run_example("inpaint.py", pipeline, *options, "--mask", "middle")
    assert failed.returncode == 2 and "middle is neither" in failed.stderr


@pytest.mark.slow
def test_sample_writes_the_chain(pipeline, tmp_path):
    options = ["--num-images", 5, "--batch-size", 4, "--num-inference-steps", 4, "--output", tmp_path / "samples.png"]
    done = run_example("sample.py", pipeline, "--chain-steps", 3, *options)
    assert done.returncode == 0, done.stderr[-2000:]
    assert load_file(tmp_path / "chain.safetensors")["chain"].shape == (3, 4, 1, 16, 16)
    with Image.open(tmp_path / "samples.png") as image:
        assert image.size == (3 * 68, 2 * 68)


@pytest.mark.slow
def test_toy_bridge(tmp_path):
    done = run_example("toy_bridge.py", "--max-train-steps", 20, "--num-samples", 50, "--output-dir", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "toy.json").read_text())
    assert record["results"]["exact denoiser"]["successes"] >= 49
    assert all(0 <= r["low"] <= r["successes"] / 50 <= r["high"] <= 1 for r in record["results"].values())
    assert record["settings"]["fixed"] == {"1": 0, "5": 4}
    assert [len(codes) for codes in record["chain"].values()] == [5] * 6
    saved = load_file(tmp_path / "toy.safetensors")
    assert saved["forward"].shape == saved["reverse"].shape == (51, 2, 5)
    torch.testing.assert_close(saved["completions"][:, :, 0], torch.tensor([[1.0, 0.0]]).expand(3, 2))

    failed = run_example("toy_bridge.py", "--fix", *[f"{s}=0" for s in range(1, 7)], "--output-dir", tmp_path)
    assert failed.returncode == 2 and "a walk has only 5" in failed.stderr
