"""examples/benchmark.py runs with tiny settings, and both sides of each comparison compute the same thing."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_every_section_has_finite_figures(tmp_path):
    root, output = Path(__file__).parents[1], tmp_path / "benchmark.json"
    arguments = ["--cpu", "--batch-size=2", "--repeats=2", "--num-inference-steps=2", f"--output={output}"]
    arguments += ["--num-workers=1", "--loading-steps=2"]
    done = subprocess.run(
        [
            sys.executable,
            root / "examples" / "benchmark.py",
            *arguments,
            "--quantizer-shape",
            "2",
            "8",
            "2",
            "2",
            "16",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(output.read_text())
    assert set(report["overhead"]) == {"training_step", "sample_latents", "pipeline"}
    for row in report["overhead"].values():
        assert row["package_ms"] > 0 and row["bare_ms"] > 0 and math.isfinite(row["ratio"])
        assert row["difference"] < 1e-4  # the same weights, noise and arithmetic on both sides
    loading = report["loading"]
    assert set(loading) == {f"digits {kind}" for kind in ("in memory", "on access", "streamed")}
    for row in loading.values():
        low, high = row["speed_quartiles"]
        assert row["loaded_ms"] > 0 and row["fixed_ms"] > 0 and 0 < low <= row["speed"] <= high < math.inf
    kinds = {f"{kind} {mode}" for kind in ("gumbel", "ste", "ema") for mode in ("eval", "train")}
    assert set(report["quantizer_memory"]) == (kinds if Path("/proc/self/clear_refs").exists() else set())
    assert report["device"].startswith("cpu") and report["waits"]["training step"] == "needs a GPU"
