"""The base class of the quantizers: nearest code, codes <-> latents, usage, and how the codebook starts."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from .arguments import Integer, Number, Rule, check_arguments
from .blockwise import choose_codes, negative_squared_distances
from .distributed import all_reduce_sum, broadcast_from_first
from .inputs import check_tensor
from .noise import exponential_noise

_QUANTIZER_RULES: dict[str, Rule] = {
    "n_e": Integer(),
    "vq_embed_dim": Integer(),
    "temperature": Number(0.0, without_low=True),
    "commitment_weight": Number(0.0),
    "ema_decay": Number(0.0, 1.0, without_high=True),
}


class VectorQuantizer(nn.Module):
    r"""
    Codebook E (K, d) with logits -||z_e - e_k||^2 and the call convention of diffusers' `VectorQuantizer`.

    A subclass says how codes are assigned to latents and how the codebook learns (`assign`, `update_codebook`). In
    eval mode every quantizer takes the nearest code. Distances are computed in float32, block by block over positions,
    so that memory holds one block whatever K is.

    All quantizers take the same arguments, so that one config fits each of them.

    Args:
        n_e (`int`): K, the number of codes.
        vq_embed_dim (`int`): d, channels of the latents.
        temperature (`float`, *optional*, defaults to 1.0): tau of the soft assignment that carries the gradient of
            Gumbel-softmax, > 0. Which code is drawn doesn't depend on it.
        commitment_weight (`float`, *optional*, defaults to 0.25): weight of the commitment term (beta of van den Oord
            et al. 2017), >= 0.
        ema_decay (`float`, *optional*, defaults to 0.99): decay of running codebook statistics, in [0, 1).

    Raises:
        ValueError: a number outside its range.
    """

    code_counts: torch.Tensor
    # Whether losses move the codes. If not, the quantizer's own loss is all that ties latents to codes.
    learns_by_gradient: ClassVar[bool] = True

    def __init__(
        self,
        n_e: int,
        vq_embed_dim: int,
        temperature: float = 1.0,
        commitment_weight: float = 0.25,
        ema_decay: float = 0.99,
    ):
        super().__init__()
        given = {
            "n_e": n_e,
            "vq_embed_dim": vq_embed_dim,
            "temperature": temperature,
            "commitment_weight": commitment_weight,
            "ema_decay": ema_decay,
        }
        check_arguments(type(self).__name__, given, _QUANTIZER_RULES)
        self.n_e, self.vq_embed_dim = n_e, vq_embed_dim
        self.temperature, self.commitment_weight, self.ema_decay = temperature, commitment_weight, ema_decay
        self.embedding = nn.Embedding(n_e, vq_embed_dim)  # unit variance, as the normalized latents
        # codes seen since `reset_usage`
        self.register_buffer("code_counts", torch.zeros(n_e, dtype=torch.long), persistent=False)

    # ------------------------------------------------------------------------------------ what a subclass defines

    def assign(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Assign a code to every latent: rows (n, d) float32 -> z_q (n, d), scalar loss, codes (n,).

        z_q carries the gradient to `rows` and, if `learns_by_gradient`, to the codebook.
        """
        raise NotImplementedError

    def update_codebook(self, rows: torch.Tensor, codes: torch.Tensor) -> None:
        """Called after `assign` in training, with detached rows (n, d) and their codes (n,)."""

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
        z_q, loss, codes = self.assign(rows)
        # not bincount, which waits for the device
        counts = torch.zeros_like(self.code_counts).index_add_(0, codes, torch.ones_like(codes))
        if self.training:
            self.code_counts += counts
            self.update_codebook(rows.detach(), codes)
        z_q = z_q.reshape(z.shape[0], *z.shape[2:], z.shape[1]).movedim(-1, 1)
        return z_q.to(z.dtype), loss, (_perplexity(counts), None, codes.reshape(z.shape[0], *z.shape[2:]))

    def encode_codes(self, z: torch.Tensor) -> torch.Tensor:
        """Index of the nearest code: z_e (B, d, ...) -> codes (B, ...), int64."""
        return choose_codes(self._rows(z), self.float_codebook()).reshape(z.shape[0], *z.shape[2:])

    def sample_codes(
        self,
        z: torch.Tensor,
        temperature: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """
        Codes drawn from softmax_k(-||z - e_k||^2 / temperature): z (B, d, ...) -> (B, ...), int64.

        Args:
            z (`torch.Tensor`): (B, d, h, w) or (B, d, N).
            temperature (`float`, *optional*, defaults to 1.0): > 0. 1 is the law of training, whatever its tau.
            generator (`torch.Generator` or a list with one per sample, *optional*): source of the draws.

        Raises:
            TypeError: not a generator.
            ValueError: a temperature that isn't a positive number, latents of another shape, or another number of
                generators.
        """
        check_arguments("sample_codes", {"temperature": temperature}, _QUANTIZER_RULES)
        if isinstance(generator, list):
            check_tensor("z", z)
            if len(generator) != len(z):
                raise ValueError(f"Got {len(generator)} generators for a batch of {len(z)}; give one per sample.")
            drawn = [self.sample_codes(row[None], temperature, one) for row, one in zip(z, generator, strict=True)]
            return torch.cat(drawn)

        def add_gumbel_noise(logits: torch.Tensor) -> torch.Tensor:
            return logits / temperature - exponential_noise(logits.shape, generator, logits.device).log_()

        codes = choose_codes(self._rows(z), self.float_codebook(), add_gumbel_noise)
        return codes.reshape(z.shape[0], *z.shape[2:])

    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """
        Code vectors: codes (B, ...) -> z_q (B, d, ...).

        Raises:
            ValueError: codes aren't integers (B, ...), or lie outside 0..K-1. The range is checked on the CPU only:
                elsewhere the check would wait for the device.
        """
        check_tensor("codes", codes, integers=True)
        if codes.ndim == 0:
            raise ValueError(f"`codes` must be (B, ...), e.g. (B, h, w), got shape {tuple(codes.shape)}.")
        if codes.device.type == "cpu" and not 0 <= int(codes.min()) <= int(codes.max()) < self.n_e:
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
            logits = negative_squared_distances(rows, self.float_codebook())
        return logits.reshape(z.shape[0], *z.shape[2:], self.n_e)

    # ------------------------------------------------------------------------------------------------- statistics

    def usage(self) -> torch.Tensor:
        """Fraction of the codes chosen in training since `reset_usage`, over all processes, in [0, 1]."""
        return (all_reduce_sum(self.code_counts) > 0).float().mean()

    def perplexity(self) -> torch.Tensor:
        """exp(entropy) of the codes chosen in training since `reset_usage`, over all processes, in [1, K]."""
        return _perplexity(all_reduce_sum(self.code_counts))

    def reset_usage(self) -> None:
        """Start a new epoch of `usage` and `perplexity`."""
        self.code_counts.zero_()

    @torch.no_grad()
    def initialize_codebook(self, z: torch.Tensor, method: Literal["data", "kmeans"] = "kmeans") -> None:
        """
        Put the codes on latents, z_e (B, d, ...) of a few batches: drawn from them, or their k-means (10 rounds).

        With several processes each gives its own latents and rank 0's codebook is used everywhere.

        Raises:
            ValueError: an unknown method, no latents, or latents that aren't finite.
        """
        if method not in ("data", "kmeans"):
            raise ValueError(f"`method` must be data or kmeans, got {method!r}.")
        rows = self._rows(z)
        if not bool(rows.isfinite().all()):
            raise ValueError("`z` has values that aren't finite, on which no code can be put.")
        self.embedding.weight.copy_(self.draw_rows(rows))
        for _ in range(10 if method == "kmeans" else 0):
            counts, sums = self.sum_by_code(rows, choose_codes(rows, self.float_codebook()))
            means = sums / counts.clamp(min=1)[:, None]
            self.embedding.weight.copy_(torch.where(counts[:, None] > 0, means, self.draw_rows(rows)))
        broadcast_from_first(self.embedding.weight)

    # --------------------------------------------------------------------------------------- what subclasses use

    def float_codebook(self) -> torch.Tensor:
        """(K, d) float32, differentiable."""
        return self.embedding.weight.float()

    def nearest(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Nearest code vectors, with gradient to the codebook, and codes: (n, d) -> (n, d), (n,)."""
        codes = choose_codes(rows, self.float_codebook())
        return F.embedding(codes, self.float_codebook()), codes

    def sum_by_code(self, rows: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """How often each code was chosen, and the sum of its latents, on this process: (K,), (K, d)."""
        counts = rows.new_zeros(self.n_e).index_add_(0, codes, rows.new_ones(len(rows)))
        return counts, rows.new_zeros(self.n_e, self.vq_embed_dim).index_add_(0, codes, rows)

    def draw_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """K latents drawn with replacement: (n, d) -> (K, d)."""
        return rows[torch.randint(len(rows), (self.n_e,), device=rows.device)]

    def _rows(self, z: torch.Tensor) -> torch.Tensor:
        """(B, d, ...) -> (n, d) float32."""
        check_tensor("z", z)
        if z.ndim < 3 or z.shape[1] != self.vq_embed_dim:
            raise ValueError(
                f"Latents must have shape (B, {self.vq_embed_dim}, h, w) or (B, {self.vq_embed_dim}, N), "
                f"got {tuple(z.shape)}."
            )
        return z.movedim(1, -1).reshape(-1, self.vq_embed_dim).float()


def copy_gradient(rows: torch.Tensor, z_q: torch.Tensor) -> torch.Tensor:
    """z_q whose gradient goes to the rows as it is (the straight-through estimator)."""
    return rows + (z_q - rows).detach()


def _perplexity(counts: torch.Tensor) -> torch.Tensor:
    p = counts.float() / counts.sum().clamp(min=1)
    return torch.special.entr(p).sum().exp()
