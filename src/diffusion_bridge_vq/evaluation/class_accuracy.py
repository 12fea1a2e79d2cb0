"""A linear classifier on features, which says whether samples show the class they were drawn for."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .arguments import check_codes, check_count, check_floats

_PENALTY = 0.03  # times the sum of squared weights, on standardised features
_ITERATIONS = 200
_MOST_CLASSES = 2**16


class LinearClassifier(NamedTuple):
    """Multinomial logistic regression on standardised features, see [`train_classifier`]."""

    mean: torch.Tensor
    std: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """The likeliest class of each row, (n, d) -> (n,)."""
        check_floats("features", features, "(n, d)", (2,))
        if features.shape[1] != len(self.mean):
            raise ValueError(f"`features` must have {len(self.mean)} dimensions, got {features.shape[1]}.")
        return (((features - self.mean) / self.std) @ self.weight + self.bias).argmax(dim=1)


def train_classifier(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> LinearClassifier:
    """
    Multinomial logistic regression with an L2 penalty. The loss is convex and the start is 0, so nothing is drawn.

    Args:
        features (`torch.Tensor`): (n, d) float, of training images.
        labels (`torch.Tensor`): (n,) integers in 0..num_classes-1, each class at least once.
        num_classes (`int`): at least 2.

    Raises:
        TypeError: no tensors.
        ValueError: other shapes or values, or a class without an image.
    """
    check_count("num_classes", num_classes, 2, _MOST_CLASSES)
    check_floats("features", features, "(n, d)", (2,))
    check_codes("labels", labels, num_classes, "(n,)", (1,))
    if len(labels) != len(features):
        raise ValueError(f"`labels` must have one entry per row, {len(features)}, got {len(labels)}.")
    present = len(labels.unique())
    if present < num_classes:
        raise ValueError(f"Each of the {num_classes} classes needs a training image, but {present} have one.")
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    rows, targets = (features - mean) / std, labels.long()
    with torch.enable_grad():
        weight = torch.zeros(rows.shape[1], num_classes, requires_grad=True)
        bias = torch.zeros(num_classes, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(rows @ weight + bias, targets) + _PENALTY * weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
    return LinearClassifier(mean, std, weight.detach(), bias.detach())
