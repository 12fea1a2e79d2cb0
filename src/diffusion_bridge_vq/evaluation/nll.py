"""Bits per masked code under a prior."""

import math
from typing import NamedTuple, Protocol

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn

from ..models.masks import expand_mask
from ..models.quantizer import VectorQuantizer
from ..sampling import inpaint_latents
from .arguments import check_codes, check_count, check_floats, check_generator, check_labels, check_model, check_tensor


class CodePrior(Protocol):
    """What [`pixelcnn_nll`] needs of an autoregressive prior."""

    def log_prob(self, codes: torch.Tensor) -> torch.Tensor:
        """log p(code | the codes before it in raster order): (B, h, w) int64 -> (B, h, w), in nats."""


class BridgeNLL(NamedTuple):
    """Bits per masked code of each image, (B,) float64 on the CPU, see [`bridge_nll`]."""

    one_sample: torch.Tensor
    joint: torch.Tensor


@torch.no_grad()
def bridge_nll(
    unet: nn.Module,
    scheduler: SchedulerMixin,
    quantizer: VectorQuantizer,
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
        unet (`nn.Module`): see [`inpaint_latents`] for this and for all arguments that aren't listed here.
        quantizer ([`VectorQuantizer`]): has the codebook, e.g. `vqvae.quantize`.
        latents (`torch.Tensor`): z_e of real images, (B, d, h, w) or (B, d, N).
        codes (`torch.Tensor`): their codes, (B, h, w) or (B, N).
        mask (`torch.Tensor`): True or 1 where codes are hidden, at least once in every image; broadcasts against
            `codes`, e.g. (h, w).
        num_samples (`int`): M draws per image, at least 1; they are made one after the other.

    Returns:
        [`BridgeNLL`]: per image, so that means and standard deviations over images can be given.

    Raises:
        TypeError: another kind of object than the one named above.
        ValueError: an empty mask or one that doesn't fit, codes that don't fit the latents or the codebook,
            `num_samples` below 1, and what [`inpaint_latents`] raises.
    """
    for name, count in (("num_samples", num_samples), ("num_inference_steps", num_inference_steps)):
        check_count(name, count)
    check_count("jump_length", jump_length)
    check_count("jump_n_sample", jump_n_sample)
    check_model("unet", unet, nn.Module)
    check_model("scheduler", scheduler, SchedulerMixin)
    check_model("quantizer", quantizer, VectorQuantizer)
    check_floats("latents", latents, "(B, d, h, w) or (B, d, N)", (3, 4))
    check_codes("codes", codes, quantizer.n_e, "(B, h, w) or (B, N)", (2, 3))
    check_labels(class_labels, len(codes))
    check_generator(generator, len(codes))
    if codes.shape != latents.shape[:1] + latents.shape[2:]:
        raise ValueError(f"`codes` {tuple(codes.shape)} don't fit `latents` {tuple(latents.shape)}.")
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
    knows more of the surroundings. But the bridge has to find all masked codes at once, by draws, while this one is
    given the masked codes before, without error from draws.

    Args:
        prior ([`CodePrior`]): `log_prob` gives nats, (B, h, w) -> (B, h, w).
        codes (`torch.Tensor`): real codes, (B, h, w) int64.
        mask (`torch.Tensor`): as in [`bridge_nll`].

    Returns:
        `torch.Tensor`: (B,) float64 on the CPU.

    Raises:
        TypeError: no tensors, or a prior without `log_prob`.
        ValueError: no codes, an empty mask, or one that doesn't fit.
    """
    if not callable(getattr(prior, "log_prob", None)):
        raise TypeError(f"`prior` must have a method `log_prob`, as PixelCNNPrior has, got {type(prior).__name__}.")
    check_codes("codes", codes, None, "(B, h, w)", (2, 3))
    hidden = _hidden(mask, codes)
    nats_per_bit = math.log(2) * hidden.flatten(1).sum(dim=1).cpu()
    return -_masked_sum(prior.log_prob(codes), hidden) / nats_per_bit


def _masked_sum(log_p: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Sum over what is hidden, (B, ...) -> (B,); `where`, so that -inf at known positions stays out."""
    log_p = log_p.cpu().double()
    return torch.where(hidden.cpu(), log_p, 0.0).flatten(1).sum(dim=1)


def _hidden(mask: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """`mask` as bool in the shape of `codes`."""
    check_tensor("mask", mask, "of the codes", range(4))
    hidden = expand_mask(mask.to(codes.device), codes.shape, "codes")
    if not len(codes) or not bool(hidden.flatten(1).any(dim=1).all()):
        raise ValueError("`mask` must hide at least one code of every image: over none there is no mean.")
    return hidden
