"""The recipe of CONTRIBUTING.md for a metric: one function and one registry line."""

import pytest
from tiny_models import make_gray_pipeline

from diffusion_bridge_vq.evaluation import (
    METRICS,
    EvaluationConfig,
    Measurement,
    Metric,
    evaluate_pipelines,
    read_results,
)


def brightness(outputs, count: int) -> Measurement:
    pixels = outputs.samples[:count].float() / 255
    return Measurement({"brightness": {"value": pixels.mean().item()}})


def test_a_metric_of_ones_own_is_measured_cached_and_stored(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(METRICS, "brightness", Metric(brightness, frozenset({"samples"})))
    pipe = make_gray_pipeline()
    pipe.save_pretrained(tmp_path / "pipeline")
    folders = {"bridge": tmp_path / "pipeline", "autoencoder": tmp_path / "pipeline" / "vqvae"}
    settings = EvaluationConfig(num_images=12, num_inference_steps=2)
    for _ in range(2):
        evaluate_pipelines(folders, "digits", tmp_path, settings, ("brightness", "reconstruction"))
    found = [r for r in read_results(tmp_path / "results.json") if r["name"] == "brightness"]
    assert [(r["model"], r["n"]) for r in found] == [("bridge", 12)] and 0 < found[0]["value"] < 1
    output = capsys.readouterr().out
    assert "brightness: skipped, there are no samples" in output and "(measured before)" in output
    with pytest.raises(ValueError, match="autoencoder: its metrics are rfid, reconstruction"):
        evaluate_pipelines({"alone": folders["autoencoder"]}, "digits", tmp_path, settings, ("brightness",))
