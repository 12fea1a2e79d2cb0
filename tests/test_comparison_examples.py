"""
examples/reproduce.py and evaluate.py as commands, on miniImageNet's layout of CSV splits: every stage in a fraction of
a second, and the same again.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.evaluation import read_results

ROOT = Path(__file__).parents[1]


def run(script: str, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "examples" / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )


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


@pytest.mark.slow
def test_reproduce_and_evaluate(tmp_path):
    dataset = tmp_path / "mini"
    write_csv_layout(dataset)
    command = ["--preset", "digits", "--dataset", dataset, "--test-split", "validation"]
    command += ["--budget", 0.01, "--batch-size", 8, "--device", "cpu"]
    command += ["--num-images", 40, "--num-nll-images", 8, "--num-nll-samples", 1, "--num-inference-steps", 2]
    command += ["--metrics", "nll", "kl", "--output-dir", tmp_path]
    done = run("reproduce.py", *command)
    assert done.returncode == 0, done.stderr[-2000:]
    results = read_results(tmp_path / "evaluation" / "results.json")
    for model in ("bridge", "pixelcnn", "bridge-e2e"):
        names = {r["name"] for r in results if r["model"] == model and r["preset"] == "digits"}
        assert {"nll", "nll_top_left", "kl", "kl_floor"} <= names
    tables = (tmp_path / "evaluation" / "tables.md").read_text()
    value = next(r["value"] for r in results if r["model"] == "pixelcnn" and r["name"] == "nll")
    assert "All results on mini" in tables and f"{value:.4g}" in tables

    for stage in ("vq", "bridge", "pixelcnn", "bridge-e2e", "evaluation"):  # what one carries home
        files = [p for p in (tmp_path / stage).rglob("*") if p.is_file()]
        results_only = [p for p in files if not {"checkpoints", "pipeline", "vqvae"} & set(p.parts)]
        assert 1 <= len(results_only) <= 8 and all(p.stat().st_size < 2**24 for p in results_only), results_only

    weights = tmp_path / "bridge" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.stat().st_mtime_ns
    again = run("reproduce.py", *command)
    assert again.returncode == 0 and again.stdout.count("done before") == 5
    assert weights.stat().st_mtime_ns == before

    one = ["--model", f"bridge={tmp_path / 'bridge' / 'pipeline'}", "--num-images", 40]
    measured = run("evaluate.py", "reconstruction", *one, "--output-dir", tmp_path / "more")
    assert measured.returncode == 0, measured.stderr[-2000:]
    assert {r["name"] for r in read_results(tmp_path / "more" / "results.json")} == {"psnr", "ssim"}
    failed = run("evaluate.py", "fid", *one, "--extractor", "efficientnet-lite0", "--output-dir", tmp_path / "more")
    assert failed.returncode == 2 and "1281 images" in failed.stderr
