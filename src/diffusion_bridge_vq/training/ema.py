"""Exponential moving average of weights."""

from copy import deepcopy

import torch
from torch import nn


class AveragedWeights(nn.Module):
    """
    A copy of a module whose parameters and floating-point buffers follow it: w <- decay w + (1 - decay) w_model.

    As `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn` and `use_buffers=True` (the codebook and the
    normalizer are buffers and frozen parameters), which however copies a counter to the device at every step and waits
    for it. The first update takes the weights as they are; integer buffers are copied.

    Args:
        module (`nn.Module`): what is averaged.
        decay (`float`): in [0, 1); 0 keeps the newest weights.
    """

    def __init__(self, module: nn.Module, decay: float):
        super().__init__()
        self.module = deepcopy(module).requires_grad_(False).eval()
        self.decay = decay
        self.started = False

    @torch.no_grad()
    def update_parameters(self, module: nn.Module, decay: float | None = None) -> None:
        """Take in the weights of `module` after an optimizer step, by another `decay` than its own if given."""
        decay = self.decay if decay is None else decay
        averaged = [*self.module.parameters(), *self.module.buffers()]
        newest = [*module.parameters(), *module.buffers()]
        lerped = [(a, b) for a, b in zip(averaged, newest, strict=True) if a.is_floating_point() and self.started]
        if lerped:
            torch._foreach_lerp_([a for a, _ in lerped], [b for _, b in lerped], 1 - decay)
        for a, b in zip(averaged, newest, strict=True):
            if not (a.is_floating_point() and self.started):
                a.copy_(b)
        self.started = True
