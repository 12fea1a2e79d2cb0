"""The evidence lower bound on images."""

import math
from typing import NamedTuple

import torch
from diffusers import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from ..losses.bridge import prior_loss_of_each
from ..models.code_unet import bridge_start_latents
from ..models.denoiser import denoise
from ..sampling import split_generators
from ..sampling.generators import Generators
from ..schedulers import OUBridgeScheduler
from .arguments import check_count, check_floats, check_generator, check_labels, check_model, check_number


class BridgeELBO(NamedTuple):
    """
    -ELBO and its terms in bits per dimension of the images (lower is better), and the variance of the decoder that
    they are computed with.
    """

    total: float
    reconstruction: float
    prior: float
    terminal: float
    variance: float


@torch.no_grad()
def bridge_elbo(
    vqvae: ModelMixin,
    unet: nn.Module,
    scheduler: OUBridgeScheduler,
    images: torch.Tensor,
    generator: Generators = None,
    timesteps_per_image: int | None = None,
    variance: float | None = None,
    batch_size: int = 64,
    class_labels: torch.Tensor | None = None,
) -> BridgeELBO:
    r"""
    -ELBO of lemma 3.1 in bits per dimension, mean over images.

    - `reconstruction`: -log N(x; decode(z_q^0), variance), a density of pixels in [-1, 1]. For 8-bit images
      log2(127.5) = 6.99 bits more are the usual bits per dimension.
    - `prior`: -sum_{t=1}^T L_t by eq. 4 ([`prior_loss`] with weighting "elbo"). At t = 1 it is the exact
      -log p(z_0 | z_1), a Gaussian of variance beta_1 s^2, with the normalizer that the loss leaves out.
    - `terminal`: KL(q(z_T | z_0) || N(z*, s^2)), exact ([`OUBridgeScheduler.terminal_kl`]).

    L^reg is 0: codes are taken to be the nearest in the model, too, p(z_q^t | z_e^t) = q(z_q^t | z_e^t). The codes are
    functions of the latents then.

    The encoder gives points, so -log p(z_0 | z_1) is a density of latents, which has no entropy against it: the total
    depends on the scale of the latents and the variance beta_1 s^2. It compares priors on the latents of one
    autoencoder, or training runs with `normalize_latents`; it isn't a bound on the pixels' log-likelihood alone.

    Args:
        vqvae ([`GumbelVQModel`] or [`SequenceVQModel`]), unet (`nn.Module`): in eval mode.
        scheduler ([`OUBridgeScheduler`]): its T noise levels are the chain.
        images (`torch.Tensor`): (n, C, H, W) in [-1, 1], or sequences (n, d, N), on the models' device.
        generator (`torch.Generator` or a list with one per image, *optional*): source of noise and timesteps.
        timesteps_per_image (`int`, *optional*): estimate the sum over t from that many random t per image, drawn
            with replacement; without it, all T are gone through, each with noise of its own.
        variance (`float`, *optional*): of the decoder, > 0. Without it, the mean squared error over all images, which
            makes their likelihood largest.
        batch_size (`int`, *optional*, defaults to 64): images per call of the networks, at least 1.
        class_labels (`torch.Tensor`, *optional*): (n,) int64, of a network with classes.

    Raises:
        TypeError: another kind of object than the one named above.
        ValueError: no images, numbers out of range, another number of labels, models in training mode, a stock
            scheduler, or a mean squared error of 0 where the variance is to be found.
    """
    if variance is not None:
        check_number("variance", variance, 0, inclusive=False)
    terms = elbo_terms(vqvae, unet, scheduler, images, generator, timesteps_per_image, batch_size, class_labels)
    return elbo_of_terms(terms, images[0].numel(), variance)


@torch.no_grad()
def elbo_terms(
    vqvae: ModelMixin,
    unet: nn.Module,
    scheduler: OUBridgeScheduler,
    images: torch.Tensor,
    generator: Generators = None,
    timesteps_per_image: int | None = None,
    batch_size: int = 64,
    class_labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    What [`bridge_elbo`] sums up, of each image; arguments and errors are its own.

    Returns:
        `torch.Tensor`: (n, 3) float64 on the CPU: squared error of the reconstruction, and nats of prior and terminal
            term.
    """
    if not isinstance(scheduler, OUBridgeScheduler):
        raise ValueError(f"The ELBO needs the `OUBridgeScheduler` itself, got {type(scheduler).__name__}.")
    check_model("vqvae", vqvae, ModelMixin, in_eval_mode=True)
    check_model("unet", unet, nn.Module, in_eval_mode=True)
    if timesteps_per_image is not None:
        check_count("timesteps_per_image", timesteps_per_image)
    check_count("batch_size", batch_size)
    check_floats("images", images, "(n, C, H, W) or (n, d, N)", (3, 4))
    check_generator(generator, len(images))
    check_labels(class_labels, len(images))

    labels = [None] * len(images) if class_labels is None else class_labels.split(batch_size)
    terms = []
    generators = split_generators(generator, len(images), batch_size)
    for x, own_labels, own_generators in zip(images.split(batch_size), labels, generators, strict=False):
        z_e = vqvae.encode(x).latents
        squared_error = (vqvae.decode(z_e).sample.double() - x.double()).square().flatten(1).sum(dim=1)
        z_0 = bridge_start_latents(unet, vqvae.quantize, z_e)
        prior = _prior_nats(unet, scheduler, z_0, own_generators, timesteps_per_image, own_labels)
        terminal = scheduler.terminal_kl(z_0).double().flatten(1).sum(dim=1)
        terms.append(torch.stack([squared_error, prior, terminal], dim=1).cpu())
    return torch.cat(terms)


def elbo_of_terms(terms: torch.Tensor, num_dimensions: int, variance: float | None = None) -> BridgeELBO:
    """
    From terms (n, 3) of [`elbo_terms`] to the bound; `num_dimensions` is the number of values of an image.

    Raises:
        ValueError: a mean squared error of 0 where the variance is to be found.
    """
    squared_error, prior, terminal = terms.mean(dim=0).tolist()
    mse = squared_error / num_dimensions
    if variance is None:
        if mse == 0:
            raise ValueError("Reconstructions are perfect, so no variance is the best one: give `variance`.")
        variance = mse
    reconstruction = (0.5 * math.log(2 * math.pi * variance) + mse / (2 * variance)) / math.log(2)
    nats_per_bit = num_dimensions * math.log(2)
    prior, terminal = prior / nats_per_bit, terminal / nats_per_bit
    return BridgeELBO(reconstruction + prior + terminal, reconstruction, prior, terminal, variance)


def _prior_nats(
    unet: nn.Module,
    scheduler: OUBridgeScheduler,
    z_0: torch.Tensor,
    generator: Generators,
    timesteps_per_image: int | None,
    class_labels: torch.Tensor | None,
) -> torch.Tensor:
    """-sum_t L_t of each sample, (B,) float64."""
    num_draws = timesteps_per_image or len(scheduler)
    total = torch.zeros(len(z_0), dtype=torch.float64, device=z_0.device)
    for draw in range(num_draws):
        if timesteps_per_image is None:
            timesteps = torch.full((len(z_0),), draw, device=z_0.device)
        else:
            timesteps = _random_timesteps(len(scheduler), len(z_0), generator).to(z_0.device)
        noise = randn_tensor(z_0.shape, generator=generator, device=z_0.device, dtype=z_0.dtype)
        output = denoise(unet, scheduler, scheduler.add_noise(z_0, noise, timesteps), timesteps, class_labels)
        total += prior_loss_of_each(scheduler, output, z_0, noise, timesteps, weighting="elbo")
    coordinates = z_0[0].numel()
    # what `prior_loss` leaves out at t = 1; it doesn't depend on z
    variance = float(scheduler.betas[0]) * scheduler.stationary_std**2
    normalizer = 0.5 * math.log(2 * math.pi * variance)
    return coordinates * (total * len(scheduler) / num_draws + normalizer)


def _random_timesteps(stop: int, count: int, generator: Generators) -> torch.Tensor:
    if isinstance(generator, list):
        return torch.cat([_random_timesteps(stop, 1, one) for one in generator])
    device = torch.device("cpu") if generator is None else generator.device
    return torch.randint(stop, (count,), generator=generator, device=device)
