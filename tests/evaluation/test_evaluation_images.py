"""PSNR and SSIM against slow formulas and scikit-image's numbers; precision and recall on constructed sets."""

import math

import numpy as np
import pytest
import torch

from diffusion_bridge_vq.evaluation import images as module
from diffusion_bridge_vq.evaluation import precision_recall, psnr, ssim


def waves() -> tuple[torch.Tensor, torch.Tensor]:
    """Two pairs of colour images from formulas, so that another library can be given the same ones."""
    row, column = np.mgrid[:17, :14]
    x = np.stack([[0.5 + 0.4 * np.sin(0.3 * row * (c + 1) + 0.5 * column + b) for c in range(3)] for b in range(2)])
    y = np.clip(0.9 * x + 0.1 * np.cos(0.7 * row - 0.2 * column), 0, 1)
    return torch.from_numpy(x), torch.from_numpy(y)


def slow_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Eq. 13 of Wang et al. 2004 position by position, with the two-dimensional window."""
    weight = np.array([[math.exp(-(i * i + j * j) / 4.5) for j in range(-5, 6)] for i in range(-5, 6)])
    weight /= weight.sum()
    values = []
    for channel in range(x.shape[0]):
        for i in range(x.shape[1] - 10):
            for j in range(x.shape[2] - 10):
                a, b = x[channel, i : i + 11, j : j + 11], y[channel, i : i + 11, j : j + 11]
                mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
                var_a, var_b = (weight * (a - mean_a) ** 2).sum(), (weight * (b - mean_b) ** 2).sum()
                covariance = (weight * (a - mean_a) * (b - mean_b)).sum()
                values.append(
                    (2 * mean_a * mean_b + 1e-4)
                    * (2 * covariance + 9e-4)
                    / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
                )
    return float(np.mean(values))


@pytest.mark.parametrize("at_a_time", [1, 256])
def test_ssim_is_the_slow_formula(monkeypatch, at_a_time):
    monkeypatch.setattr(module, "_SSIM_IMAGES", at_a_time)
    x, y = waves()
    expected = [slow_ssim(a.numpy(), b.numpy()) for a, b in zip(x, y, strict=True)]
    assert ssim(x, y).tolist() == pytest.approx(expected, abs=1e-12)
    assert ssim(x, 1 - x).tolist() == pytest.approx([slow_ssim(a.numpy(), 1 - a.numpy()) for a in x], abs=1e-12)
    torch.testing.assert_close(ssim(x, x), torch.ones(2, dtype=torch.float64))


def test_scikit_images_numbers():
    """
    scikit-image 0.25.2 on the same images: `structural_similarity(a, b, channel_axis=0, data_range=1,
    gaussian_weights=True, sigma=1.5, use_sample_covariance=False)` and `peak_signal_noise_ratio(a, b, data_range=1)`.
    """
    x, y = waves()
    assert ssim(x, y).tolist() == pytest.approx([0.9463375209, 0.94984956589], abs=1e-9)
    assert psnr(x, y).tolist() == pytest.approx([20.95929751389, 20.894261879908], abs=1e-9)


def test_psnr():
    x = torch.zeros(3, 1, 2, 2)
    y = x.clone()
    y[0] = 0.1
    y[1, 0, 0, 0] = 1.0
    assert psnr(x, y)[:2].tolist() == pytest.approx([20.0, 10 * math.log10(4)])
    assert psnr(x, y)[2] == math.inf


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 15), "one shape"),
        (torch.rand(3, 16, 16), torch.rand(3, 16, 16), "one shape"),
        (torch.rand(2, 3, 16, 16) - 0.5, torch.rand(2, 3, 16, 16), r"`images` must be floats in \[0, 1\]"),
        (torch.rand(2, 3, 16, 16), torch.full((2, 3, 16, 16), math.nan), "`reference` must be floats"),
        (torch.ones(2, 3, 16, 16, dtype=torch.uint8), torch.rand(2, 3, 16, 16), "floats"),
    ],
)
def test_pairs_that_are_refused(metric, x, y, message):
    with pytest.raises(ValueError, match=message):
        metric(x, y)


def test_ssim_needs_its_window():
    with pytest.raises(ValueError, match="11"):
        ssim(torch.rand(1, 1, 10, 20), torch.rand(1, 1, 10, 20))


def test_precision_and_recall_of_constructed_sets():
    """
    Real points 0, 1, ..., 9 on a line; with k = 1 every ball has radius 1. Samples 20, 20.5, 21, 0.5 have the radii
    0.5, 0.5, 0.5 and 19.5: only 0.5 lies on the real manifold, and only its ball reaches real points, all of them.
    """
    reference = torch.arange(10.0)[:, None]
    samples = torch.tensor([[20.0], [20.5], [21.0], [0.5]])
    assert precision_recall(samples, reference, k=1) == (0.25, 1.0)
    assert precision_recall(reference, samples, k=1) == (1.0, 0.25)
    assert precision_recall(samples[:3], reference, k=1) == (0.0, 0.0)
    assert precision_recall(reference, reference) == (1.0, 1.0)
    # a dropped mode: samples of one cluster only
    near, far = torch.rand(50, 2, dtype=torch.float64), 100 + torch.rand(50, 2, dtype=torch.float64)
    assert precision_recall(near, torch.cat([near, far])) == (1.0, 0.5)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall_point_by_point(monkeypatch, k):
    x, y = torch.randn(41, 2), 0.7 * torch.randn(37, 2) + 1.5

    def on_manifold(points, manifold):
        hits = 0
        for p in points.double().numpy():
            for j, m in enumerate(manifold.double().numpy()):
                others = np.delete(manifold.double().numpy(), j, axis=0)
                if math.dist(p, m) <= sorted(math.dist(m, o) for o in others)[k - 1]:
                    hits += 1
                    break
        return hits / len(points)

    expected = (on_manifold(x, y), on_manifold(y, x))
    assert min(expected) > 0 and max(expected) < 1
    assert precision_recall(x, y, k) == pytest.approx(expected)
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 200)  # 4 rows at a time
    assert precision_recall(x, y, k) == pytest.approx(expected)


def test_far_from_the_origin_digits_are_kept():
    samples, reference = torch.tensor([[0.5], [30.0]]), torch.arange(10.0)[:, None]
    samples = samples.repeat(3, 1) + torch.linspace(0, 0.1, 6)[:, None]
    assert precision_recall(samples + 1e6, reference + 1e6, k=1).precision == 0.5


@pytest.mark.parametrize(
    ("features", "reference", "k", "message"),
    [
        (torch.rand(3, 2), torch.rand(9, 2), 3, "`features` .* more than k = 3"),
        (torch.rand(9, 2), torch.rand(3, 2), 3, "`reference` .* more than k = 3"),
        (torch.rand(9, 2), torch.rand(9, 3), 3, "dimensions"),
        (torch.rand(9, 2), torch.rand(9, 2), 0, "at least 1"),
        (torch.ones(9, 2, dtype=torch.long), torch.rand(9, 2), 3, "float"),
    ],
)
def test_sets_that_are_refused(features, reference, k, message):
    with pytest.raises(ValueError, match=message):
        precision_recall(features, reference, k)
