"""Distances by loops, and a quantizer with a given codebook, for the quantizer's tests."""

import numpy as np
import torch

from diffusion_bridge_vq.models import QUANTIZERS, VectorQuantizer

TYPES = ["gumbel", "ste", "ema"]


def squared_distances(z: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """||z - e_k||^2 by loops in float64: (B, d, ...), (K, d) -> (B, ..., K)."""
    flat, e = z.detach().double().flatten(2).numpy(), codebook.detach().double().numpy()
    out = np.zeros((flat.shape[0], flat.shape[2], len(e)))
    for b in range(flat.shape[0]):
        for n in range(flat.shape[2]):
            for k in range(len(e)):
                for c in range(flat.shape[1]):
                    out[b, n, k] += (flat[b, c, n] - e[k, c]) ** 2
    return torch.from_numpy(out).reshape(z.shape[0], *z.shape[2:], len(e))


def rows_of(z: torch.Tensor) -> torch.Tensor:
    """(B, d, ...) -> (n, d)."""
    return torch.stack([z.flatten(2)[b, :, n] for b in range(len(z)) for n in range(z[b, 0].numel())])


def from_rows(rows: torch.Tensor) -> torch.Tensor:
    """(n, d) -> (1, d, n)."""
    return rows.T[None]


def with_codebook(codebook: torch.Tensor, quantizer_type: str = "gumbel", **kwargs) -> VectorQuantizer:
    """A quantizer with these codes (K, d)."""
    q = QUANTIZERS[quantizer_type](*codebook.shape, **kwargs)
    with torch.no_grad():
        q.embedding.weight.copy_(codebook)
    return q
