"""Bits per code under a diffusion prior, from its denoising error at every noise level."""

import math

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from ..models.denoiser import denoise
from ..models.quantizer import VectorQuantizer
from ..sampling import split_generators
from ..sampling.generators import Generators
from ..schedulers import OUBridgeScheduler
from .arguments import check_codes, check_count, check_generator, check_labels, check_model

_LOG_STEP = 0.3  # between noise levels, in log SNR: the trapezoid rule is off by less than the draws' noise then
_LOWEST, _HIGHEST = 1e-3, 60.0  # SNR times the codes' variance, and times the smallest squared distance of two codes
_WIDTHS = 10


@torch.no_grad()
def bridge_code_bits(
    unet: nn.Module,
    scheduler: OUBridgeScheduler,
    quantizer: VectorQuantizer,
    codes: torch.Tensor,
    generator: Generators = None,
    batch_size: int = 64,
    class_labels: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""
    An upper bound (in expectation) on the bits per code that real maps of codes need under the diffusion prior.

    With y = z_q + n / sqrt(SNR), n standard normal, the entropy of the codes in nats is

        H = 1/2 integral_0^inf E||z_q - E[z_q | y]||^2 dSNR

    (Guo, Shamai and Verdu 2005; as a likelihood: Kong, Brekelmans and Ver Steeg 2023). The error of any other function
    of y is larger and bounds H from above; for the posterior mean under another law of the codes the integral is the
    cross-entropy. It compares with the bits of a PixelCNN on the same codes, `pixelcnn_nll` with all of them masked.

    The network was trained on z_e, and is off by more than the noise where that is small. So three functions of y are
    tried at each level: the network's z_0; the mean of the code vectors by p_k ~ exp(-SNR/2 ||y - e_k||^2), which sees
    no neighbors (its integral is log2 K for any codes); and that with the network as a second witness, times
    exp(-||z_0 - e_k||^2 / 2 tau^2), for some tau. Each half of the maps has what is best for the other half.

    Args:
        unet (`nn.Module`): in eval mode.
        scheduler ([`OUBridgeScheduler`]): the network is called at its noise levels.
        quantizer ([`VectorQuantizer`]): has the codebook, e.g. `vqvae.quantize`.
        codes (`torch.Tensor`): of real images, (n, h, w) or (n, N), n at least 2.
        generator (`torch.Generator` or a list with one per map, *optional*): source of the noise.
        batch_size (`int`, *optional*, defaults to 64): maps per call of the network, at least 1.
        class_labels (`torch.Tensor`, *optional*): (n,) int64, of a network with classes.

    Returns:
        `torch.Tensor`: (n,) float64 on the CPU, the mean over the codes of each map; the mean of all is the bound.

    Raises:
        TypeError: another kind of object than the one named above.
        ValueError: fewer than two maps, codes out of range, a codebook of one point, a network in training mode, a
            stock scheduler, or another number of labels.
    """
    errors = denoising_errors(unet, scheduler, quantizer, codes, generator, batch_size, class_labels)
    return bits_of_errors(errors, scheduler, quantizer, codes[0].numel())


@torch.no_grad()
def denoising_errors(
    unet: nn.Module,
    scheduler: OUBridgeScheduler,
    quantizer: VectorQuantizer,
    codes: torch.Tensor,
    generator: Generators = None,
    batch_size: int = 64,
    class_labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    What [`bridge_code_bits`] integrates, of each map; arguments and errors are its own.

    Returns:
        `torch.Tensor`: (n, levels, guesses) float64 on the CPU: ||z_q - E[z_q | y]||^2 by each of the functions of y,
            infinite where a level has no such function.
    """
    check_model("unet", unet, nn.Module, in_eval_mode=True)
    check_model("quantizer", quantizer, VectorQuantizer)
    if not isinstance(scheduler, OUBridgeScheduler):
        raise ValueError(f"The bits need the `OUBridgeScheduler` itself, got {type(scheduler).__name__}.")
    check_codes("codes", codes, quantizer.n_e, "(n, h, w) or (n, N)", (2, 3))
    check_count("batch_size", batch_size)
    check_generator(generator, len(codes))
    check_labels(class_labels, len(codes))
    book = quantizer.embedding.weight.float()
    variance, levels = _variance_and_levels(scheduler, quantizer)
    widths = [variance * 2.0**-j for j in range(1, _WIDTHS + 1)]  # tau^2
    labels = [None] * len(codes) if class_labels is None else class_labels.split(batch_size)

    by_level = []
    for snr, timestep in levels:
        errors = []  # (maps, guesses) of each batch
        generators = split_generators(generator, len(codes), batch_size)
        for k, own_labels, own_generators in zip(codes.split(batch_size), labels, generators, strict=False):
            z_q = quantizer.decode_codes(k).float()
            noise = randn_tensor(z_q.shape, generator=own_generators, device=z_q.device, dtype=z_q.dtype)
            alone = quantizer.logits(z_q + noise / math.sqrt(snr)) * (snr / 2)
            guesses = [alone.softmax(dim=-1) @ book]
            if timestep is not None:
                t = torch.full((len(k),), timestep, device=z_q.device)
                z_t = scheduler.add_noise(z_q, noise, t)
                output = denoise(unet, scheduler, z_t.to(quantizer.embedding.weight.dtype), t, own_labels)
                z_0 = scheduler.predict_original_sample(output.float(), t, z_t)
                witness = quantizer.logits(z_0)
                guesses += [z_0.movedim(1, -1)]
                guesses += [(alone + witness / (2 * width)).softmax(dim=-1) @ book for width in widths]
            off = [(guess - z_q.movedim(1, -1)).square().flatten(1).sum(dim=1) for guess in guesses]
            errors.append(torch.stack(off, dim=1).double().cpu())
        of_level = torch.cat(errors)
        none = of_level.new_full((len(codes), 2 + _WIDTHS - of_level.shape[1]), math.inf)
        by_level.append(torch.cat([of_level, none], dim=1))
    return torch.stack(by_level, dim=1)


def bits_of_errors(
    errors: torch.Tensor, scheduler: OUBridgeScheduler, quantizer: VectorQuantizer, num_positions: int
) -> torch.Tensor:
    """
    From errors (n, levels, guesses) of [`denoising_errors`] to bits per code of each map, (n,) float64.

    Raises:
        ValueError: fewer than two maps.
    """
    if len(errors) < 2:
        raise ValueError(f"At least two maps are needed, since each half is measured by the other, got {len(errors)}.")
    _, levels = _variance_and_levels(scheduler, quantizer)
    snr = torch.tensor([snr for snr, _ in levels], dtype=torch.float64)
    # (levels, n); below the lowest level the error hardly grows
    per_level = torch.stack([_of_the_others_best(level.T) for level in errors.unbind(1)]) * snr[:, None]
    nats = 0.5 * (torch.trapezoid(per_level, snr.log(), dim=0) + per_level[0])
    return nats / (num_positions * math.log(2))


def _variance_and_levels(
    scheduler: OUBridgeScheduler, quantizer: VectorQuantizer
) -> tuple[float, list[tuple[float, int | None]]]:
    """The variance of the code vectors, and the noise levels of the integral."""
    book = quantizer.embedding.weight.float()
    variance = (book - book.mean(dim=0)).square().sum(dim=1).mean().item()
    apart = torch.pdist(book.double()).square()
    apart = apart[apart > 1e-6 * variance]  # two codes with one vector are one to the decoder
    if not len(apart):
        raise ValueError("All code vectors are the same, so that codes can't be distinguished.")
    return variance, _levels(scheduler, _LOWEST / variance, _HIGHEST / apart.min().item())


def _levels(scheduler: OUBridgeScheduler, lowest: float, highest: float) -> list[tuple[float, int | None]]:
    """SNR about evenly in its logarithm, ascending, and the timestep that has it, None where the schedule has none."""
    own = scheduler.signal_to_noise(torch.arange(len(scheduler))).log()
    count = math.ceil(math.log(highest / lowest) / _LOG_STEP)
    levels: list[tuple[float, int | None]] = []
    for wanted in torch.linspace(math.log(lowest), math.log(highest), count + 1, dtype=torch.float64):
        timestep = int((own - wanted).abs().argmin())
        near = abs(own[timestep] - wanted) < _LOG_STEP / 2
        levels.append((math.exp(own[timestep] if near else wanted), timestep if near else None))
    return levels


def _of_the_others_best(errors: torch.Tensor) -> torch.Tensor:
    """(guesses, n) -> (n,): of each map the error of the guess that has the least on the other half of the maps."""
    chosen = torch.empty_like(errors[0])
    for half in (0, 1):
        best = errors[:, 1 - half :: 2].mean(dim=1).argmin()
        chosen[half::2] = errors[best, half::2]
    return chosen
