"""Improved precision and recall of two sets of features."""

import math
from typing import NamedTuple

import torch

from .arguments import check_count, check_floats

# Elements of one block of a distance matrix: 128 MiB in float64.
_BLOCK_ELEMENTS = 2**24


class PrecisionRecall(NamedTuple):
    """Fractions in [0, 1], see [`precision_recall`]."""

    precision: float
    recall: float


def precision_recall(features: torch.Tensor, reference: torch.Tensor, k: int = 3) -> PrecisionRecall:
    """
    Improved precision and recall (Kynkaanniemi et al. 2019, eq. 1 and 2).

    A set's manifold is the union of balls around its points, each reaching to the point's k-th nearest neighbor in
    the set. Precision is the fraction of `features` on the manifold of `reference`, recall the fraction of `reference`
    on that of `features`. Distances are float64, computed block by block, so that memory doesn't grow with n^2. Two
    that differ by less than their rounding errors count as equal: a point that occurs more than k times has a ball of
    radius 0, and lies in it.

    Args:
        features (`torch.Tensor`), reference (`torch.Tensor`): (n, d) and (m, d) float, of samples and real images.
        k (`int`, *optional*, defaults to 3): at least 1.

    Raises:
        TypeError: no tensors.
        ValueError: not (n, d) float, different d, values that aren't finite, k below 1, or a set of k points or fewer.
    """
    check_count("k", k)
    for name, rows in (("features", features), ("reference", reference)):
        check_floats(name, rows, "(n, d)", (2,))
        if len(rows) <= k:
            raise ValueError(f"`{name}` must have more than k = {k} rows, got {len(rows)}.")
    if features.shape[1] != reference.shape[1]:
        raise ValueError(f"`features` have {features.shape[1]} dimensions and `reference` {reference.shape[1]}.")
    # around the middle, where the expanded squares lose the fewest digits
    center = reference.double().mean(dim=0)
    x, y = features.double() - center, reference.double() - center
    return PrecisionRecall(_covered(x, y, k), _covered(y, x, k))


def _covered(points: torch.Tensor, manifold: torch.Tensor, k: int) -> float:
    """Fraction of `points` in any of the balls around the rows of `manifold`."""
    block = max(1, _BLOCK_ELEMENTS // max(len(points), len(manifold)))
    covered = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    # |x|^2 + |y|^2 - 2xy is off by at most about d eps (|x|^2 + |y|^2), in the radii and in the distances
    rounding = 4 * points.shape[1] * torch.finfo(points.dtype).eps
    slack = rounding * points.square().sum(dim=1)
    for start in range(0, len(manifold), block):
        centers = manifold[start : start + block]
        own = torch.cdist(centers, manifold)
        own[range(len(centers)), range(start, start + len(centers))] = math.inf  # a point is no neighbor of its own
        radii = own.kthvalue(k, dim=1).values[:, None]
        del own  # before the next block is made
        reach = radii.square() + rounding * centers.square().sum(dim=1, keepdim=True)
        covered |= (torch.cdist(centers, points).square_().sub_(slack) <= reach).any(dim=0)
    return covered.double().mean().item()
