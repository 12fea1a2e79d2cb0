"""Novelty against truth: copies are found, and independent draws are as near as test images are."""

import math

import pytest
import torch
from tiny_models import make_gray_pipeline

from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.evaluation import (
    EvaluationConfig,
    ModelOutputs,
    RealImages,
    SampleStore,
    novelty,
    read_results,
    real_images,
    run_metrics,
    write_report,
)


def draws(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


def test_independent_draws_give_the_quantile():
    """Standard errors of about 0.005 for 2,000 samples, and of the threshold."""
    train, test = draws(3000, 0), draws(2000, 1)
    assert novelty(draws(2000, 2), train, test).fraction == pytest.approx(0.05, abs=0.015)
    assert novelty(draws(2000, 2), train, test, quantile=0.3).fraction == pytest.approx(0.3, abs=0.04)
    assert novelty(test, train, test).fraction == pytest.approx(0.05, abs=1e-3)


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_copies_are_found(offset):
    """Half of the samples are training images, which are named; also of features far from 0."""
    train, test, order = draws(500, 0) + offset, draws(400, 1) + offset, torch.randperm(500)[:200]
    samples = torch.cat([train[order], draws(200, 2) + offset])
    found = novelty(samples, train, test)
    assert torch.equal(found.nearest[:200], order) and (found.distances[:200] == 0).all()
    assert found.fraction == pytest.approx(0.5 + 0.5 * 0.05, abs=0.02)


def test_nearly_copies_are_found_and_what_is_far_is_not():
    train, test = draws(500, 0), draws(400, 1)
    assert novelty(train[:100] + 1e-3, train, test).fraction == 1.0
    assert novelty(draws(100, 2) + 20, train, test).fraction == 0.0


def test_where_test_images_are_copies_too():
    """The threshold is 0 then, and a copy is still one."""
    train = draws(100, 0)
    found = novelty(torch.cat([train[:3], draws(1, 5)]), train, torch.cat([train[:50], draws(50, 1)]))
    assert found.threshold == 0 and found.fraction == 0.75


def test_nearest_is_the_slow_search(monkeypatch):
    monkeypatch.setattr("diffusion_bridge_vq.evaluation.memorization._BLOCK_ELEMENTS", 100)
    samples, train = draws(23, 0), draws(31, 1)
    found = novelty(samples, train, draws(9, 2))
    for i, sample in enumerate(samples.tolist()):
        distances = [math.dist(sample, row) for row in train.tolist()]
        assert found.nearest[i] == distances.index(min(distances))
        assert found.distances[i].item() == pytest.approx(min(distances), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": torch.randn(3, 5)}, "`train` must have 5 dimensions"),
        ({"test": torch.full((3, 6), math.nan)}, "`test` must be finite"),
        ({"train": torch.empty(0, 6)}, "`train` must be of shape"),
        ({"quantile": 1.5}, "`quantile` must be below 1, got 1.5"),
        ({"quantile": 0}, "`quantile` must be finite and above 0"),
    ],
)
def test_what_is_refused(change, message):
    good = {"samples": draws(3, 0), "train": draws(5, 1), "test": draws(3, 2)}
    with pytest.raises(ValueError, match=message):
        novelty(**good | change)


def test_the_metric_and_its_sheet(tmp_path, monkeypatch):
    """Digits as samples: a quarter of them copies from the training images, all others from the test images."""

    def quarters(images):
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 4).flatten(1)

    monkeypatch.setattr(real_images, "load_extractor", lambda name, device: quarters)
    splits = [load_images("digits", resolution=16, channels=1, split=split) for split in ("train", "test")]
    real = RealImages("digits", *splits, 100, "quarters", "cpu", tmp_path / "features")
    settings = EvaluationConfig(num_inference_steps=2, num_train_images=400)
    store = SampleStore(tmp_path / "figures.safetensors")
    outputs = ModelOutputs("bridge", make_gray_pipeline(), real, store, settings)
    train = real.training_set(400).images
    outputs.samples = torch.cat([train[:25], real.test[25:]])
    outputs.reconstructions = real.test
    run_metrics(("novelty",), outputs, tmp_path)
    found = {r["name"]: r for r in read_results(tmp_path / "results.json")}
    for space in ("features", "pixels"):
        assert found[f"near_train_{space}"]["value"] == pytest.approx(0.25 + 0.75 * 0.05, abs=0.03)
        assert found[f"near_train_{space}_reconstructions"]["value"] == pytest.approx(0.05, abs=0.01)
        assert found[f"near_train_{space}"]["nearest_distance"] == 0
    sheet = store.pictures("nearest")["bridge"]
    assert sheet.shape == (100, 3, 1, 16, 16)
    assert torch.equal(sheet[:, 0], outputs.samples)
    assert torch.equal(sheet[:25, 1], train[:25]) and torch.equal(sheet[:25, 2], train[:25])
    assert tmp_path / "nearest-bridge.png" in write_report(tmp_path)
