"""How a codebook in training is used."""

from typing import Any

import torch
from accelerate import Accelerator

from ...models import GumbelVQModel


class CodebookUsage:
    """
    Fraction of the codes chosen in the last whole epoch, and their perplexity. All processes call its methods.

    Args:
        vqvae ([`GumbelVQModel`]): counts the codes that it chooses in training.
        accelerator (`Accelerator`): of the run.
    """

    def __init__(self, vqvae: GumbelVQModel, accelerator: Accelerator):
        self.vqvae, self.accelerator = vqvae, accelerator
        self.last_epoch: dict[str, torch.Tensor] = {}

    def end_epoch(self) -> None:
        """The epoch is over: keep its values and count from 0."""
        self.last_epoch = self._now()
        self.vqvae.quantize.reset_usage()

    def metrics(self) -> dict[str, torch.Tensor]:
        """Values by name, of this epoch if there was none before; nothing for a frozen autoencoder."""
        return (self.last_epoch or self._now()) if self.vqvae.training else {}

    def state(self) -> dict[str, Any]:
        """JSON-safe, for a checkpoint."""
        return {
            "codebook_metrics": {name: value.item() for name, value in self.last_epoch.items()},
            "code_counts": self.accelerator.reduce(self.vqvae.quantize.code_counts, "sum").tolist(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a `state`, which may have other entries."""
        device = self.accelerator.device
        self.last_epoch = {
            name: torch.tensor(value, device=device) for name, value in state["codebook_metrics"].items()
        }
        if self.accelerator.is_main_process:  # counts of all processes
            self.vqvae.quantize.code_counts.copy_(torch.tensor(state["code_counts"]))

    def _now(self) -> dict[str, torch.Tensor]:
        quantizer = self.vqvae.quantize
        return {"codebook/usage": quantizer.usage(), "codebook/perplexity": quantizer.perplexity()}
