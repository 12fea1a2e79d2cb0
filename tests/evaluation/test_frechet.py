"""Frechet distance against scipy's matrix root and the closed form of Gaussians."""

import math
import sys

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from diffusion_bridge_vq.evaluation import frechet_distance


def with_moments(n: int, mean: torch.Tensor, root: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Rows whose sample mean is `mean` and whose sample covariance is root root^T, exactly."""
    x = torch.randn(n, len(mean), generator=generator, dtype=torch.float64)
    x = x - x.mean(dim=0)
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False).T
    return mean + whitened @ root.T


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_closed_form_of_gaussians_with_common_axes(generator):
    """Covariances that commute: sum of squared differences of standard deviations along the common axes."""
    d = 12
    axes = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
    stds = [torch.rand(d, generator=generator, dtype=torch.float64) + 0.1 for _ in range(2)]
    means = [torch.randn(d, generator=generator, dtype=torch.float64) for _ in range(2)]
    x, y = (with_moments(50 + i, means[i], axes * stds[i] @ axes.T, generator) for i in range(2))
    expected = (means[0] - means[1]).square().sum() + (stds[0] - stds[1]).square().sum()
    assert frechet_distance(x, y) == pytest.approx(expected.item(), rel=1e-10)


def test_scipys_matrix_root(generator):
    d = 20
    x, y = (torch.randn(n, d, generator=generator) @ torch.randn(d, d, generator=generator) for n in (60, 45))
    a, b = x.double().numpy(), y.double().numpy() + 0.3
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(torch.from_numpy(b), torch.from_numpy(a)) == pytest.approx(expected, rel=1e-9)


def test_a_set_and_itself(generator):
    """Nearly dependent features, with eigenvalues over twelve orders."""
    x = torch.randn(200, 30, generator=generator, dtype=torch.float64) * torch.logspace(0, -6, 30)
    assert frechet_distance(x, x[torch.randperm(200, generator=generator)]) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(x + 2.0, x) == pytest.approx(4.0 * 30, rel=1e-10)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_closed_form_of_a_transported_set(generator, offset):
    """
    x T with T symmetric and positive is the nearest set with its moments, so the distance is what it takes to get
    there. Axes differ, n is just above d, and features are far from 0 or not.
    """
    d = 64
    axes = [torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0] for _ in range(2)]
    x = torch.randn(d + 6, d, generator=generator, dtype=torch.float64) @ (axes[0] * torch.logspace(0, -2, d)).T
    transport = axes[1] * (0.5 + torch.rand(d, generator=generator, dtype=torch.float64)) @ axes[1].T
    rest = transport - torch.eye(d, dtype=torch.float64)
    expected = (x.mean(dim=0) @ rest).square().sum() + (rest @ torch.cov(x.T) @ rest).trace()
    assert frechet_distance(x @ transport + offset, x + offset) == pytest.approx(expected.item(), rel=1e-9)


def test_nothing_is_drawn(generator):
    """An evaluation amid training leaves the run's random numbers alone."""
    state = torch.get_rng_state()
    frechet_distance(torch.randn(9, 4, generator=generator), torch.randn(9, 4, generator=generator))
    assert torch.equal(torch.get_rng_state(), state)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(ValueError, match="needs the extra `eval`"):
        frechet_distance(torch.randn(9, 4), torch.randn(9, 4))


def test_one_feature():
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [5.0], [8.0]])
    expected = (1 - 6) ** 2 + (math.sqrt(2) - math.sqrt(3)) ** 2
    assert frechet_distance(x, y) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("features", "reference", "message"),
    [
        (torch.randn(4, 4), torch.randn(9, 4), "`features` has 4 rows .* at least 5"),
        (torch.randn(9, 4), torch.randn(3, 4), "`reference` has 3 rows .* at least 5"),
        (torch.randn(9, 4), torch.randn(9, 3), "4 dimensions and `reference` 3"),
        (torch.randn(9, 4, 1), torch.randn(9, 4), "must be"),
        (torch.ones(9, 4, dtype=torch.long), torch.randn(9, 4), "must be"),
        (torch.full((9, 4), math.nan), torch.randn(9, 4), "finite"),
    ],
)
def test_what_is_refused(features, reference, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(features, reference)
