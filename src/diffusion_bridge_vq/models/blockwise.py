"""
Distances to the codes and soft assignments, block by block over positions.

The matrix of distances has B h w K elements. It is never held as a whole: a block of it is computed, used and dropped,
and the backward pass computes the block again. All functions take positions as rows, (n, d).
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

# Elements of one block of the (n, K) distances: 16 MiB in float32.
BLOCK_ELEMENTS = 2**22


def negative_squared_distances(rows: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """-||z - e_k||^2 = 2 z.e_k - ||e_k||^2 - ||z||^2: (n, d), (K, d) -> (n, K)."""
    logits = torch.addmm(-codebook.square().sum(dim=1), rows, codebook.T, alpha=2)
    return logits.sub_(rows.square().sum(dim=1, keepdim=True))


@torch.no_grad()
def choose_codes(
    rows: torch.Tensor,
    codebook: torch.Tensor,
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """
    The argmax over k of -||z - e_k||^2, in the precision of the arguments also under autocast: (n, d), (K, d) -> (n,).

    Args:
        transform (`Callable`, *optional*): changes the logits (n, K) of each block before the argmax.
    """
    # Allocated before the loop: small results between the blocks would fragment the heap.
    codes = torch.empty(len(rows), dtype=torch.long, device=rows.device)
    with torch.autocast(rows.device.type, enabled=False):
        for block, chosen in _split(codebook, rows, codes):
            logits = negative_squared_distances(block, codebook)
            torch.argmax(logits if transform is None else transform(logits), dim=1, out=chosen)
    return codes


def assign_gumbel_softmax(
    rows: torch.Tensor, codebook: torch.Tensor, temperature: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Code vector, -log p(code) and code of every row: (n, d), (K, d) -> (n, d), (n,), (n,).

    Args:
        temperature (`float` or `None`): codes are drawn by straight-through Gumbel-softmax at this temperature, with
            the gradient of `F.gumbel_softmax(logits, temperature, hard=True) @ codebook`. None takes the nearest code.
    """
    with torch.autocast(rows.device.type, enabled=False):
        return _GumbelSoftmaxAssignment.apply(rows, codebook, temperature)


class _GumbelSoftmaxAssignment(torch.autograd.Function):
    """See `assign_gumbel_softmax`. The backward pass draws the noise again, from the same seed."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, codebook: torch.Tensor, temperature: float | None) -> tuple:
        # Drawn on the CPU, so that reading it does not wait for a device.
        ctx.seed = None if temperature is None else int(torch.randint(2**63 - 1, (), device="cpu"))
        generator = _make_generator(rows.device, ctx.seed)
        codes, log_sum = torch.empty_like(rows[:, 0], dtype=torch.long), torch.empty_like(rows[:, 0])
        for block, block_codes, block_sum in _split(codebook, rows, codes, log_sum):
            logits = negative_squared_distances(block, codebook)
            torch.logsumexp(logits, dim=1, out=block_sum)
            if temperature is not None:
                logits.sub_(torch.empty_like(logits).exponential_(generator=generator).log_())
            torch.argmax(logits, dim=1, out=block_codes)
        z_q = F.embedding(codes, codebook)
        ctx.save_for_backward(rows, codebook, codes)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(codes)
        return z_q, log_sum.add_((rows - z_q).square_().sum(dim=1)), codes

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple:
        d_z_q, d_nll = gradients[0], gradients[1][:, None]
        rows, codebook, codes = ctx.saved_tensors
        d_rows = 2 * d_nll * (rows - F.embedding(codes, codebook))  # of the chosen code's distance, so far
        d_codebook = torch.zeros_like(codebook).index_add_(0, codes, d_z_q - d_rows)
        generator = _make_generator(rows.device, ctx.seed)
        for block, d_block, d_q, d_n in _split(codebook, rows, d_rows, d_z_q, d_nll):
            logits = negative_squared_distances(block, codebook)
            d_logits = logits.softmax(dim=1).mul_(d_n)
            if ctx.temperature is not None:
                logits.sub_(torch.empty_like(logits).exponential_(generator=generator).log_())
                soft = logits.div_(ctx.temperature).softmax(dim=1)
                inner = (d_q * (soft @ codebook)).sum(dim=1, keepdim=True)
                d_logits.addcmul_((d_q @ codebook.T).sub_(inner), soft, value=1 / ctx.temperature)
            d_block.add_(d_logits @ codebook - d_logits.sum(dim=1, keepdim=True) * block, alpha=2)
            d_codebook.add_(d_logits.T @ block - d_logits.sum(dim=0)[:, None] * codebook, alpha=2)
        return d_rows, d_codebook, None


def _split(codebook: torch.Tensor, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """All tensors in blocks along their first axis, with at most `BLOCK_ELEMENTS` distances each."""
    return zip(*(t.split(max(1, BLOCK_ELEMENTS // len(codebook))) for t in tensors), strict=True)


def _make_generator(device: torch.device, seed: int | None) -> torch.Generator | None:
    """The noise of one call, the same in both passes whatever else is drawn. "meta" tensors have no numbers."""
    return None if seed is None or device.type == "meta" else torch.Generator(device).manual_seed(seed)
