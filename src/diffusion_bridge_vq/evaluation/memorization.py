"""Memorization: how near samples are to training images."""

from typing import NamedTuple

import torch

from .arguments import check_floats, check_number

_BLOCK_ELEMENTS = 2**24  # of one block of a distance matrix: 128 MiB in float64


class Novelty(NamedTuple):
    """
    See [`novelty`].

    - `fraction`: of samples that are as near to a training image as the nearest test images are.
    - `threshold`: the distance that counts as near.
    - `nearest`: (n,) for each sample, the row of the nearest training image.
    - `distances`: (n,) float64, to that image.
    """

    fraction: float
    threshold: float
    nearest: torch.Tensor
    distances: torch.Tensor


def novelty(samples: torch.Tensor, train: torch.Tensor, test: torch.Tensor, quantile: float = 0.05) -> Novelty:
    """
    The fraction of samples that are nearer to a training image than the nearest test images are: than the `quantile`
    of the distances from test images to their nearest training images.

    Samples that are independent draws from the law of the images have `quantile`, 5 % by default. More means that
    training images were memorized; less means that samples differ from training images more than test images do.

    Args:
        samples (`torch.Tensor`): features or pixels of the samples, (n, d) float, one row per image.
        train (`torch.Tensor`): the same of the training images, (m, d).
        test (`torch.Tensor`): the same of the test images, (l, d).
        quantile (`float`, *optional*, defaults to 0.05): in (0, 1).

    Raises:
        TypeError: no tensors.
        ValueError: not (n, d) float, different d, values that aren't finite, or a quantile outside (0, 1).
    """
    for name, rows in (("samples", samples), ("train", train), ("test", test)):
        check_floats(name, rows, "(n, d)", (2,))
        if rows.shape[1] != samples.shape[1]:
            raise ValueError(f"`{name}` must have {samples.shape[1]} dimensions, as `samples`, got {rows.shape[1]}.")
    check_number("quantile", quantile, 0, inclusive=False)
    if quantile >= 1:
        raise ValueError(f"`quantile` must be below 1, got {quantile}.")
    _, of_test = nearest_rows(test, train)
    nearest, distances = nearest_rows(samples, train)
    threshold = of_test.quantile(quantile).item()
    return Novelty((distances <= threshold).double().mean().item(), threshold, nearest, distances)


def nearest_rows(rows: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of (n, d), which of (m, d) is nearest, (n,), and how far it is, (n,) float64."""
    center = reference.double().mean(dim=0)  # where the expanded square loses the fewest digits
    points, others = rows.double() - center, reference.double() - center
    block = max(1, _BLOCK_ELEMENTS // len(others))
    nearest = torch.cat([torch.cdist(part, others).argmin(dim=1) for part in points.split(block)])
    return nearest, (points - others[nearest]).norm(dim=1)  # exact, 0 for a copy
