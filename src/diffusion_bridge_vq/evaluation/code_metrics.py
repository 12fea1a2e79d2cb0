"""Metrics of priors: likelihoods, histograms of codes, and the time that sampling takes."""

import itertools
from collections.abc import Callable

import torch

from ..data.pixels import to_pixels
from ..sampling import split_generators
from ..sampling.generators import Generators
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
    found = _of_images(
        outputs,
        lambda z, k, generators, given: outputs.prior.masked_bits(z, k, hidden, generators, given),
        latents,
        codes,
    )
    return Measurement({f"{name}{MASKS[mask]}": mean(values) for name, values in found.items()})


def code_bits(outputs: ModelOutputs, count: int) -> Measurement:
    """
    Bits per code of whole maps, comparable between priors on one autoencoder: exact of a PixelCNN, a bound of a
    bridge ([`bridge_code_bits`]). Mean and standard deviation over images.
    """
    codes = evenly(outputs.test_codes, count)
    found = _of_images(outputs, lambda *batch: {"errors": outputs.prior.code_errors(*batch)}, codes)
    return Measurement({"code_bits": mean(outputs.prior.code_bits(found["errors"], codes[0].numel()))})


def code_histograms(outputs: ModelOutputs, count: int) -> Measurement:
    """KL map of Figure 4 and its mean, next to its floor (train against test), and how samples use the codebook."""
    test = evenly(outputs.test_codes, count)
    if outputs.conditions is None:
        sampled = outputs.sampled_codes(count)
    else:  # drawn from these images
        sampled = evenly(outputs.sampled_codes(len(outputs.test_codes)), count)
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
    images = evenly(outputs.real.test, count)

    def terms(batch: torch.Tensor, generators: Generators, given: torch.Tensor | None) -> dict[str, torch.Tensor]:
        return {"terms": outputs.prior.elbo_terms(to_pixels(batch), generators, ELBO_TIMESTEPS, given)}

    bound = elbo_of_terms(_of_images(outputs, terms, images)["terms"], images[0].numel())
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


def _of_images(
    outputs: ModelOutputs, work: Callable[..., dict[str, torch.Tensor]], *tensors: torch.Tensor
) -> dict[str, torch.Tensor]:
    """
    `work` on batches of rows of `tensors`, which are evenly spaced test images or of them, by all processes: from the
    batches, their generators, and what a model draws from, to named rows.
    """
    count = len(tensors[0])
    given = None if outputs.conditions is None else evenly(outputs.conditions, count)

    def of_share(rows: slice) -> dict[str, torch.Tensor]:
        generators = split_generators(outputs.generators(rows), rows.stop - rows.start, outputs.batch_size)
        batches = zip(*(outputs.batches(tensor[rows]) for tensor in tensors), strict=True)
        conditions = itertools.repeat(None) if given is None else outputs.batches(given[rows])
        found = [work(*batch, own, c) for batch, own, c in zip(batches, generators, conditions, strict=False)]
        return {name: torch.cat([part[name] for part in found]) for name in found[0]}

    return outputs.processes.share(of_share, count)


def codebook_use(outputs: ModelOutputs, codes: torch.Tensor, suffix: str = "") -> Figures:
    num_codes = outputs.vqvae.config.num_vq_embeddings
    return {
        f"usage{suffix}": {"value": code_usage(codes, num_codes)},
        f"perplexity{suffix}": {"value": code_perplexity(codes, num_codes)},
    }
