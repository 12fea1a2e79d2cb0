"""Distance of two sets of features, as Gaussians."""

import torch
from torch import nn

from .arguments import check_floats


def frechet_distance(features: torch.Tensor, reference: torch.Tensor) -> float:
    r"""
    Frechet distance ||m_1 - m_2||^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)) (Heusel et al. 2017, eq. 6).

    With Inception features this is the FID. By torchmetrics, in float64 on the CPU, in this process alone. Measured at
    d = 1,280, n = 1,300 on pairs with a closed form: right to 5e-9 (relative) with EfficientNet-Lite0's features, and
    to 4e-5 with the same of rank 300 or more.

    The estimate is too large by an amount that falls as 1 / n and depends on the features: compare figures of one n
    and one extractor only, and report both with every figure.

    Args:
        features (`torch.Tensor`), reference (`torch.Tensor`): (n, d) and (m, d) float, one row per image.

    Returns:
        `float`: at least 0 up to rounding, in squared units of the features.

    Raises:
        TypeError: no tensors.
        ValueError: not (n, d) float, different d, values that aren't finite, or a set of d rows or fewer: its
            covariance is singular, and the distance then depends more on n than on the images. Also without the
            extra `eval`.
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise ValueError(
            f"The Frechet distance needs the extra `eval` (pip install -e '.[eval]' in the repository): {error}."
        ) from error
    rows, reference_rows = check_features(features, "features"), check_features(reference, "reference")
    d = rows.shape[1]
    if reference_rows.shape[1] != d:
        raise ValueError(f"`features` have {d} dimensions and `reference` {reference_rows.shape[1]}.")
    given = nn.Identity()  # in place of the network
    given.register_buffer("num_features", torch.tensor(d))
    metric = FrechetInceptionDistance(given, sync_on_compute=False)
    center = reference_rows.mean(dim=0)  # its sums of squares aren't centered
    metric.update(reference_rows - center, real=True)
    metric.update(rows - center, real=False)
    return metric.compute().item()


def check_features(features: torch.Tensor, name: str) -> torch.Tensor:
    """What [`frechet_distance`] takes, called `name` in errors, as float64 on the CPU."""
    check_floats(name, features, "(n, d)", (2,))
    n, d = features.shape
    if n <= d:
        raise ValueError(
            f"`{name}` has {n} rows of {d} dimensions, so its covariance is singular: at least {d + 1} images are "
            "needed, and many more for a figure that can be compared."
        )
    return features.detach().to("cpu", torch.float64)
