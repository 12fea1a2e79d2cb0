"""From saved pipelines and real images to results in a file: every metric of the paper's section 4."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

from ..data import load_images
from ..data.masks import paper_mask
from ..figures import FIGURES_FILE, plot_kl_maps, sample_sheets
from ..models import PixelCNNPrior
from ..pipelines import DiffusionBridgeVQPipeline, PixelCNNVQPipeline
from ..sampling import Solver
from ..schedulers import OUBridgeScheduler
from .elbo import bridge_elbo
from .features import extract, load_extractor
from .frechet import frechet_distance
from .images import precision_recall, psnr, ssim
from .latents import bridge_nll, code_kl, code_perplexity, code_usage, pixelcnn_nll
from .report import append_result, read_results
from .tables import all_results, paper_tables
from .timing import seconds_per_sample

_KL_IMAGES = 1000  # the paper's M
_TIMING_BATCH = 32  # the paper's
_SHEET_IMAGES = 64
_EXTRACTOR_BATCH = 32
_MASKS = ("center", "top-left")
METRICS = ("fid", "nll", "kl", "reconstruction", "elbo", "timing")


def evaluate_pipelines(
    folders: Mapping[str, str | Path],
    dataset: str,
    output_dir: Path,
    metrics: Sequence[str] = METRICS,
    dataset_name: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    num_images: int = 5000,
    num_nll_images: int = 256,
    num_nll_samples: int = 4,
    num_inference_steps: int = 50,
    solver: Solver = "ancestral",
    extractor: str = "inception",
    batch_size: int = 64,
    seed: int = 0,
    device: torch.device | str = "cpu",
    **facts: Any,
) -> None:
    """
    Measure saved pipelines on one data set; results go to `output_dir`/results.json, see [`Evaluator`].

    Args:
        folders (`Mapping[str, str]`): {model: folder of a saved pipeline, bridge or PixelCNN}.
        dataset (`str`): as `load_images` takes it.
        metrics (`Sequence[str]`): of `METRICS`.
        dataset_name (`str`, *optional*): in the results, see [`RealImages`].
        train_split, test_split (`str`): of the images that models were trained on and are held against.
        num_images (`int`), extractor (`str`): see [`RealImages`].
        num_nll_images (`int`): images of which codes are masked, and of the ELBO.
        num_nll_samples (`int`): draws per masked image.
        num_inference_steps, solver, batch_size, seed, facts: see [`Evaluator`].
        device (`torch.device`): of everything.

    Raises:
        ValueError: no pipeline or an unknown metric, and what the metrics raise.
    """
    if not folders:
        raise ValueError("No pipeline is given: name at least one, e.g. bridge=outputs/demo/pipeline.")
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        raise ValueError(f"Metrics are {', '.join(METRICS)}, got {', '.join(unknown)}.")
    output_dir.mkdir(parents=True, exist_ok=True)
    real = None
    for model, folder in folders.items():
        cls = PixelCNNVQPipeline if (Path(folder) / "prior").is_dir() else DiffusionBridgeVQPipeline
        pipe = cls.from_pretrained(folder).to(device)
        if real is None:
            config = pipe.vqvae.config
            size = {"resolution": config.sample_size, "channels": config.in_channels}
            train, test = (load_images(dataset, split=split, **size) for split in (train_split, test_split))
            real = RealImages(dataset_name or train.name, train, test, num_images, extractor, device)
        evaluator = Evaluator(model, pipe, real, output_dir, num_inference_steps, solver, batch_size, seed, **facts)
        calls = {"nll": (num_nll_images, num_nll_samples), "elbo": (num_nll_images,)}
        for metric in metrics:
            getattr(evaluator, metric)(*calls.get(metric, ()))


def write_report(output_dir: Path) -> list[Path]:
    """
    The paper's tables and all results (tables.md), KL maps and sheets of samples, from what `output_dir` holds.

    Raises:
        ValueError: there is no results.json.
    """
    results = output_dir / "results.json"
    if not results.is_file():
        raise ValueError(f"There is no {results}: measure something first.")
    tables = output_dir / "tables.md"
    found = read_results(results)
    tables.write_text(f"{paper_tables(found)}\n{all_results(found)}")
    return [tables, *plot_kl_maps(output_dir), *sample_sheets(output_dir)]


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


class Evaluator:
    """
    All metrics of one model, each appended to `output_dir`/results.json with what it takes to read it.

    The model's samples are drawn once, as its reconstructions of the test images are made once. Figures' data go to
    `output_dir`/figures.safetensors: samples/MODEL, kl/MODEL and kl_floor/MODEL.

    Args:
        model (`str`): its name in the results; "bridge", "bridge-e2e" and "pixelcnn" have places in the tables.
        pipe: [`DiffusionBridgeVQPipeline`] or [`PixelCNNVQPipeline`], on the device of `real`.
        real ([`RealImages`]): what it is compared with.
        output_dir (`Path`): exists.
        num_inference_steps (`int`): reverse steps of a bridge; a PixelCNN has none.
        solver (`str`): of a bridge's samples, as the pipeline takes it; likelihoods are always "ancestral", the
            paper's.
        batch_size (`int`): images per call of the networks.
        seed (`int`): of every draw.
        facts: stand beside every result, e.g. preset.
    """

    def __init__(
        self,
        model: str,
        pipe: DiffusionPipeline,
        real: RealImages,
        output_dir: Path,
        num_inference_steps: int = 50,
        solver: Solver = "ancestral",
        batch_size: int = 64,
        seed: int = 0,
        **facts: Any,
    ):
        self.model, self.pipe, self.real, self.output_dir = model, pipe, real, output_dir
        self.vqvae = pipe.vqvae.eval()
        self.batch_size, self.seed, self.facts = batch_size, seed, facts
        self.is_bridge = hasattr(pipe, "unet")
        self.call: dict[str, Any] = {"num_inference_steps": num_inference_steps} if self.is_bridge else {}
        if self.is_bridge and isinstance(pipe.scheduler, OUBridgeScheduler):  # a stock scheduler is its own solver
            self.call["solver"] = solver
        pipe.set_progress_bar_config(disable=True)

    # --------------------------------------------------------------------------------------------------- collecting

    @cached_property
    def sampled_codes(self) -> torch.Tensor:
        """As many maps of codes as there are test images, (n, h, w) on the CPU."""
        generator = self._generator()
        codes: list[torch.Tensor] = []
        for start in range(0, len(self.real.test), self.batch_size):
            count = min(self.batch_size, len(self.real.test) - start)
            latents = self.pipe(batch_size=count, generator=generator, output_type="latent", **self.call).images
            codes.append(self.vqvae.encode_codes(latents).cpu())
        return torch.cat(codes)

    @cached_property
    def samples(self) -> torch.Tensor:
        """Decoded, uint8 (n, C, H, W)."""
        return self._decode(self.sampled_codes)

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

    # ------------------------------------------------------------------------------------------------------ metrics

    def fid(self) -> None:
        """
        Samples against reconstructions (the paper's FID) and against real images, reconstructions against real images
        (what no prior can get below), and precision and recall, so that memorising and mode dropping show. Keeps the
        first 64 samples for a sheet as Figure 5.
        """
        features, reconstruction_features, test_features = (
            self.real.features(images) for images in (self.samples, self.reconstructions, self.real.test)
        )
        names = {"extractor": self.real.extractor_name}
        for name, rows, reference_rows, reference in (
            ("frechet", features, reconstruction_features, "reconstructions of test images"),
            ("frechet_real", features, test_features, "test images"),
            ("frechet_reconstruction", reconstruction_features, test_features, "test images"),
        ):
            self._append(name, frechet_distance(rows, reference_rows), len(rows), reference=reference, **names)
        found = precision_recall(features, reconstruction_features)
        for name, value in (("precision", found.precision), ("recall", found.recall)):
            self._append(name, value, len(features), reference="reconstructions of test images", **names)
        self._keep(samples=self.samples[:_SHEET_IMAGES])

    def nll(self, num_images: int = 256, num_samples: int = 4, jump_n_sample: int = 1) -> None:
        """
        Bits per masked code, centre and top left hidden ([`bridge_nll`], [`pixelcnn_nll`]): mean over images, with the
        standard deviation over them. For a bridge also the joint estimate from `num_samples` draws.
        """
        latents, codes = self.test_latents[:num_images], self.test_codes[:num_images]
        for mask_name in _MASKS:
            mask = paper_mask(mask_name, *codes.shape[1:]).to(self.real.device)
            suffix = "" if mask_name == _MASKS[0] else "_top_left"
            facts: dict[str, Any] = {"reference": "test images", "mask": mask_name}
            if not self.is_bridge:
                prior: PixelCNNPrior = self.pipe.prior
                bits = [pixelcnn_nll(prior, part, mask) for part in self._batches(codes)]
                self._append_mean(f"nll{suffix}", torch.cat(bits), **facts)
                continue
            generator, parts = self._generator(), []
            for z, k in zip(self._batches(latents), self._batches(codes), strict=True):
                parts.append(
                    bridge_nll(
                        self.pipe.unet,
                        self.pipe.scheduler,
                        self.vqvae.quantize,
                        z,
                        k,
                        mask,
                        num_samples,
                        self.call["num_inference_steps"],
                        generator,
                        jump_n_sample=jump_n_sample,
                    )
                )
            facts |= {"draws": num_samples, "jump_n_sample": jump_n_sample}
            self._append_mean(f"nll{suffix}", torch.cat([p.one_sample for p in parts]), **facts)
            self._append_mean(f"nll_joint{suffix}", torch.cat([p.joint for p in parts]), **facts)

    def kl(self) -> None:
        """KL map of Figure 4 and its mean, beside its floor (train against test), and how the codebook is used."""
        count, num_codes = min(_KL_IMAGES, len(self.test_codes)), self.vqvae.config.num_vq_embeddings
        real = self.test_codes[:count]
        train = self._codes(self._encode(self.real.train[:count]))
        maps = {
            "kl": code_kl(self.sampled_codes[:count], real, num_codes),
            "kl_floor": code_kl(train, real, num_codes),
        }
        self._keep(**maps)
        self._append("kl", maps["kl"].mean().item(), count, reference="test images")
        self._append("kl_floor", maps["kl_floor"].mean().item(), count, reference="train against test images")
        for name, codes in (("", real), ("_samples", self.sampled_codes[:count])):
            self._append(f"usage{name}", code_usage(codes, num_codes), count)
            self._append(f"perplexity{name}", code_perplexity(codes, num_codes), count)

    def reconstruction(self) -> None:
        """PSNR in dB and SSIM of reconstructions."""
        pairs = [images.float() / 255 for images in (self.reconstructions, self.real.test)]
        self._append_mean("psnr", psnr(*pairs), reference="test images")
        self._append_mean("ssim", ssim(*pairs), reference="test images")

    def elbo(self, num_images: int = 256, timesteps_per_image: int = 32) -> None:
        """-ELBO in bits per dimension with its terms; a PixelCNN has none, nor a bridge with a stock scheduler."""
        if not self.is_bridge or not isinstance(self.pipe.scheduler, OUBridgeScheduler):
            return
        images = self.real.test[:num_images].to(self.real.device).float().div(127.5).sub(1)
        bound = bridge_elbo(
            self.vqvae,
            self.pipe.unet.eval(),
            self.pipe.scheduler,
            images,
            self._generator(),
            timesteps_per_image,
            batch_size=self.batch_size,
        )
        for name, value in bound._asdict().items():
            self._append(f"elbo_{name}", value, len(images), reference="test images")

    def timing(self, repeats: int = 10) -> None:
        """Seconds per sample at batch 32, images included: median, with the quartiles."""

        def draw() -> None:
            self.pipe(batch_size=_TIMING_BATCH, output_type="pt", **self.call)

        found = seconds_per_sample(draw, _TIMING_BATCH, repeats, device=self.real.device)
        quartiles = [found.lower_quartile, found.upper_quartile]
        self._append("seconds_per_sample", found.median, repeats, batch_size=_TIMING_BATCH, quartiles=quartiles)

    # ---------------------------------------------------------------------------------------------------- internals

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

    def _keep(self, **tensors: torch.Tensor) -> None:
        path = self.output_dir / FIGURES_FILE
        kept = load_file(path) if path.is_file() else {}
        save_file(kept | {f"{name}/{self.model}": value.contiguous() for name, value in tensors.items()}, path)

    def _append_mean(self, name: str, values: torch.Tensor, **facts: Any) -> None:
        self._append(name, values.mean().item(), len(values), std=values.std().item(), **facts)

    def _append(self, name: str, value: float, n: int, **facts: Any) -> None:
        steps = {"steps": self.call["num_inference_steps"]} if self.is_bridge else {}
        if "solver" in self.call:
            steps["solver"] = self.call["solver"]
        own = {"model": self.model, "dataset": self.real.dataset} | steps | self.facts
        path = self.output_dir / "results.json"
        append_result(path, name, value, n=n, seed=self.seed, device=self.real.device, **own, **facts)
        print(f"{self.model:<12} {name:<24} {value:.4g}", flush=True)


def _take(split: Any, count: int) -> torch.Tensor:
    """`count` images evenly from a data set, uint8 (count, C, H, W)."""
    if not 1 <= count <= len(split):
        raise ValueError(f"{split.name} has {len(split)} images, {count} of them are asked for.")
    indices = torch.linspace(0, len(split) - 1, count).long().tolist()
    return torch.stack([item["images"] for item in split.__getitems__(indices)])
