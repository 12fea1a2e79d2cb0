"""
Vector quantization: Gumbel-softmax, straight-through and EMA codebooks, in memory that doesn't grow with B h w K.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from .noise import exponential_noise

# Elements of one block of the (positions, K) distance matrix: 16 MiB in float32.
_BLOCK_ELEMENTS = 2**22
# An EMA code whose running frequency is below this part of 1 / K is replaced.
_DEAD_SHARE = 0.05


class GumbelQuantizer(nn.Module):
    r"""
    Codebook E (K, d) with logits -||z_e - e_k||^2 and the call convention of diffusers' `VectorQuantizer`.

    In eval every type takes the nearest code. In training:

    - "gumbel": k by Gumbel-softmax at temperature tau, straight-through (Jang et al. 2017); the gradient reaches z_e
      through the soft assignment and the codebook through the chosen code. The loss is that of section 3.2 for T = 0,
      -log p(k | z_e) = ||z_e - e_k||^2 + log sum_j exp(-||z_e - e_j||^2) (the print leaves out the squares).
    - "ste": nearest code, gradient copied to z_e; codebook and commitment loss of van den Oord et al. 2017 (eq. 3).
    - "ema": nearest code, gradient copied to z_e; the codebook follows the running mean of its latents, unused codes
      are moved to latents of the batch; commitment loss only.

    Distances are computed in float32, block by block over positions; Gumbel blocks are recomputed in the backward
    pass, so that memory holds one block whatever K is.

    Args:
        n_e (`int`): K, the number of codes.
        vq_embed_dim (`int`): d, channels of the latents.
        quantizer_type (`str`): "gumbel", "ste" or "ema".
        temperature (`float`): tau of the Gumbel-softmax, > 0.
        commitment_weight (`float`): weight of the commitment term against the codebook term (van den Oord's beta),
            and of the whole loss for "gumbel" and "ema".
        ema_decay (`float`): decay of the running codebook statistics, in [0, 1).

    Raises:
        ValueError: an unknown type, or a number outside its range.
    """

    code_counts: torch.Tensor
    ema_count: torch.Tensor

    def __init__(
        self,
        n_e: int,
        vq_embed_dim: int,
        quantizer_type: Literal["gumbel", "ste", "ema"] = "gumbel",
        temperature: float = 1.0,
        commitment_weight: float = 0.25,
        ema_decay: float = 0.99,
    ):
        super().__init__()
        if quantizer_type not in ("gumbel", "ste", "ema"):
            raise ValueError(f"`quantizer_type` must be gumbel, ste or ema, got {quantizer_type!r}.")
        if n_e < 1 or vq_embed_dim < 1:
            raise ValueError(f"A codebook needs at least one code and one channel, got {n_e} x {vq_embed_dim}.")
        if temperature <= 0:
            raise ValueError(f"`temperature` must be positive, got {temperature}.")
        if commitment_weight < 0 or not 0 <= ema_decay < 1:
            raise ValueError(
                "`commitment_weight` must be at least 0 and `ema_decay` lie in [0, 1), "
                f"got {commitment_weight} and {ema_decay}."
            )
        self.n_e, self.vq_embed_dim = n_e, vq_embed_dim
        self.quantizer_type = quantizer_type
        self.temperature, self.commitment_weight, self.ema_decay = temperature, commitment_weight, ema_decay

        self.embedding = nn.Embedding(n_e, vq_embed_dim)  # unit variance, as the normalised latents
        if quantizer_type == "ema":
            self.embedding.weight.requires_grad_(False)
            # running frequency of each code times K: 1 is a fair share, whatever the batch size
            self.register_buffer("ema_count", torch.ones(n_e))
        # codes seen since `reset_usage`
        self.register_buffer("code_counts", torch.zeros(n_e, dtype=torch.long), persistent=False)

    # ------------------------------------------------------------------------------------------------- quantizing

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, None, torch.Tensor]]:
        """
        Quantize latents.

        Args:
            z (`torch.Tensor`): z_e, (B, d, h, w) or (B, d, N).

        Returns:
            `(z_q, loss, (perplexity, None, codes))`: z_q in the shape and dtype of z, the scalar loss of the class
            docstring in nats per latent coordinate, exp(entropy) of the code histogram of this batch, and the codes
            (B, h, w) or (B, N).

        Raises:
            ValueError: z has other than d channels.
        """
        rows = self._rows(z)  # (n, d) float32
        if self.quantizer_type == "gumbel":
            z_q, loss, codes = self._gumbel(rows)
        else:
            codes = self._choose(rows)
            z_q = F.embedding(codes, self._codebook())
            loss = self._loss(rows, z_q)
        if not self.training or self.quantizer_type != "gumbel":
            z_q = rows + (z_q - rows).detach()  # straight-through
        # not bincount, which waits for the device
        counts = torch.zeros_like(self.code_counts).index_add_(0, codes, torch.ones_like(codes))
        if self.training:
            self.code_counts += counts
            if self.quantizer_type == "ema":
                self._update_codebook(rows.detach(), codes)
        z_q = z_q.reshape(z.shape[0], *z.shape[2:], z.shape[1]).movedim(-1, 1)
        return z_q.to(z.dtype), loss, (_perplexity(counts), None, codes.reshape(z.shape[0], *z.shape[2:]))

    def encode_codes(self, z: torch.Tensor) -> torch.Tensor:
        """Index of the nearest code: z_e (B, d, ...) -> codes (B, ...), int64."""
        return self._choose(self._rows(z)).reshape(z.shape[0], *z.shape[2:])

    def sample_codes(
        self, z: torch.Tensor, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Codes drawn from softmax_k(-||z - e_k||^2 / temperature): z (B, d, ...) -> (B, ...), int64."""

        def gumbel(logits: torch.Tensor) -> torch.Tensor:
            return logits / temperature - exponential_noise(logits.shape, generator, logits.device).log_()

        return self._choose(self._rows(z), gumbel).reshape(z.shape[0], *z.shape[2:])

    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """
        Code vectors: codes (B, ...) -> z_q (B, d, ...).

        Raises:
            ValueError: codes aren't integers, or (on the CPU, where looking costs nothing) lie outside 0..K-1.
        """
        if codes.is_floating_point() or codes.dtype == torch.bool:
            raise ValueError(f"`codes` must be integers in 0..{self.n_e - 1}, got dtype {codes.dtype}.")
        if codes.device.type == "cpu" and codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.n_e:
            raise ValueError(
                f"`codes` must lie in 0..{self.n_e - 1}, got values {int(codes.min())}..{int(codes.max())}."
            )
        return self.embedding(codes.long()).movedim(-1, 1)

    def get_codebook_entry(self, indices: torch.Tensor, shape: tuple[int, ...] | None) -> torch.Tensor:
        """As in diffusers' `VectorQuantizer`: flat indices and (B, h, w, d) -> (B, d, h, w)."""
        return self.embedding(indices) if shape is None else self.embedding(indices).view(shape).movedim(-1, 1)

    def logits(self, z: torch.Tensor) -> torch.Tensor:
        """-||z - e_k||^2, differentiable: (B, d, ...) -> (B, ..., K) float32. Holds B h w K numbers, not B h w K d."""
        rows = self._rows(z)
        with torch.autocast(z.device.type, enabled=False):
            return _logits(rows, self._codebook()).reshape(z.shape[0], *z.shape[2:], self.n_e)

    # ------------------------------------------------------------------------------------------------- statistics

    def usage(self) -> torch.Tensor:
        """Share of the codes chosen in training since `reset_usage`, over all processes, in [0, 1]."""
        return (_all_reduce(self.code_counts) > 0).float().mean()

    def perplexity(self) -> torch.Tensor:
        """exp(entropy) of the codes chosen in training since `reset_usage`, over all processes, in [1, K]."""
        return _perplexity(_all_reduce(self.code_counts))

    def reset_usage(self) -> None:
        """Start a new epoch of `usage` and `perplexity`."""
        self.code_counts.zero_()

    @torch.no_grad()
    def initialize_codebook(self, z: torch.Tensor, method: Literal["data", "kmeans"] = "kmeans") -> None:
        """
        Put the codes on latents, z_e (B, d, ...) of a few batches: drawn from them, or their k-means (10 rounds).

        With several processes each gives its own latents and rank 0's codebook is used everywhere.

        Raises:
            ValueError: an unknown method, or no latents.
        """
        if method not in ("data", "kmeans"):
            raise ValueError(f"`method` must be data or kmeans, got {method!r}.")
        rows = self._rows(z)
        if len(rows) == 0:
            raise ValueError("The codebook can't be put on no latents at all.")
        self.embedding.weight.copy_(self._draw(rows))
        for _ in range(10 if method == "kmeans" else 0):
            counts, sums = self._statistics(rows, self._choose(rows))
            means = sums / counts.clamp(min=1)[:, None]
            self.embedding.weight.copy_(torch.where(counts[:, None] > 0, means, self._draw(rows)))
        if _distributed():
            dist.broadcast(self.embedding.weight, src=0)
        if self.quantizer_type == "ema":
            self.ema_count.fill_(1.0)

    # -------------------------------------------------------------------------------------------------- internals

    def _codebook(self) -> torch.Tensor:
        return self.embedding.weight.float()

    def _rows(self, z: torch.Tensor) -> torch.Tensor:
        """(B, d, ...) -> (n, d) float32."""
        if z.ndim < 3 or z.shape[1] != self.vq_embed_dim:
            raise ValueError(
                f"Latents must have shape (B, {self.vq_embed_dim}, h, w) or (B, {self.vq_embed_dim}, N), "
                f"got {tuple(z.shape)}."
            )
        return z.movedim(1, -1).reshape(-1, self.vq_embed_dim).float()

    def _blocks(self, rows: torch.Tensor) -> Iterator[torch.Tensor]:
        return iter(rows.split(max(1, _BLOCK_ELEMENTS // self.n_e)))

    @torch.no_grad()
    def _choose(
        self, rows: torch.Tensor, transform: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """argmax_k of the (transformed) logits, block by block: (n, d) -> (n,)."""
        with torch.autocast(rows.device.type, enabled=False):
            codebook = self._codebook()
            # made beforehand: small results between the blocks would keep the C heap from using their memory again
            codes = torch.empty(len(rows), dtype=torch.long, device=rows.device)
            for block, chosen in zip(self._blocks(rows), self._blocks(codes), strict=True):
                logits = _logits(block, codebook)
                torch.argmax(logits if transform is None else transform(logits), dim=1, out=chosen)
        return codes

    def _gumbel(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        temperature = self.temperature if self.training else None
        with torch.autocast(rows.device.type, enabled=False):
            z_q, nll, codes = _GumbelBlocks.apply(rows, self._codebook(), temperature)
        return z_q, self.commitment_weight * nll.mean() / self.vq_embed_dim, codes

    def _loss(self, rows: torch.Tensor, z_q: torch.Tensor) -> torch.Tensor:
        """Loss of the nearest code, "ste" and "ema"."""
        loss = self.commitment_weight * F.mse_loss(rows, z_q.detach())
        return loss if self.quantizer_type == "ema" else loss + F.mse_loss(z_q, rows.detach())

    def _statistics(self, rows: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """How often each code was chosen, and the sum of its latents, on this process: (K,), (K, d)."""
        counts = rows.new_zeros(self.n_e).index_add_(0, codes, rows.new_ones(len(rows)))
        return counts, rows.new_zeros(self.n_e, self.vq_embed_dim).index_add_(0, codes, rows)

    def _draw(self, rows: torch.Tensor) -> torch.Tensor:
        """K latents drawn with replacement."""
        return rows[torch.randint(len(rows), (self.n_e,), device=rows.device)]

    @torch.no_grad()
    def _update_codebook(self, rows: torch.Tensor, codes: torch.Tensor) -> None:
        """
        Running means of the latents of each code (van den Oord et al. 2017, appendix A.1), then revive dead codes.
        """
        counts, sums = self._statistics(rows, codes)
        candidates = self._draw(rows)
        counts, sums = _all_reduce(counts), _all_reduce(sums)
        if _distributed():
            dist.broadcast(candidates, src=0)
        per_position = self.n_e / counts.sum()
        old_count, decay = self.ema_count.float(), self.ema_decay
        count = decay * old_count + (1 - decay) * per_position * counts
        # a running sum of latents would be count * code, so it needn't be kept
        means = (decay * old_count[:, None] * self._codebook() + (1 - decay) * per_position * sums) / count[:, None]
        dead = count < _DEAD_SHARE  # no branch on values: that would wait for the device
        self.ema_count.copy_(torch.where(dead, 1.0, count))
        self.embedding.weight.copy_(torch.where(dead[:, None], candidates, means))


class _GumbelBlocks(torch.autograd.Function):
    """
    Code vector, -log p(code) and code of every row: (n, d), (K, d) -> (n, d), (n,), (n,).

    At a temperature the code is drawn, with the gradient of `F.gumbel_softmax(logits, tau, hard=True) @ codebook`
    and its noise drawn again in the backward pass, from the same seed; without one it is the nearest. Results are made
    beforehand: small tensors between the blocks would keep the C heap from using the blocks' memory again.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, codebook: torch.Tensor, temperature: float | None) -> tuple:
        # on the CPU: reading it waits for no device
        ctx.seed = None if temperature is None else int(torch.randint(2**63 - 1, (), device="cpu"))
        generator = _generator(rows.device, ctx.seed)
        codes, log_sum = torch.empty_like(rows[:, 0], dtype=torch.long), torch.empty_like(rows[:, 0])
        for block, block_codes, block_sum in _blocks(codebook, rows, codes, log_sum):
            logits = _logits(block, codebook)
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
        generator = _generator(rows.device, ctx.seed)
        for block, d_block, d_q, d_n in _blocks(codebook, rows, d_rows, d_z_q, d_nll):
            logits = _logits(block, codebook)
            d_logits = logits.softmax(dim=1).mul_(d_n)
            if ctx.temperature is not None:
                logits.sub_(torch.empty_like(logits).exponential_(generator=generator).log_())
                soft = logits.div_(ctx.temperature).softmax(dim=1)
                inner = (d_q * (soft @ codebook)).sum(dim=1, keepdim=True)
                d_logits.addcmul_((d_q @ codebook.T).sub_(inner), soft, value=1 / ctx.temperature)
            d_block.add_(d_logits @ codebook - d_logits.sum(dim=1, keepdim=True) * block, alpha=2)
            d_codebook.add_(d_logits.T @ block - d_logits.sum(dim=0)[:, None] * codebook, alpha=2)
        return d_rows, d_codebook, None


def _blocks(codebook: torch.Tensor, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """All tensors in blocks along their first axis, with at most `_BLOCK_ELEMENTS` distances each."""
    return zip(*(t.split(max(1, _BLOCK_ELEMENTS // len(codebook))) for t in tensors), strict=True)


def _generator(device: torch.device, seed: int | None) -> torch.Generator | None:
    """Of the noise of one call, the same in both passes whatever else is drawn; "meta" tensors have no numbers."""
    return None if seed is None or device.type == "meta" else torch.Generator(device).manual_seed(seed)


def _logits(rows: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """-||z - e_k||^2 = 2 z.e_k - ||e_k||^2 - ||z||^2: (n, d), (K, d) -> (n, K)."""
    logits = torch.addmm(-codebook.square().sum(dim=1), rows, codebook.T, alpha=2)
    return logits.sub_(rows.square().sum(dim=1, keepdim=True))


def _perplexity(counts: torch.Tensor) -> torch.Tensor:
    p = counts.float() / counts.sum().clamp(min=1)
    return torch.special.entr(p).sum().exp()


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over processes, as a new tensor; the tensor itself if there is one process."""
    if _distributed():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor
