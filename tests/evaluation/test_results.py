"""The file of results: what it holds, and that nothing breaks it."""

import json
import math
import os
import re
import sys
from datetime import UTC, datetime
from importlib import metadata

import pytest
import torch

from diffusion_bridge_vq.evaluation import append_result, append_results, read_results
from diffusion_bridge_vq.evaluation.results import recall_results


def test_results_are_appended_with_their_facts(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/evaluate.py", "--model", "my model"])
    path = tmp_path / "results.json"
    before = datetime.now(UTC)
    first = append_result(path, "frechet", 12.5, n=5000, seed=0, reference="test", extractor="inception", steps=50)
    after = datetime.now(UTC)
    append_result(path, "kl", {"mean": 0.5, "map": [[0.25, 0.75]]}, n=1000, seed=1)
    results = read_results(path)
    assert results[0] == first and len(results) == 2
    assert {k: first[k] for k in ("name", "value", "n", "seed", "reference", "extractor", "steps")} == {
        "name": "frechet",
        "value": 12.5,
        "n": 5000,
        "seed": 0,
        "reference": "test",
        "extractor": "inception",
        "steps": 50,
    }
    assert results[1]["value"]["map"] == [[0.25, 0.75]]
    assert first["versions"]["torch"] == metadata.version("torch")
    assert first["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert first["command"] == "evaluate.py --model 'my model'"
    assert first["device"].startswith("CPU")
    assert before.replace(microsecond=0) <= datetime.fromisoformat(first["time"]) <= after  # in whole seconds
    assert os.listdir(tmp_path) == ["results.json"]


def test_name_of_the_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"A GPU, number {device.index}")
    assert append_result(tmp_path / "r.json", "nll", 1.0, n=1, seed=0, device="cuda:1")["device"] == "A GPU, number 1"


@pytest.mark.parametrize(
    ("value", "facts", "error"),
    [
        (math.nan, {}, ValueError),
        (math.inf, {}, ValueError),
        (torch.ones(2), {}, TypeError),
        (1.0, {"reference": {1, 2}}, TypeError),
        (1.0, {"time": "noon"}, ValueError),
    ],
)
def test_what_is_no_result_leaves_the_file_alone(tmp_path, value, facts, error):
    path = tmp_path / "results.json"
    append_result(path, "nll", 1.0, n=1, seed=0)
    before = path.read_bytes()
    with pytest.raises(error):
        append_result(path, "nll", value, n=1, seed=0, **facts)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["results.json"]


def test_interrupted_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    append_result(path, "nll", 1.0, n=1, seed=0)
    before = path.read_bytes()

    def interrupt(source, target):
        assert json.loads(source.read_text())["results"][1]["value"] == 2.0
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        append_result(path, "nll", 2.0, n=1, seed=0)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["results.json"]


def test_figures_of_a_metric_are_added_together_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    added = append_results(
        path,
        {"psnr": {"value": 20.0, "std": 1.0}, "ssim": {"value": 0.5, "reference": "test"}},
        n=5,
        seed=0,
        model="m",
    )
    assert read_results(path) == added and [r["name"] for r in added] == ["psnr", "ssim"]
    assert all((r["n"], r["model"]) == (5, "m") for r in added)
    assert added[0]["std"] == 1.0 and "std" not in added[1] and "reference" not in added[0]
    before = path.read_bytes()
    for figures in ({"psnr": {"value": 1.0}, "ssim": {"value": math.nan}}, {"psnr": {"value": 1.0, "command": "x"}}):
        with pytest.raises(ValueError):
            append_results(path, figures, n=5, seed=0)
        assert path.read_bytes() == before


def test_what_is_recalled_becomes_the_newest(tmp_path):
    path = tmp_path / "results.json"
    assert recall_results(path, seed=0) == [] and not path.exists()
    for steps in (50, 20):
        append_results(path, {"kl": {"value": steps / 100}, "usage": {"value": 1.0}}, n=9, seed=0, steps=steps)
    fifty, twenty = read_results(path)[:2], read_results(path)[2:]
    before = path.read_bytes()
    assert recall_results(path, steps=20, seed=0) == twenty and path.read_bytes() == before
    assert recall_results(path, steps=10) == recall_results(path, steps=20, solver="ddim") == []
    assert path.read_bytes() == before
    assert recall_results(path, steps=50) == fifty and read_results(path) == [*twenty, *fifty]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"[]",
        b'{"results": []}',
        b'{"format": "diffusion-bridge-vq results"}',
        b'{"format": "diffusion-bridge-vq results", "results": [1]}',
        b'{"format": "diffusion-bridge-vq results", "results": [{"name": "nll"}]}',
    ],
)
def test_other_files_are_neither_read_nor_overwritten(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        read_results(path)
    with pytest.raises(ValueError, match=r"config\.json"):
        append_result(path, "nll", 1.0, n=1, seed=0)
    with pytest.raises(ValueError, match=r"config\.json"):
        recall_results(path, seed=0)
    assert path.read_bytes() == content


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_results(tmp_path / "results.json")


def as_file(*results: dict) -> str:
    return json.dumps({"format": "diffusion-bridge-vq results", "results": list(results)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "isn't a file of results"),
        ('{"format": "diffusion-bridge-vq results", "results": [{"name": "kl", "value": NaN}]}', "the number NaN"),
        (as_file({"name": "kl", "value": 1}, {"name": ["kl"], "value": 1}), 'result 1 must have a string as "name"'),
        (as_file({"name": "kl", "value": 1, "dataset": ["a"]}), 'result 0 must have a string as "dataset"'),
        (as_file({"name": "kl", "value": 1, "weights": {}}), 'result 0 must have a string as "weights"'),
        (as_file({"name": "kl", "value": 1, "std": "much"}), 'result 0 must have a number as "std"'),
        (as_file({"name": "kl", "value": 1, "std": True}), 'result 0 must have a number as "std"'),
    ],
)
def test_damage_is_named(tmp_path, content, message):
    """They ended in RecursionError, or in TypeError and ValueError inside the tables."""
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"results\.json .*{re.escape(message)}"):
        read_results(path)


def test_a_pipe_is_no_file_of_results(tmp_path):
    """Reading it would wait for ever."""
    os.mkfifo(tmp_path / "results.json")
    for call in (read_results, lambda path: recall_results(path, seed=0)):
        with pytest.raises(ValueError, match=r"results\.json must be a file"):
            call(tmp_path / "results.json")
