"""PSNR and SSIM against slow formulas and scikit-image's numbers."""

import math

import numpy as np
import pytest
import torch

from diffusion_bridge_vq.evaluation import image_quality, psnr, ssim


def waves() -> tuple[torch.Tensor, torch.Tensor]:
    """Two pairs of color images from formulas, so that another library can be given the same ones."""
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
    monkeypatch.setattr(image_quality, "_SSIM_IMAGES", at_a_time)
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
