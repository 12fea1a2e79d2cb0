"""Autoencoders against real images: what they lose, before any prior draws from them."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from ..models import GumbelVQModel
from .features import extract, load_extractor
from .frechet import frechet_distance
from .images import psnr, ssim
from .latents import code_perplexity, code_usage
from .report import append_result

_EXTRACTOR_BATCH = 32
AUTOENCODER_METRICS = ("rfid", "reconstruction")


class RealImages:
    """
    Images that models are held against, evenly taken from the train and test splits, and their features.

    Args:
        dataset (`str`): its name in the results; "cifar10" and "miniimagenet" have places in the paper's tables.
        train, test (`Dataset`): as `load_images` gives them.
        num_images (`int`): of each split, at least 1.
        extractor (`str`): see [`load_extractor`].
        device (`torch.device`): of extractor and models.

    Raises:
        ValueError: a split with fewer images, or an extractor that can't be had.
    """

    def __init__(
        self, dataset: str, train: Dataset, test: Dataset, num_images: int, extractor: str, device: torch.device | str
    ):
        self.dataset, self.device, self.extractor_name = dataset, torch.device(device), extractor
        self.train, self.test = (_take(split, num_images) for split in (train, test))
        self._features: dict[bytes, torch.Tensor] = {}

    @cached_property
    def extractor(self) -> Any:
        return load_extractor(self.extractor_name, self.device)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Of uint8 images (n, C, H, W), kept: models with one autoencoder share their reconstructions."""
        key = hashlib.sha256(images.numpy().tobytes()).digest()
        if key not in self._features:
            self._features[key] = extract(self.extractor, images, batch_size=_EXTRACTOR_BATCH)
        return self._features[key]


class AutoencoderEvaluator:
    """
    Metrics of an autoencoder, each appended to `output_dir`/results.json with what it takes to read it. Its
    reconstructions of the test images are made once.

    Args:
        model (`str`): its name in the results.
        vqvae ([`GumbelVQModel`]): on the device of `real`.
        real ([`RealImages`]): what it is compared with.
        output_dir (`Path`): exists.
        batch_size (`int`): images per call of the networks.
        seed (`int`): of every draw.
        facts: stand beside every result, e.g. preset.
    """

    def __init__(
        self,
        model: str,
        vqvae: GumbelVQModel,
        real: RealImages,
        output_dir: Path,
        batch_size: int = 64,
        seed: int = 0,
        **facts: Any,
    ):
        self.model, self.vqvae, self.real, self.output_dir = model, vqvae.eval(), real, output_dir
        self.batch_size, self.seed, self.facts = batch_size, seed, facts

    @cached_property
    def test_latents(self) -> torch.Tensor:
        """z_e of the test images, (n, d, h, w) on the CPU."""
        return self._encode(self.real.test)

    @cached_property
    def test_codes(self) -> torch.Tensor:
        return self._codes(self.test_latents)

    @cached_property
    def reconstructions(self) -> torch.Tensor:
        """Of the test images, uint8 (n, C, H, W)."""
        return self._decode(self.test_codes)

    def rfid(self) -> None:
        """Frechet distance of reconstructions from the test images: what no prior can get below."""
        features = [self.real.features(images) for images in (self.reconstructions, self.real.test)]
        names = {"reference": "test images", "extractor": self.real.extractor_name}
        self._append("frechet_reconstruction", frechet_distance(*features), len(self.real.test), **names)

    def reconstruction(self) -> None:
        """PSNR in dB and SSIM of reconstructions, and how the test images use the codebook."""
        pairs = [images.float() / 255 for images in (self.reconstructions, self.real.test)]
        self._append_mean("psnr", psnr(*pairs), reference="test images")
        self._append_mean("ssim", ssim(*pairs), reference="test images")
        num_codes = self.vqvae.config.num_vq_embeddings
        self._append("usage", code_usage(self.test_codes, num_codes), len(self.test_codes))
        self._append("perplexity", code_perplexity(self.test_codes, num_codes), len(self.test_codes))

    def _generator(self) -> torch.Generator:
        return torch.Generator(self.real.device).manual_seed(self.seed)

    def _batches(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        return [part.to(self.real.device) for part in tensor.split(self.batch_size)]

    @torch.no_grad()
    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        batches = self._batches(images)
        return torch.cat([self.vqvae.encode(x.float().div(127.5).sub(1)).latents.cpu() for x in batches])

    @torch.no_grad()
    def _codes(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.vqvae.encode_codes(z).cpu() for z in self._batches(latents)])

    @torch.no_grad()
    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        pixels = []
        for k in self._batches(codes):
            decoded = self.vqvae.decode(self.vqvae.decode_codes(k), force_not_quantize=True).sample
            pixels.append(decoded.add(1).mul(127.5).round().clamp(0, 255).byte().cpu())
        return torch.cat(pixels)

    def _append_mean(self, name: str, values: torch.Tensor, **facts: Any) -> None:
        self._append(name, values.mean().item(), len(values), std=values.std().item(), **facts)

    def _append(self, name: str, value: float, n: int, **facts: Any) -> None:
        own = {"model": self.model, "dataset": self.real.dataset} | self.facts
        path = self.output_dir / "results.json"
        append_result(path, name, value, n=n, seed=self.seed, device=self.real.device, **own, **facts)
        print(f"{self.model:<12} {name:<24} {value:.4g}", flush=True)


def _take(split: Any, count: int) -> torch.Tensor:
    """`count` images evenly from a data set, uint8 (count, C, H, W)."""
    if not 1 <= count <= len(split):
        raise ValueError(f"{split.name} has {len(split)} images, {count} of them are asked for.")
    indices = torch.linspace(0, len(split) - 1, count).long().tolist()
    return torch.stack([item["images"] for item in split.__getitems__(indices)])
