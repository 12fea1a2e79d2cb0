"""What follows a forward pass: gradients and, when enough batches are gathered, a step of the optimizer."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from .fault_tolerance.non_finite import LATENT_RMS, NonFiniteDetector
from .objectives import ObjectiveOutput
from .sharding import whole


class Update:
    """
    Call it with what the objective gave, inside `accelerator.accumulate`.

    Args:
        accelerator (`Accelerator`): has prepared the rest.
        optimizer (`AcceleratedOptimizer`): steps when gradients are complete.
        parameters (`list[nn.Parameter]`): all that it trains, in its order.
        detector ([`NonFiniteDetector`]): decides whether a step changes anything.
        max_grad_norm (`float`): gradients are clipped to it.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        optimizer: Any,
        parameters: list[nn.Parameter],
        detector: NonFiniteDetector,
        max_grad_norm: float,
    ):
        self.accelerator, self.optimizer, self.parameters = accelerator, optimizer, parameters
        self.detector, self.max_grad_norm = detector, max_grad_norm

    def __call__(self, output: ObjectiveOutput, step: int) -> None:
        """`step`: of the optimizer, from 0."""
        watched, updating = self.watched(output), self.accelerator.sync_gradients
        self.backward(output)
        if updating:
            norm = self.accelerator.clip_grad_norm_(self.parameters, self.max_grad_norm)
            if self.accelerator.scaler is None:  # else the scaler answers for gradients that overflow
                watched["gradient norm"] = whole(norm)
        self.detector.watch(watched, step)
        if updating:
            self.detector.agree()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if updating:
            self.detector.hold()

    def watched(self, output: ObjectiveOutput) -> dict[str, torch.Tensor]:
        """What has to be a finite number, as known before the backward pass."""
        watched = dict(output.losses)
        if "latent_rms" in output.metrics:
            watched[LATENT_RMS] = output.metrics["latent_rms"]
        if self.accelerator.sync_gradients:
            watched["codebook statistics"] = self.detector.state_sum()
        return watched

    def backward(self, output: ObjectiveOutput) -> None:
        self.accelerator.backward(torch.stack([v.float() for v in output.losses.values()]).sum())

    def has_trained(self, part: nn.Module) -> bool:
        """Whether any parameter of a part of what is trained has got a gradient so far."""
        return any(parameter in self.optimizer.optimizer.state for parameter in part.parameters())

    @property
    def moments(self) -> Any:
        """The optimizer as a checkpoint has it."""
        return self.optimizer.optimizer
