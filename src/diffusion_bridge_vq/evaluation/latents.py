"""Priors measured on the map of codes: likelihood of masked codes, histograms, use of the codebook."""

import math
from typing import NamedTuple, Protocol

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn

from ..models.masks import expand_mask
from ..models.quantizer import GumbelQuantizer
from ..sampling import inpaint_latents

# Jeffreys' prior: half an observation of every code.
_PSEUDO_COUNT = 0.5


class CodePrior(Protocol):
    """What [`pixelcnn_nll`] asks of an autoregressive prior."""

    def log_prob(self, codes: torch.Tensor) -> torch.Tensor:
        """log p(code | the codes before it in raster order): (B, h, w) int64 -> (B, h, w), in nats."""


class BridgeNLL(NamedTuple):
    """Bits per masked code of each image, (B,) float64 on the CPU, see [`bridge_nll`]."""

    one_sample: torch.Tensor
    joint: torch.Tensor


def code_kl(codes: torch.Tensor, reference_codes: torch.Tensor, num_codes: int) -> torch.Tensor:
    """
    KL(reference || codes) between the code histograms of every position (Figure 4 and Table 1), in nats.

    Real codes are the reference and samples are `codes`; the paper takes 1,000 of each and states neither direction
    nor smoothing. Here half an observation of every code is added to both histograms, so that the KL is finite and
    that of a set with itself is 0.

    Two finite sets of the same law don't reach 0: put the value between two halves of real codes, each as large as
    the sets that are compared, beside the figure.

    Args:
        codes (`torch.Tensor`), reference_codes (`torch.Tensor`): (M, h, w) or (M, N), integers in 0..K-1. The two M
            should be equal: the smaller a set, the more its histogram is smoothed.
        num_codes (`int`): K.

    Returns:
        `torch.Tensor`: (h, w) or (N,) float64; its mean is the number of Table 1.

    Raises:
        ValueError: no codes, no integers, codes outside 0..K-1, or maps of different sizes.
    """
    if codes.shape[1:] != reference_codes.shape[1:]:
        raise ValueError(f"Maps differ in size: {tuple(codes.shape[1:])} and {tuple(reference_codes.shape[1:])}.")
    log_p, log_q = (_position_histograms(c, num_codes).log() for c in (reference_codes, codes))
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).reshape(codes.shape[1:])


def code_usage(codes: torch.Tensor, num_codes: int) -> float:
    """Share of the K codes that occur in `codes`, integers in 0..K-1 of any shape; ValueError as [`code_kl`]."""
    return (_counts(codes, num_codes) > 0).double().mean().item()


def code_perplexity(codes: torch.Tensor, num_codes: int) -> float:
    """exp(entropy) of the histogram of `codes`, integers in 0..K-1 of any shape: 1..K; ValueError as [`code_kl`]."""
    shares = _counts(codes, num_codes).double() / codes.numel()
    return torch.special.entr(shares).sum().exp().item()


@torch.no_grad()
def bridge_nll(
    unet: nn.Module,
    scheduler: SchedulerMixin,
    quantizer: GumbelQuantizer,
    latents: torch.Tensor,
    codes: torch.Tensor,
    mask: torch.Tensor,
    num_samples: int,
    num_inference_steps: int,
    generator: torch.Generator | list[torch.Generator] | None = None,
    jump_length: int = 10,
    jump_n_sample: int = 1,
    class_labels: torch.Tensor | None = None,
) -> BridgeNLL:
    r"""
    Bits per masked code under the diffusion prior (section 4.3, "Negative Log Likelihood").

    p(k | known z_e) is the mean of prod_i p(k_i | z_i) over masked latents z drawn given the known ones
    ([`inpaint_latents`]), with p(k | z) = softmax_k(-||z - e_k||^2). Of M draws per image, and n masked positions:

    - `one_sample`: mean over draws and masked positions of -log2 p(k_i | z_i). This is what the authors' code
      computes (with M = 1) and what Tables 2 and 3 show. It is an upper bound in expectation, and a loose one where
      the masked codes can be several: a draw that is likely, but isn't the truth, counts in full.
    - `joint`: -log2(1/M sum_m prod_i p(k_i | z_i^m)) / n, the estimate that the text describes. Too large in
      expectation, less so as M grows; with M = 1 the two are equal.

    Both take the draws as they come: without resampling (`jump_n_sample` = 1) these follow the conditional law only
    roughly. And both grow with the scale of latents and codebook: figures of different autoencoders don't compare.
    How this differs from a PixelCNN's: see [`pixelcnn_nll`].

    Args:
        unet, scheduler, num_inference_steps, generator, jump_length, jump_n_sample, class_labels: see
            [`inpaint_latents`].
        quantizer ([`GumbelQuantizer`]): has the codebook, e.g. `vqvae.quantize`.
        latents (`torch.Tensor`): z_e of real images, (B, d, h, w) or (B, d, N).
        codes (`torch.Tensor`): their codes, (B, h, w) or (B, N).
        mask (`torch.Tensor`): True or 1 where codes are hidden, at least once in every image; broadcasts against
            `codes`, e.g. (h, w).
        num_samples (`int`): M draws per image, at least 1; they are made one after the other.

    Returns:
        [`BridgeNLL`]: per image, so that means and standard deviations over images can be given.

    Raises:
        ValueError: an empty mask or one that doesn't fit, codes that don't fit the latents or the codebook,
            `num_samples` below 1, and what [`inpaint_latents`] raises.
    """
    if num_samples < 1:
        raise ValueError(f"`num_samples` must be at least 1, got {num_samples}.")
    if codes.shape != latents.shape[:1] + latents.shape[2:]:
        raise ValueError(f"`codes` {tuple(codes.shape)} don't fit `latents` {tuple(latents.shape)}.")
    _counts(codes, quantizer.n_e)  # in range
    hidden = _hidden(mask, codes)
    per_draw = []
    for _ in range(num_samples):
        z = inpaint_latents(
            unet,
            scheduler,
            latents,
            hidden[:, None],
            num_inference_steps,
            generator,
            jump_length=jump_length,
            jump_n_sample=jump_n_sample,
            class_labels=class_labels,
        )
        log_p = quantizer.logits(z).log_softmax(dim=-1).gather(-1, codes.to(z.device)[..., None])[..., 0]
        per_draw.append(_masked_sum(log_p, hidden))
    log_joint = torch.stack(per_draw)  # (M, B) nats
    nats_per_bit = math.log(2) * hidden.flatten(1).sum(dim=1).cpu()
    return BridgeNLL(
        one_sample=-log_joint.mean(dim=0) / nats_per_bit,
        joint=(math.log(num_samples) - log_joint.logsumexp(dim=0)) / nats_per_bit,
    )


@torch.no_grad()
def pixelcnn_nll(prior: CodePrior, codes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    Bits per masked code under an autoregressive prior, teacher-forced (section 4.3, first rows of Tables 2 and 3).

    Every masked code is predicted from the true codes before it in raster order, masked ones among them. By the chain
    rule the sum is exact for masked codes that come last on the map. Elsewhere it isn't the likelihood of
    [`bridge_nll`]: that one is given the known latents on every side, this one nothing that comes after, so the bridge
    knows more of the surroundings. But the bridge has to find all masked codes at once, by draws, where this one is
    told the masked codes before, without error from draws.

    Args:
        prior ([`CodePrior`]): `log_prob` gives nats, (B, h, w) -> (B, h, w).
        codes (`torch.Tensor`): real codes, (B, h, w) int64.
        mask (`torch.Tensor`): as in [`bridge_nll`].

    Returns:
        `torch.Tensor`: (B,) float64 on the CPU.

    Raises:
        ValueError: an empty mask or one that doesn't fit.
    """
    hidden = _hidden(mask, codes)
    nats_per_bit = math.log(2) * hidden.flatten(1).sum(dim=1).cpu()
    return -_masked_sum(prior.log_prob(codes), hidden) / nats_per_bit


def _masked_sum(log_p: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Sum over what is hidden, (B, ...) -> (B,); `where`, so that -inf at known positions stays out."""
    log_p = log_p.cpu().double()
    return torch.where(hidden.cpu(), log_p, 0.0).flatten(1).sum(dim=1)


def _hidden(mask: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """`mask` as bool in the shape of `codes`."""
    hidden = expand_mask(mask.to(codes.device), codes.shape, "codes")
    if not len(codes) or not bool(hidden.flatten(1).any(dim=1).all()):
        raise ValueError("`mask` must hide at least one code of every image: over none there is no mean.")
    return hidden


def _counts(codes: torch.Tensor, num_codes: int) -> torch.Tensor:
    """How often each code occurs, (K,) int64."""
    if codes.is_floating_point() or codes.dtype == torch.bool or not codes.numel():
        raise ValueError(f"`codes` must be integers, at least one, got {tuple(codes.shape)} {codes.dtype}.")
    if not 0 <= int(codes.min()) <= int(codes.max()) < num_codes:
        raise ValueError(f"`codes` must lie in 0..{num_codes - 1}, got {int(codes.min())}..{int(codes.max())}.")
    return torch.bincount(codes.flatten().long(), minlength=num_codes)


def _position_histograms(codes: torch.Tensor, num_codes: int) -> torch.Tensor:
    """Smoothed histogram of each position: (M, ...) -> (positions, K) float64, rows add up to 1."""
    _counts(codes, num_codes)  # in range
    rows = codes.flatten(1).long()  # (M, positions)
    cells = rows + num_codes * torch.arange(rows.shape[1], device=rows.device)
    counts = torch.bincount(cells.flatten(), minlength=num_codes * rows.shape[1]).reshape(-1, num_codes).double()
    return (counts + _PSEUDO_COUNT) / (len(codes) + _PSEUDO_COUNT * num_codes)
