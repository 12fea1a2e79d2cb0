"""Distance of two sets of features, as Gaussians."""

import torch


def frechet_distance(features: torch.Tensor, reference: torch.Tensor) -> float:
    r"""
    Frechet distance ||m_1 - m_2||^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)) (Heusel et al. 2017, eq. 6).

    With Inception features this is the FID. In float64 on the CPU. The trace of the root is the sum of the singular
    values of C_1^(1/2) C_2^(1/2), which keeps the digits of small eigenvalues, where `sqrtm` of the product does not.

    The estimate is too large by an amount that falls as 1 / n and depends on the features: compare figures of one n
    and one extractor only, and put both beside every figure.

    Args:
        features (`torch.Tensor`), reference (`torch.Tensor`): (n, d) and (m, d) float, one row per image.

    Returns:
        `float`: at least 0 up to rounding, in squared units of the features.

    Raises:
        ValueError: not (n, d) float, different d, values that aren't finite, or a set of d rows or fewer: its
            covariance is singular, and the distance then tells more about n than about the images.
    """
    mean, covariance = _moments(features, "features")
    reference_mean, reference_covariance = _moments(reference, "reference")
    if len(mean) != len(reference_mean):
        raise ValueError(f"`features` have {len(mean)} dimensions and `reference` {len(reference_mean)}.")
    roots = _square_root(covariance) @ _square_root(reference_covariance)
    traces = covariance.trace() + reference_covariance.trace() - 2 * torch.linalg.svdvals(roots).sum()
    return float((mean - reference_mean).square().sum() + traces)


def _moments(features: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (d,) and unbiased covariance (d, d)."""
    if features.ndim != 2 or not features.is_floating_point():
        raise ValueError(f"`{name}` must be (n, d) float, got {tuple(features.shape)} {features.dtype}.")
    n, d = features.shape
    if n <= d:
        raise ValueError(
            f"`{name}` has {n} rows of {d} dimensions, so its covariance is singular: at least {d + 1} images are "
            "needed, and many more for a figure that can be compared."
        )
    rows = features.detach().to("cpu", torch.float64)
    if not bool(rows.isfinite().all()):
        raise ValueError(f"`{name}` has values that aren't finite.")
    return rows.mean(dim=0), torch.cov(rows.T).reshape(d, d)


def _square_root(matrix: torch.Tensor) -> torch.Tensor:
    """Root of a symmetric matrix whose eigenvalues are at least 0 up to rounding."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
