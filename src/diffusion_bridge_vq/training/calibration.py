"""Statistics of the latents of an autoencoder that has none, such as a stock VQModel, from the run's images."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from diffusers.utils import logging

from ..data.pixels import to_pixels
from ..models import GumbelVQModel
from ..run_folder import RunFolder
from .agreement import on_main_process
from .config import Config
from .data import Images, preview_images
from .starting_point import check_images, load_autoencoder

logger = logging.get_logger(__name__)

# Latents have many positions, so that a few images are enough.
_IMAGES, _BATCH = 256, 16
# A channel with less than this part of the mean variance carries nothing.
_LEAST_VARIANCE = 1e-8
# An autoencoder that keeps less of the images' variance (around each image's mean color) is a bad start. A VQGAN of
# factor 16 keeps about 80% of photos.
_LEAST_EXPLAINED = 0.75


class LatentStatistics(NamedTuple):
    """
    Attributes:
        mean (`torch.Tensor`), variance (`torch.Tensor`): of each channel, (d,) float64.
        psnr (`float`): of reconstructions, in dB.
        explained (`float`): fraction of the images' variance around their mean colors that reconstructions keep.
        codes (`int`): how many were chosen.
        images (`int`): how many were measured.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    psnr: float
    explained: float
    codes: int
    images: int

    def __str__(self) -> str:
        std = self.variance.mean().sqrt().item()
        return (
            f"latents of {self.images} images have standard deviation {std:.3g}; {self.codes} codes used, "
            f"reconstruction PSNR {self.psnr:.1f} dB, {100 * self.explained:.0f}% of the images' variance kept"
        )


@torch.no_grad()
def measure_latents(vqvae: GumbelVQModel, images: torch.Tensor, batch_size: int = _BATCH) -> LatentStatistics:
    """
    Statistics of an autoencoder's latents and the quality of its reconstructions.

    Args:
        vqvae ([`GumbelVQModel`]): in eval mode.
        images (`torch.Tensor`): (n, C, H, W) uint8.
        batch_size (`int`, *optional*, defaults to 16): images at a time.

    Raises:
        ValueError: latents that aren't finite, or a channel without variance.
    """
    count, error, spread = 0, 0.0, 0.0
    total, squares, used = torch.zeros(()), torch.zeros(()), torch.zeros(vqvae.config.num_vq_embeddings)
    for pixels in _batches(images, batch_size, vqvae.device):
        latents = vqvae.encode(pixels).latents
        if not bool(latents.isfinite().all()):
            raise ValueError("The autoencoder gives latents that are NaN or infinite: its weights are damaged.")
        codes = vqvae.encode_codes(latents)
        decoded = vqvae.decode(vqvae.decode_codes(codes), force_not_quantize=True).sample.clamp(-1, 1)
        rows = latents.movedim(1, -1).flatten(0, 2).double().cpu()
        total, squares, count = total + rows.sum(0), squares + rows.square().sum(0), count + len(rows)
        used += codes.flatten().bincount(minlength=len(used)).cpu()
        error += (decoded - pixels).double().square().sum().item()
        spread += (pixels - pixels.mean((2, 3), keepdim=True)).double().square().sum().item()
    mean = total / count
    variance = squares / count - mean.square()
    if not math.isfinite(error):
        raise ValueError("The autoencoder gives images that are NaN or infinite: its weights are damaged.")
    dead = torch.nonzero(variance <= _LEAST_VARIANCE * variance.mean()).flatten().tolist()
    if dead:
        which = ", ".join(map(str, dead[:8])) + (" and more" if len(dead) > 8 else "")
        raise ValueError(
            f"Channels {which} of the latents don't vary over the images: a prior can't learn them. Is the "
            "autoencoder trained, and are the images its kind?"
        )
    mse = max(error / images.numel(), 1e-12)
    psnr = 10 * math.log10(4 / mse)  # pixels lie in [-1, 1]
    explained = 1 - error / spread if spread > 0 else 1.0
    return LatentStatistics(mean, variance, psnr, explained, int((used > 0).sum()), len(images))


def calibrate(config: Config, accelerator: Accelerator, images: Images, folder: Path) -> Config:
    """
    If the run starts from an autoencoder whose normalizer knows nothing, measure the latents on the run's images and
    save the autoencoder with their statistics. It gives each image the codes that it gave before.

    Args:
        config (`RunConfig`): of the run.
        accelerator (`Accelerator`): of all processes; each calls this function.
        images (`Images`): of the run.
        folder (`Path`): where to save, one for each process.

    Returns:
        `RunConfig`: one that starts from `folder`, or from what this run saved at its first start; the given one if
        there is nothing to do. Latents that a U-Net in `init_from` knows stay as they are.

    Raises:
        ValueError: an autoencoder for other images, see [`measure_latents`]; nothing but encoded images.
    """
    place, before = config.autoencoder_from, RunFolder(config.output_dir).calibrated
    knows_latents = config.init_from is not None and RunFolder(config.init_from).find_component("unet") is not None
    if place is None or knows_latents:
        return config
    if config.resume and before.is_dir():
        return dataclasses.replace(config, init_from=None, vqvae_from=before)
    found = on_main_process(accelerator, lambda: _measure(config, images, accelerator.device))
    if found is None:
        return config
    accelerator.print(f"The autoencoder in {place} has no statistics of its latents. Measured: {found}.")
    vqvae = load_autoencoder(place)
    vqvae.use_statistics(found.mean, found.variance.mean().sqrt().item())
    vqvae.save_pretrained(folder)
    return dataclasses.replace(config, init_from=None, vqvae_from=folder)


def _measure(config: Config, images: Images, device: torch.device) -> LatentStatistics | None:
    """None if the autoencoder has statistics."""
    place = config.autoencoder_from
    assert place is not None
    vqvae = load_autoencoder(place).to(device).eval()
    if vqvae.has_statistics or vqvae.normalizer.frozen:
        return None
    check_images(vqvae, config)
    pixels = preview_images(images, _IMAGES)
    if pixels is None:
        raise ValueError(
            f"The autoencoder in {place} has no statistics of its latents, and {images.name} holds no images to "
            "measure them on: train on the images, or encode them with the folder `calibrated` of a run on images."
        )
    found = measure_latents(vqvae, pixels)
    if found.explained < _LEAST_EXPLAINED:
        logger.warning(
            f"The autoencoder in {place} reconstructs {images.name} badly: PSNR {found.psnr:.1f} dB, "
            f"{100 * found.explained:.0f}% of the variance. No prior on it draws better. Take one that was trained "
            "on such images, or train it on with train_vqvae.py."
        )
    return found


def _batches(images: torch.Tensor, batch_size: int, device: torch.device) -> Iterator[torch.Tensor]:
    for part in images.split(batch_size):
        yield to_pixels(part.to(device))
