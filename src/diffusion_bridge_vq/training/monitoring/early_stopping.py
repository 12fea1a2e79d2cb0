"""Early stopping on held-out images."""

import math
from copy import deepcopy

import torch
from torch import nn

from ...models import PixelCNNPrior
from ..data import EncodedImages


class EarlyStopping(nn.Module):
    """
    Keeps a copy of the weights that were best so far, and says when to stop. All of its state is in buffers, so that
    a checkpoint holds it.

    Args:
        module (`nn.Module`): whose weights are judged.
        patience (`int`): values without a better one after which to stop.
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
        """Whether there has been a value."""
        return math.isfinite(self.best_value.item())

    @property
    def exhausted(self) -> bool:
        """Whether it is time to stop."""
        return self.waited.item() >= self.patience

    def update(self, value: float, module: nn.Module) -> None:
        """Take in the `value` of a module's weights; lower is better."""
        if value < self.best_value.item():
            self.best.load_state_dict(module.state_dict())
            self.best_value.fill_(value)
            self.waited.zero_()
        else:
            self.waited += 1


@torch.no_grad()
def bits_per_code(prior: PixelCNNPrior, encoded: EncodedImages, batch_size: int) -> float:
    """Mean of -log2 p over all codes of all maps; of the unconditional law if the data have no labels."""
    codes, labels = encoded.tensors["codes"], encoded.tensors.get("labels")
    if labels is None or prior.config.num_class_embeds is None:
        batches = [(batch, None) for batch in codes.split(batch_size)]
    else:
        batches = list(zip(codes.split(batch_size), labels.split(batch_size), strict=True))
    log_probs = torch.cat([prior.log_prob(*batch) for batch in batches])
    nats = -log_probs.cpu().double().sum().item()  # float64 on the host: MPS has none
    return nats / codes.numel() / math.log(2)
