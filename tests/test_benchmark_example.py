"""The benchmark runs from its command line, compares like with like and writes finite figures."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_benchmark(tmp_path):
    output = tmp_path / "figures" / "benchmark.json"
    options = "--cpu --preset digits --batch-size 2 --num-inference-steps 3 --repeats 2 --quantizer-shape 8 16 4 4 64"
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "benchmark.py", *options.split(), "--output", output],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())

    assert set(report["overhead"]) == {"training_step", "sample_latents", "pipeline"}
    for name, row in report["overhead"].items():
        assert name in done.stdout
        low, high = row["ratio_quartiles"]
        assert 0 < low <= row["ratio"] <= high < math.inf
        assert 0 < row["package_ms"] < math.inf
        assert 0 < row["bare_ms"] < math.inf
        # the bare loop is another implementation: same weights, same noise, same result
        assert 0 <= row["difference"] < 1e-4

    memory = report["quantizer_memory"]
    if Path("/proc/self/clear_refs").exists():
        assert set(memory) == {f"{kind} {mode}" for kind in ("gumbel", "ste", "ema") for mode in ("eval", "train")}
    for name, row in memory.items():
        assert 0 <= row["peak_mb"] < math.inf
        # latents 8 x 16 x 4 x 4, codebook 64 x 16 (which the EMA moves without a gradient), float32
        numbers = {"eval": 0, "train": 2048 if name.startswith("ema") else 2048 + 1024}[name.split()[1]]
        assert row["gradients_mb"] == numbers * 4 / 1e6

    assert report["waits"] == dict.fromkeys(("training step", "sampling loop", "sampling call"), "needs a GPU")
    assert report["repeats"] == 2
    assert "torch" in report["versions"]
    assert report["device"].startswith("cpu")
