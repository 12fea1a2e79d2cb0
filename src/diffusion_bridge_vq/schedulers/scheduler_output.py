"""What a step of the bridge's scheduler returns."""

from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput


@dataclass
class OUBridgeSchedulerOutput(BaseOutput):
    """
    Output of [`OUBridgeScheduler.step`].

    Args:
        prev_sample (`torch.Tensor`): the sample one step nearer to the clean end, in the shape and dtype of `sample`.
        pred_original_sample (`torch.Tensor`): the clean sample z_0 that the network predicts from `sample`.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None
