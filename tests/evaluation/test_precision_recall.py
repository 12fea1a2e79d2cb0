"""Precision and recall on constructed sets, and against a slow loop over points."""

import math

import numpy as np
import pytest
import torch

from diffusion_bridge_vq.evaluation import improved_precision_recall, precision_recall


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
    monkeypatch.setattr(improved_precision_recall, "_BLOCK_ELEMENTS", 200)  # 4 rows at a time
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


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_repeated_rows_lie_in_their_own_balls(k, scale):
    """Rows that occur more than k times have balls of radius 0, and a distance to themselves by rounding."""
    rows = scale * torch.rand(61, 300, generator=torch.Generator().manual_seed(0)).repeat(4, 1)
    assert precision_recall(rows, rows, k) == (1.0, 1.0)
    assert precision_recall(rows[:61], rows, k).precision == 1.0  # was 0.7


def test_rounding_is_no_reason_to_be_covered():
    """A point next to a ball of radius 0, at a distance that float32 features can have."""
    rows = torch.rand(40, 300)
    near = rows + 1e-5
    assert precision_recall(near, rows.repeat(4, 1)).precision == 0.0


def test_an_outlier_changes_nothing_for_others():
    samples, reference = (
        torch.tensor([[20.0], [20.5], [21.0], [0.5]]),
        torch.cat([torch.arange(10.0), torch.tensor([1e9])]),
    )
    assert precision_recall(samples, reference[:, None], k=1).precision == 1.0  # the outlier's ball covers all
    assert (
        precision_recall(torch.tensor([[20.0], [-5.0]]).repeat(2, 1), torch.arange(10.0)[:, None], k=1).precision == 0
    )
