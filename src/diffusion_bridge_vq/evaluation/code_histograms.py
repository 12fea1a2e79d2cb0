"""Histograms of codes: how they differ from position to position, and how a codebook is used."""

import torch

from .arguments import check_codes, check_count, check_tensor

# Jeffreys' prior: half an observation of every code.
_PSEUDO_COUNT = 0.5
_MOST_CODES = 2**24  # so that a wrong number is an error and not an allocation of gigabytes


def code_kl(codes: torch.Tensor, reference_codes: torch.Tensor, num_codes: int) -> torch.Tensor:
    """
    KL(reference || codes) between the code histograms of every position (Figure 4 and Table 1), in nats.

    Real codes are the reference and samples are `codes`; the paper takes 1,000 of each and states neither direction
    nor smoothing. Here half an observation of every code is added to both histograms, so that the KL is finite and
    that of a set with itself is 0.

    Two finite sets of the same law don't reach 0: report the value between two halves of real codes, each as large as
    the sets that are compared, next to the figure.

    Args:
        codes (`torch.Tensor`), reference_codes (`torch.Tensor`): (M, h, w) or (M, N), integers in 0..K-1. The two M
            should be equal: the smaller a set, the more its histogram is smoothed.
        num_codes (`int`): K.

    Returns:
        `torch.Tensor`: (h, w) or (N,) float64; its mean is the number of Table 1.

    Raises:
        TypeError: no tensors.
        ValueError: no codes, no integers, codes outside 0..K-1, or maps of different sizes.
    """
    for name, rows in (("codes", codes), ("reference_codes", reference_codes)):
        check_tensor(name, rows, "(M, h, w) or (M, N)", (2, 3))
    if codes.shape[1:] != reference_codes.shape[1:]:
        raise ValueError(f"Maps differ in size: {tuple(codes.shape[1:])} and {tuple(reference_codes.shape[1:])}.")
    log_p, log_q = (_position_histograms(c, num_codes).log() for c in (reference_codes, codes))
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).reshape(codes.shape[1:])


def code_usage(codes: torch.Tensor, num_codes: int) -> float:
    """Fraction of the K codes that occur in `codes`, integers in 0..K-1 of any shape; errors as in [`code_kl`]."""
    return (count_codes(codes, num_codes) > 0).double().mean().item()


def code_perplexity(codes: torch.Tensor, num_codes: int) -> float:
    """exp(entropy) of the histogram of `codes`, integers in 0..K-1 of any shape: 1..K; errors as in [`code_kl`]."""
    fractions = count_codes(codes, num_codes).double() / codes.numel()
    return torch.special.entr(fractions).sum().exp().item()


def count_codes(codes: torch.Tensor, num_codes: int) -> torch.Tensor:
    """How often each code occurs, (K,) int64."""
    check_count("num_codes", num_codes, highest=_MOST_CODES)
    check_codes("codes", codes, num_codes, "(...)", range(65))
    return torch.bincount(codes.flatten().long(), minlength=num_codes)


def _position_histograms(codes: torch.Tensor, num_codes: int) -> torch.Tensor:
    """Smoothed histogram of each position: (M, ...) -> (positions, K) float64, rows add up to 1."""
    count_codes(codes, num_codes)  # in range
    rows = codes.flatten(1).long()  # (M, positions)
    cells = rows + num_codes * torch.arange(rows.shape[1], device=rows.device)
    counts = torch.bincount(cells.flatten(), minlength=num_codes * rows.shape[1]).reshape(-1, num_codes).double()
    return (counts + _PSEUDO_COUNT) / (len(codes) + _PSEUDO_COUNT * num_codes)
