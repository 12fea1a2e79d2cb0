"""Metrics of priors: likelihoods, histograms of codes, and the time that sampling takes."""

import torch

from ..data.pixels import to_pixels
from ..sampling import split_generators
from .code_histograms import code_kl, code_perplexity, code_usage
from .elbo import elbo_of_terms
from .measurement import Figures, Measurement, mean
from .model_outputs import ModelOutputs
from .paper_masks import paper_mask
from .real_images import evenly
from .timing import seconds_per_sample

KL_IMAGES = 1000  # the paper's M
ELBO_TIMESTEPS = 32  # per image
TIMING_BATCH, TIMING_REPEATS = 32, 10  # the paper's batch
MASKS = {"center": "", "top-left": "_top_left"}  # and what the names of their figures end with


def masked_bits(outputs: ModelOutputs, count: int, mask: str) -> Measurement:
    """
    Bits per masked code ([`bridge_nll`], [`pixelcnn_nll`]): mean over images, with the standard deviation over them.
    A bridge also has the joint estimate from all draws of an image.
    """
    latents, codes = (evenly(rows, count) for rows in (outputs.test_latents, outputs.test_codes))
    hidden = paper_mask(mask, *codes.shape[1:]).to(outputs.real.device)

    def bits(rows: slice) -> dict[str, torch.Tensor]:
        generators = split_generators(outputs.generators(rows), len(codes[rows]), outputs.batch_size)
        batches = [
            outputs.prior.masked_bits(z, k, hidden, own)
            for z, k, own in zip(outputs.batches(latents[rows]), outputs.batches(codes[rows]), generators, strict=True)
        ]
        return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}

    found = outputs.processes.share(bits, len(codes))
    return Measurement({f"{name}{MASKS[mask]}": mean(values) for name, values in found.items()})


def code_bits(outputs: ModelOutputs, count: int) -> Measurement:
    """
    Bits per code of whole maps, comparable between priors on one autoencoder: exact of a PixelCNN, a bound of a
    bridge ([`bridge_code_bits`]). Mean and standard deviation over images.
    """
    codes = evenly(outputs.test_codes, count).to(outputs.real.device)
    errors = outputs.processes.rows(
        lambda rows: outputs.prior.code_errors(codes[rows], outputs.generators(rows), outputs.batch_size), count
    )
    return Measurement({"code_bits": mean(outputs.prior.code_bits(errors, codes[0].numel()))})


def code_histograms(outputs: ModelOutputs, count: int) -> Measurement:
    """KL map of Figure 4 and its mean, next to its floor (train against test), and how samples use the codebook."""
    sampled, test = outputs.sampled_codes(count), evenly(outputs.test_codes, count)
    train = outputs.quantize(outputs.encode(evenly(outputs.real.train, count)))
    num_codes = outputs.vqvae.config.num_vq_embeddings
    maps = {"kl": code_kl(sampled, test, num_codes), "kl_floor": code_kl(train, test, num_codes)}
    figures = {
        "kl": {"value": maps["kl"].mean().item(), "reference": "test images"},
        "kl_floor": {"value": maps["kl_floor"].mean().item(), "reference": "train against test images"},
    }
    return Measurement(figures | codebook_use(outputs, sampled, "_samples"), maps)


def elbo(outputs: ModelOutputs, count: int) -> Measurement:
    """-ELBO in bits per dimension, with its terms ([`bridge_elbo`])."""
    images, device = evenly(outputs.real.test, count), outputs.real.device

    def terms(rows: slice) -> torch.Tensor:
        pixels, generators = to_pixels(images[rows].to(device)), outputs.generators(rows)
        return outputs.prior.elbo_terms(pixels, generators, ELBO_TIMESTEPS, outputs.batch_size)

    bound = elbo_of_terms(outputs.processes.rows(terms, count), images[0].numel())
    return Measurement({f"elbo_{name}": {"value": value} for name, value in bound._asdict().items()})


def sampling_time(outputs: ModelOutputs, count: int) -> Measurement:
    """
    Seconds per sample at batch 32, decoding included: median, with the quartiles. Of this device: one process draws,
    and the others wait.
    """
    found = outputs.processes.decide(
        lambda: seconds_per_sample(
            lambda: outputs.prior.draw_images(TIMING_BATCH), TIMING_BATCH, count, device=outputs.real.device
        )
    )
    quartiles = [found.lower_quartile, found.upper_quartile]
    return Measurement({"seconds_per_sample": {"value": found.median, "quartiles": quartiles}})


def codebook_use(outputs: ModelOutputs, codes: torch.Tensor, suffix: str = "") -> Figures:
    num_codes = outputs.vqvae.config.num_vq_embeddings
    return {
        f"usage{suffix}": {"value": code_usage(codes, num_codes)},
        f"perplexity{suffix}": {"value": code_perplexity(codes, num_codes)},
    }
