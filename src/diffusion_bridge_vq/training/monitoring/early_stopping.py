"""Early stopping."""

import math
from copy import deepcopy

import torch
from torch import nn


class EarlyStopping(nn.Module):
    """
    Keeps a copy of the weights that were best so far, and says when to stop. All of its state is in buffers, so that
    a checkpoint holds it.

    Args:
        module (`nn.Module`): whose weights are scored.
        patience (`int`): scores without a better one after which to stop.
    """

    best_value: torch.Tensor
    waited: torch.Tensor

    def __init__(self, module: nn.Module, patience: int):
        super().__init__()
        self.best = deepcopy(module).requires_grad_(False).eval()
        self.patience = patience
        self.register_buffer("best_value", torch.tensor(math.inf))
        self.register_buffer("waited", torch.tensor(0))

    @property
    def started(self) -> bool:
        """Whether there has been a score."""
        return math.isfinite(self.best_value.item())

    @property
    def exhausted(self) -> bool:
        """Whether it is time to stop."""
        return self.waited.item() >= self.patience

    def update(self, value: float, module: nn.Module) -> None:
        """Take in the score of a module's weights; lower is better."""
        if value < self.best_value.item():
            self.best.load_state_dict(module.state_dict())
            self.best_value.fill_(value)
            self.waited.zero_()
        else:
            self.waited += 1
