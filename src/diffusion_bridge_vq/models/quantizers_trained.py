"""The quantizers: Gumbel-softmax, straight-through and EMA, and the registry of their names."""

from typing import Any

import torch
import torch.nn.functional as F

from .blockwise import assign_gumbel_softmax
from .distributed import all_reduce_sum, broadcast_from_first
from .quantizer import VectorQuantizer, copy_gradient

# A code of an EMA codebook whose running frequency is below this fraction of 1 / K is replaced.
_DEAD_FRACTION = 0.05


class GumbelSoftmaxQuantizer(VectorQuantizer):
    """
    In training k is drawn from softmax(-||z_e - e_k||^2) by straight-through Gumbel-softmax (Jang et al. 2017), whose
    gradient has the temperature tau.

    The gradient reaches z_e through the soft assignment and the codebook through the chosen code. The loss, times
    `commitment_weight`, is that of section 3.2 for T = 0:

        -log p(k | z_e) = ||z_e - e_k||^2 + log sum_j exp(-||z_e - e_j||^2)    (printed without the squares).
    """

    def assign(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        temperature = self.temperature if self.training else None
        z_q, nll, codes = assign_gumbel_softmax(rows, self.float_codebook(), temperature)
        loss = self.commitment_weight * nll.mean() / self.vq_embed_dim
        return z_q if self.training else copy_gradient(rows, z_q), loss, codes


class StraightThroughQuantizer(VectorQuantizer):
    """Nearest code, gradient copied to z_e; codebook and commitment loss of van den Oord et al. 2017 (eq. 3)."""

    def assign(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        z_q, codes = self.nearest(rows)
        loss = self.commitment_weight * F.mse_loss(rows, z_q.detach()) + F.mse_loss(z_q, rows.detach())
        return copy_gradient(rows, z_q), loss, codes


class EMAQuantizer(VectorQuantizer):
    """
    Nearest code, gradient copied to z_e; commitment loss only.

    Each code is the running mean of its latents (van den Oord et al. 2017, appendix A.1). Unused codes are moved to
    latents of the batch.
    """

    ema_count: torch.Tensor
    learns_by_gradient = False

    def __init__(self, n_e: int, vq_embed_dim: int, *args: Any, **kwargs: Any):
        super().__init__(n_e, vq_embed_dim, *args, **kwargs)
        self.embedding.weight.requires_grad_(False)
        # running frequency of each code times K: 1 is a fair share, whatever the batch size
        self.register_buffer("ema_count", torch.ones(n_e))

    def assign(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        z_q, codes = self.nearest(rows)
        return copy_gradient(rows, z_q), self.commitment_weight * F.mse_loss(rows, z_q.detach()), codes

    @torch.no_grad()
    def update_codebook(self, rows: torch.Tensor, codes: torch.Tensor) -> None:
        counts, sums = self.sum_by_code(rows, codes)
        candidates = self.draw_rows(rows)
        counts, sums = all_reduce_sum(counts), all_reduce_sum(sums)
        broadcast_from_first(candidates)
        per_position = self.n_e / counts.sum()
        old_count, decay = self.ema_count.float(), self.ema_decay
        count = decay * old_count + (1 - decay) * per_position * counts
        # not stored: the running sum of latents is count * code
        kept = decay * old_count[:, None] * self.float_codebook()
        means = (kept + (1 - decay) * per_position * sums) / count[:, None]
        dead = count < _DEAD_FRACTION  # no branch on values: that would wait for the device
        self.ema_count.copy_(torch.where(dead, 1.0, count))
        self.embedding.weight.copy_(torch.where(dead[:, None], candidates, means))

    @torch.no_grad()
    def initialize_codebook(self, *args: Any, **kwargs: Any) -> None:
        super().initialize_codebook(*args, **kwargs)
        self.ema_count.fill_(1.0)


QUANTIZERS: dict[str, type[VectorQuantizer]] = {
    "gumbel": GumbelSoftmaxQuantizer,
    "ste": StraightThroughQuantizer,
    "ema": EMAQuantizer,
}
"""The quantizers, by the names that `quantizer_type` of a config takes."""


def find_quantizer(quantizer_type: str) -> type[VectorQuantizer]:
    """
    The class that a config names.

    Raises:
        ValueError: an unknown name.
    """
    if not isinstance(quantizer_type, str) or quantizer_type not in QUANTIZERS:
        raise ValueError(f"`quantizer_type` must be one of {', '.join(QUANTIZERS)}, got {quantizer_type!r}.")
    return QUANTIZERS[quantizer_type]
