"""Autoencoders against real images: what they lose, before any prior draws from them."""

import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from ..data.images import short_hash
from ..data.pixels import to_bytes, to_pixels
from ..models import GumbelVQModel
from .code_histograms import code_perplexity, code_usage
from .config import EvaluationConfig
from .features import extract, load_extractor
from .frechet import frechet_distance
from .image_quality import SSIM_WINDOW, psnr, ssim
from .results import RESULTS_FILE, append_results, recall_results

_EXTRACTOR_BATCH = 32
_ROUNDING_PSNR = 10 * math.log10(12 * 255**2)  # of rounding to 8 bits, in dB
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
        self.fingerprint = short_hash(*(_bytes(images) for images in (self.train, self.test)))
        self._features: dict[str, torch.Tensor] = {}

    @cached_property
    def extractor(self) -> Any:
        return load_extractor(self.extractor_name, self.device)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Of uint8 images (n, C, H, W), kept: models with one autoencoder share their reconstructions."""
        key = short_hash(_bytes(images))
        if key not in self._features:
            self._features[key] = extract(self.extractor, images, batch_size=_EXTRACTOR_BATCH)
        return self._features[key]


class AutoencoderEvaluator:
    """
    Metrics of an autoencoder. What each finds is appended to `output_dir`/results.json in one go, with what it takes
    to read it; a metric whose figures stand there already, of the same weights, images and settings, isn't measured
    again. Reconstructions of the test images are made once.

    Args:
        model (`str`): its name in the results.
        vqvae ([`GumbelVQModel`]): on the device of `real`.
        real ([`RealImages`]): what it is compared with.
        output_dir (`Path`): exists.
        config ([`EvaluationConfig`]): `num_images` and `extractor` are those of `real`.
        batch_size (`int`): images per call of the networks.
        facts: stand beside every result, e.g. preset.
    """

    def __init__(
        self,
        model: str,
        vqvae: GumbelVQModel,
        real: RealImages,
        output_dir: Path,
        config: EvaluationConfig,
        batch_size: int = 64,
        **facts: Any,
    ):
        self.model, self.vqvae, self.real, self.output_dir = model, vqvae.eval(), real, output_dir
        self.config, self.batch_size, self.facts = config, batch_size, facts

    @cached_property
    def weights(self) -> str:
        """Fingerprint of what is measured."""
        return fingerprint(self.vqvae)

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
        settings = self._settings("rfid", len(self.real.test), extractor=self.real.extractor_name)
        if self._is_measured(settings):
            return
        distance = frechet_distance(*(self.real.features(images) for images in (self.reconstructions, self.real.test)))
        self._append(settings, {"frechet_reconstruction": {"value": distance, "reference": "test images"}})

    def reconstruction(self) -> None:
        """
        PSNR in dB and SSIM of reconstructions, and how the test images use the codebook. An image's PSNR is at most
        that of rounding to 8 bits, since a blank one can come back exactly. Images smaller than SSIM's window have
        none.
        """
        settings = self._settings("reconstruction", len(self.real.test))
        if self._is_measured(settings):
            return
        pairs = [images.float() / 255 for images in (self.reconstructions, self.real.test)]
        figures = {"psnr": mean(psnr(*pairs).clamp(max=_ROUNDING_PSNR)) | {"reference": "test images"}}
        if min(self.real.test.shape[2:]) >= SSIM_WINDOW:
            figures["ssim"] = mean(ssim(*pairs)) | {"reference": "test images"}
        self._append(settings, figures | self._code_use(self.test_codes))

    def _code_use(self, codes: torch.Tensor, suffix: str = "") -> dict[str, dict[str, float]]:
        num_codes = self.vqvae.config.num_vq_embeddings
        return {
            f"usage{suffix}": {"value": code_usage(codes, num_codes)},
            f"perplexity{suffix}": {"value": code_perplexity(codes, num_codes)},
        }

    def _generator(self) -> torch.Generator:
        return torch.Generator(self.real.device).manual_seed(self.config.seed)

    def _batches(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        return [part.to(self.real.device) for part in tensor.split(self.batch_size)]

    @torch.no_grad()
    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        batches = self._batches(images)
        return torch.cat([self.vqvae.encode(to_pixels(x)).latents.cpu() for x in batches])

    @torch.no_grad()
    def _codes(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.vqvae.encode_codes(z).cpu() for z in self._batches(latents)])

    @torch.no_grad()
    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        pixels = []
        for k in self._batches(codes):
            decoded = self.vqvae.decode(self.vqvae.decode_codes(k), force_not_quantize=True).sample
            pixels.append(to_bytes(decoded).cpu())
        return torch.cat(pixels)

    def _settings(self, metric: str, n: int, **own: Any) -> dict[str, Any]:
        """What makes two measurements the same: facts of all that `metric` appends."""
        model = {"metric": metric, "model": self.model, "weights": self.weights}
        data = {"dataset": self.real.dataset, "images": self.real.fingerprint, "n": n}
        return model | data | {"seed": self.config.seed} | self.facts | own

    def _is_measured(self, settings: dict[str, Any]) -> bool:
        found = recall_results(self.output_dir / RESULTS_FILE, **settings)
        self._print(found, " (measured before)")
        return bool(found)

    def _append(self, settings: dict[str, Any], figures: dict[str, dict[str, Any]]) -> None:
        self._print(append_results(self.output_dir / RESULTS_FILE, figures, **settings, device=self.real.device))

    def _print(self, results: list[dict[str, Any]], remark: str = "") -> None:
        for result in results:
            print(f"{self.model:<12} {result['name']:<24} {result['value']:.4g}{remark}", flush=True)


def fingerprint(*components: Any) -> str:
    """16 hexadecimal digits over the configurations and weights of diffusers' components, wherever these are."""

    parts = []
    for component in components:
        config = json.loads(component.to_json_string())
        public = {key: value for key, value in config.items() if not key.startswith("_")}  # no path, no version
        parts.append(json.dumps([type(component).__name__, public], sort_keys=True))
        if isinstance(component, nn.Module):
            for name, tensor in component.state_dict().items():
                parts.append(f"{name} {tensor.dtype} {tuple(tensor.shape)} {short_hash(_bytes(tensor))}")
    return short_hash(*(part.encode() for part in parts))


def mean(values: torch.Tensor) -> dict[str, float]:
    """A figure that is the mean over images, with its standard deviation if there are several."""
    return {"value": values.mean().item()} | ({"std": values.std().item()} if len(values) > 1 else {})


def evenly(items: torch.Tensor, count: int) -> torch.Tensor:
    """`count` of the rows, or all if there are fewer: of sets in the order of their classes, some of each."""
    return items[torch.linspace(0, len(items) - 1, min(count, len(items))).long()]


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _take(split: Any, count: int) -> torch.Tensor:
    """`count` images evenly from a data set, uint8 (count, C, H, W)."""
    if not 1 <= count <= len(split):
        raise ValueError(f"{split.name} has {len(split)} images, {count} of them are asked for.")
    indices = evenly(torch.arange(len(split)), count).tolist()
    return torch.stack([item["images"] for item in split.__getitems__(indices)])
