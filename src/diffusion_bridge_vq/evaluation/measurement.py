"""What a metric returns."""

from typing import Any, NamedTuple

import torch

Figures = dict[str, dict[str, Any]]
"""{name: {"value": number, ...}}"""


class Measurement(NamedTuple):
    """
    What a metric returns: {name: {"value": number, ...}} for results.json, and {kind: tensor} for pictures, which go
    to the [`SampleStore`].
    """

    figures: Figures
    pictures: dict[str, torch.Tensor] | None = None


def mean(values: torch.Tensor) -> dict[str, float]:
    """A figure that is the mean over images, with its standard deviation if there are several."""
    return {"value": values.mean().item()} | ({"std": values.std().item()} if len(values) > 1 else {})
