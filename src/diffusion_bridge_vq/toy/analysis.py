"""What the toy of section 4.1 shows: shares of valid sequences, with their n and interval, and whole chains."""

from typing import NamedTuple

import torch

from ..evaluation.arguments import check_floats, check_model
from ..evaluation.intervals import wilson_interval
from ..schedulers import OUBridgeScheduler
from .networks import SequenceVQModel
from .walks import all_toy_sequences, check_sequences, fix_toy_positions, is_toy_walk, toy_codebook


class Share(NamedTuple):
    """`successes` of `trials`, with the 95 % interval of Wilson."""

    successes: int
    trials: int
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"{self.successes / self.trials:.3f} ({self.successes} of {self.trials}, "
            f"95 % interval {self.low:.3f} to {self.high:.3f})"
        )


def toy_codes(vqvae: SequenceVQModel, latents: torch.Tensor) -> torch.Tensor:
    """
    Points of the circle that sequences run through: z_0 (B, 2, N) -> nearest learned code -> nearest true one (B, N).

    A learned codebook numbers its codes in an order of its own; what counts is where they are.

    Raises:
        TypeError, ValueError: another model, or latents of another shape, or that aren't finite.
    """
    check_model("vqvae", vqvae, SequenceVQModel)
    check_floats("latents", latents, "(B, 2, N)", (3,))
    codes = vqvae.quantize.encode_codes(latents)
    return torch.cdist(vqvae.quantize.embedding.weight.detach(), toy_codebook()).argmin(dim=1)[codes]


def valid_share(sequences: torch.Tensor) -> Share:
    """
    Share of sequences (B, 5) that are walks: every step is +-1 mod 8.

    Raises:
        TypeError, ValueError: not sequences.
    """
    valid, trials = int(is_toy_walk(sequences).sum()), len(sequences)
    return Share(valid, trials, *wilson_interval(valid, trials))


def total_variation(sequences: torch.Tensor, fixed: dict[int, int] | None = None) -> float:
    """
    Distance of the empirical law of sequences (B, 5) from the walk's, given what is `fixed` ({s: q_s}, s in 1..5).

    Half the sum of absolute differences, over all 8^5 sequences; the walk's law is uniform over those of its 128
    sequences that agree with what is fixed.

    Raises:
        TypeError, ValueError: not sequences, positions or codes outside their range, or no walk agrees with them.
    """
    check_sequences(sequences)
    if fixed is not None:
        fix_toy_positions(fixed)
    possible = all_toy_sequences()
    for position, code in (fixed or {}).items():
        possible = possible[possible[:, position - 1] == code]
    place = 8 ** torch.arange(sequences.shape[1])
    empirical = torch.bincount(sequences @ place, minlength=8 ** sequences.shape[1]) / len(sequences)
    law = torch.zeros_like(empirical)
    law[possible @ place] = 1 / len(possible)
    return 0.5 * (empirical - law).abs().sum().item()


def forward_path(scheduler: OUBridgeScheduler, latents: torch.Tensor) -> torch.Tensor:
    """
    One path of the forward process from z_0 (B, d, ...): z_0, z_1, ..., z_T, (T + 1, B, d, ...).

    Raises:
        TypeError, ValueError: another scheduler, or latents that aren't finite numbers.
    """
    check_model("scheduler", scheduler, OUBridgeScheduler)
    check_floats("latents", latents, "(B, d, ...)", (2, 3, 4))
    path = [latents]
    for alpha in scheduler.alphas.tolist():
        std = scheduler.stationary_std * (1 - alpha) ** 0.5
        center = scheduler.config.z_star
        path.append(center + alpha**0.5 * (path[-1] - center) + std * torch.randn_like(latents))
    return torch.stack(path)
