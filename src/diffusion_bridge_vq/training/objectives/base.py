"""
What each kind of run minimises: one module per objective, whose `forward(images)` computes every loss in one call.

One forward matters under DistributedDataParallel: calling an inner model behind the wrapper's back would skip the
gradient synchronisation.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import nn

from ...models import GumbelVQModel


class ObjectiveOutput(NamedTuple):
    """`losses`: weighted terms, whose sum is minimised. `metrics`: detached numbers to look at. All are scalars."""

    losses: dict[str, torch.Tensor]
    metrics: dict[str, torch.Tensor]


class Objective(nn.Module):
    """
    Base: a module that knows how far the run is. `trained` names the submodules that are trained, averaged and saved.
    """

    trained: ClassVar[tuple[str, ...]]
    vqvae: GumbelVQModel

    def set_step(self, step: int) -> None:
        """Told before every optimiser step; phases and ramps hang on it."""

    def forward(self, images: torch.Tensor, class_labels: torch.Tensor | None = None) -> ObjectiveOutput:
        """Images (B, C, H, W) in [-1, 1] and optional classes (B,) -> named losses."""
        raise NotImplementedError


def root_mean_square(latents: torch.Tensor) -> torch.Tensor:
    return latents.detach().float().square().mean().sqrt()
