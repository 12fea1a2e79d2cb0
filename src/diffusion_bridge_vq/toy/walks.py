"""
The toy of section 4.1: noisy walks on eight points of a circle. Every law of it can be enumerated.

q_1 is uniform over 0..7, q_{s+1} = q_s + 1 or - 1 (mod 8) with equal chance, and the data are z_0 = e_q + noise, with
e_0..e_7 at regular angles of the unit circle. The text gives the noise unit variance; the paper's figures show the
standard deviation 0.05 that is used here.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from ..evaluation.arguments import check_codes, check_count, check_generator

NUM_CODES = 8
LENGTH = 5
NOISE_STD = 0.05


def toy_codebook() -> torch.Tensor:
    """e_0..e_7, (8, 2)."""
    angles = torch.arange(NUM_CODES) * (2 * torch.pi / NUM_CODES)
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def all_toy_sequences() -> torch.Tensor:
    """The 128 sequences that the walk can take, all equally likely, (128, 5) int64."""
    first = torch.arange(NUM_CODES)
    steps = torch.cartesian_prod(*[torch.tensor([-1, 1])] * (LENGTH - 1))  # (16, 4)
    starts = first.repeat_interleave(len(steps))[:, None]
    return torch.cat([starts, starts + steps.cumsum(1).repeat(NUM_CODES, 1)], dim=1) % NUM_CODES


def draw_toy_sequences(num: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """
    Sequences q drawn from the walk, (num, 5) int64.

    Raises:
        TypeError, ValueError: `num` isn't a whole number of at least 1, or `generator` isn't one.
    """
    check_count("num", num)
    check_generator(generator)
    sequences = all_toy_sequences()
    return sequences[torch.randint(len(sequences), (num,), generator=generator)]


def draw_toy_latents(sequences: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """
    z_0 = e_q + 0.05 noise: (B, 5) -> (B, 2, 5).

    Raises:
        TypeError, ValueError: not sequences, or `generator` isn't one.
    """
    check_sequences(sequences)
    check_generator(generator)
    vectors = F.embedding(sequences, toy_codebook()).movedim(-1, 1)
    return vectors + NOISE_STD * torch.randn(vectors.shape, generator=generator)


def is_toy_walk(sequences: torch.Tensor) -> torch.Tensor:
    """
    Whether every neighboring pair differs by +-1 mod 8: (B, 5) -> (B,) bool. By chance 1 in 256 does.

    Raises:
        TypeError, ValueError: not sequences.
    """
    check_sequences(sequences)
    steps = sequences.diff(dim=-1) % NUM_CODES
    return ((steps == 1) | (steps == NUM_CODES - 1)).all(dim=-1)


def check_sequences(sequences: Any) -> None:
    """
    Raises:
        TypeError: `sequences` isn't a tensor.
        ValueError: it isn't (B, 5) integers in 0..7.
    """
    check_codes("sequences", sequences, NUM_CODES, f"(B, {LENGTH})", (2,))
    if sequences.shape[1] != LENGTH:
        raise ValueError(f"`sequences` must be (B, {LENGTH}), got {tuple(sequences.shape)}.")


def fix_toy_positions(codes: Mapping[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Known latents and mask of a walk with some q_s given, for `inpaint_latents`.

    Args:
        codes (`Mapping[int, int]`): {s: q_s}, positions 1..5 as in the paper, codes 0..7.

    Returns:
        `(known_latents, mask)`: (1, 2, 5), the code vectors without noise; (5,) bool, True where unknown.

    Raises:
        TypeError: not a mapping of whole numbers.
        ValueError: nothing fixed, more positions than the walk has, a position or code outside its range, or codes
            that no walk has together.
    """
    numbers = [*codes, *codes.values()] if isinstance(codes, Mapping) else [None]
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        raise TypeError(f"`codes` must map positions to codes, whole numbers, e.g. {{1: 0, 5: 4}}, got {codes!r}.")
    if not codes:
        raise ValueError("`codes` must fix at least one position, e.g. {1: 0, 5: 4}, got none.")
    if len(codes) > LENGTH:
        raise ValueError(f"{len(codes)} positions are fixed, but a walk has only {LENGTH}.")
    known, mask = torch.zeros(1, LENGTH, dtype=torch.long), torch.ones(LENGTH, dtype=torch.bool)
    for position, code in codes.items():
        if not 1 <= position <= LENGTH or not 0 <= code < NUM_CODES:
            raise ValueError(
                f"Positions must lie in 1..{LENGTH} and codes in 0..{NUM_CODES - 1}, got q_{position} = {code}."
            )
        known[0, position - 1], mask[position - 1] = code, False
    if not (all_toy_sequences()[:, ~mask] == known[:, ~mask]).all(dim=1).any():
        raise ValueError(f"No walk has {dict(codes)}: each step is +-1 mod {NUM_CODES}; fix codes that some walk has.")
    return F.embedding(known, toy_codebook()).movedim(-1, 1), mask
