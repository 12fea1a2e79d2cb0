"""Scripts of examples/ given what isn't there or doesn't fit: one line and status 2, no traceback."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_models import make_gray_pipeline, make_pipeline

ROOT = Path(__file__).parents[1]


@pytest.fixture
def example(monkeypatch):
    """Runs a script in this process."""

    def run(script: str, *arguments) -> None:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")

    return run


@pytest.fixture
def fails(example, capsys):
    """Runs a script that must end with status 2; the last line that it wrote."""

    def run(script: str, *arguments) -> str:
        with pytest.raises(SystemExit) as ended:
            example(script, *arguments)
        assert ended.value.code == 2
        return capsys.readouterr().err.rstrip().split("\n")[-1]

    return run


@pytest.fixture
def photos(tmp_path) -> tuple[Path, np.ndarray]:
    """A folder of three pictures 6 x 6, and what is in them."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos", pixels


def test_inpaint_own_photos(example, fails, photos, tmp_path):
    make_pipeline().save_pretrained(tmp_path / "pipeline")
    options = ["--num-inference-steps", 2, "--output-dir", tmp_path / "out", "--mask", "left-half", "--chain-steps", 0]
    folder, pixels = photos
    line = fails("inpaint.py", tmp_path / "pipeline", *options)
    assert "--dataset: say which images" in line and "6x6 with 3 channel(s)" in line
    line = fails("inpaint.py", tmp_path / "pipeline", *options, "--dataset", folder)
    assert "has no split 'test'; choose one of train" in line
    assert "doesn't exist" in fails("inpaint.py", tmp_path / "pipeline", *options, "--dataset", tmp_path / "none")
    options += ["--dataset", folder, "--split", "train"]
    assert "has 3" in fails("inpaint.py", tmp_path / "pipeline", *options, "--num-images", 4)
    assert "nor a file" in fails("inpaint.py", tmp_path / "pipeline", *options, "--mask", "middle")
    assert not (tmp_path / "out").exists()

    example("inpaint.py", tmp_path / "pipeline", *options, "--num-completions", 2, "--composite-strength", 1)
    completions = load_file(tmp_path / "out" / "inpainting.safetensors")["completions"]  # (n, k, C, H, W)
    given = torch.from_numpy(pixels).movedim(-1, 1)[:, None, :, :, :2].expand(-1, 2, -1, -1, -1) / 255
    torch.testing.assert_close(completions[..., :2], given, atol=1e-6, rtol=0)


def test_inpaint_digits_by_default(example, tmp_path):
    make_gray_pipeline().save_pretrained(tmp_path / "pipeline")
    example("inpaint.py", tmp_path / "pipeline", "--num-inference-steps", 2, "--output-dir", tmp_path / "out")
    assert load_file(tmp_path / "out" / "inpainting.safetensors")["completions"].shape == (3, 4, 1, 16, 16)


def test_sample(fails, tmp_path):
    assert "none" in fails("sample.py", tmp_path / "none")
    make_pipeline().save_pretrained(tmp_path / "pipeline")
    line = fails("sample.py", tmp_path / "pipeline", "--num-inference-steps", 30)
    assert "`num_inference_steps` must be a whole number in 1..20, got 30" in line
    assert "no classes" in fails("sample.py", tmp_path / "pipeline", "--class-labels", 1)
    assert "--chain-steps at least 0" in fails("sample.py", tmp_path / "pipeline", "--chain-steps", -1)


def test_evaluate(fails, tmp_path, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    output = ["--output-dir", tmp_path / "out"]
    assert "none" in fails("evaluate.py", "kl", "--model", f"bridge={tmp_path / 'none'}", *output)
    two = ["--model", f"bridge={tmp_path / 'one'}", "--model", f"bridge={tmp_path / 'two'}"]
    assert "each needs a name of its own, got bridge, bridge" in fails("evaluate.py", "kl", *two, *output)


@pytest.mark.parametrize("kind", ["vqvae", "prior", "pixelcnn", "e2e"])
def test_training_without_data(fails, kind, tmp_path):
    options = ["--dataset", tmp_path / "none", "--output-dir", tmp_path / "run", "--report-to", "none"]
    options += ["--init-from", tmp_path / "vq"] if kind in ("prior", "pixelcnn") else []
    line = fails(f"train_{kind}.py", "--preset", "digits", *options)
    assert line.startswith(f"train_{kind}.py: error: ") and "none' doesn't exist; give a folder" in line
    assert not (tmp_path / "run").exists()
