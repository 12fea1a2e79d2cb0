"""From saved pipelines and real images to results in a file: every metric of the paper's section 4."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from ..data import load_images
from ..data.masks import paper_mask
from ..figures import FIGURES_FILE, plot_kl_maps, sample_sheets
from ..models import GumbelVQModel, PixelCNNPrior
from ..pipelines import DiffusionBridgeVQPipeline, PixelCNNVQPipeline
from ..sampling import Solver
from ..schedulers import OUBridgeScheduler
from .autoencoder_evaluator import AUTOENCODER_METRICS, AutoencoderEvaluator, RealImages
from .elbo import bridge_elbo
from .frechet import frechet_distance
from .images import precision_recall
from .latents import bridge_nll, code_kl, code_perplexity, code_usage, pixelcnn_nll
from .report import read_results
from .tables import all_results, paper_tables
from .timing import seconds_per_sample

_KL_IMAGES = 1000  # the paper's M
_TIMING_BATCH = 32  # the paper's
_SHEET_IMAGES = 64
_MASKS = ("center", "top-left")
METRICS = ("fid", "rfid", "nll", "kl", "reconstruction", "elbo", "timing")


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
        folders (`Mapping[str, str]`): {model: folder of a saved pipeline, bridge or PixelCNN, or of an autoencoder,
            which has those of the metrics that are in `AUTOENCODER_METRICS`}.
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
        ValueError: no pipeline, an unknown metric or only such as an autoencoder lacks, and what the metrics raise.
    """
    if not folders:
        raise ValueError("No pipeline is given: name at least one, e.g. bridge=outputs/demo/pipeline.")
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        raise ValueError(f"Metrics are {', '.join(METRICS)}, got {', '.join(unknown)}.")
    output_dir.mkdir(parents=True, exist_ok=True)
    real = None
    for model, folder in folders.items():
        evaluated = _load(Path(folder)).to(device)
        alone = isinstance(evaluated, GumbelVQModel)
        own = [metric for metric in metrics if not alone or metric in AUTOENCODER_METRICS]
        if not own:
            raise ValueError(f"{folder} is an autoencoder: its metrics are {', '.join(AUTOENCODER_METRICS)}.")
        if real is None:
            config = (evaluated if alone else evaluated.vqvae).config
            size = {"resolution": config.sample_size, "channels": config.in_channels}
            train, test = (load_images(dataset, split=split, **size) for split in (train_split, test_split))
            real = RealImages(dataset_name or train.name, train, test, num_images, extractor, device)
        shared: dict[str, Any] = {
            "real": real,
            "output_dir": output_dir,
            "batch_size": batch_size,
            "seed": seed,
            **facts,
        }
        if alone:
            evaluator = AutoencoderEvaluator(model, evaluated, **shared)
        else:
            evaluator = Evaluator(model, evaluated, num_inference_steps=num_inference_steps, solver=solver, **shared)
        calls = {"nll": (num_nll_images, num_nll_samples), "elbo": (num_nll_images,)}
        for metric in own:
            getattr(evaluator, metric)(*calls.get(metric, ()))


def _load(folder: Path) -> DiffusionPipeline | GumbelVQModel:
    if (folder / "config.json").is_file():  # a pipeline has its own in folders
        return GumbelVQModel.from_pretrained(folder)
    cls = PixelCNNVQPipeline if (folder / "prior").is_dir() else DiffusionBridgeVQPipeline
    return cls.from_pretrained(folder)


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


class Evaluator(AutoencoderEvaluator):
    """
    All metrics of one model. Its samples are drawn once. Figures' data go to `output_dir`/figures.safetensors:
    samples/MODEL, kl/MODEL and kl_floor/MODEL.

    Args:
        model (`str`): its name in the results; "bridge", "bridge-e2e" and "pixelcnn" have places in the tables.
        pipe: [`DiffusionBridgeVQPipeline`] or [`PixelCNNVQPipeline`], on the device of `real`.
        real, output_dir, batch_size, seed, facts: see [`AutoencoderEvaluator`].
        num_inference_steps (`int`): reverse steps of a bridge; a PixelCNN has none.
        solver (`str`): of a bridge's samples, as the pipeline takes it; likelihoods are always "ancestral", the
            paper's.
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
        self.pipe, self.is_bridge = pipe, hasattr(pipe, "unet")
        self.call: dict[str, Any] = {"num_inference_steps": num_inference_steps} if self.is_bridge else {}
        if self.is_bridge and isinstance(pipe.scheduler, OUBridgeScheduler):  # a stock scheduler is its own solver
            self.call["solver"] = solver
        steps: dict[str, Any] = {"steps": num_inference_steps} if self.is_bridge else {}
        if "solver" in self.call:
            steps["solver"] = solver
        super().__init__(model, pipe.vqvae, real, output_dir, batch_size, seed, **steps, **facts)
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

    # ------------------------------------------------------------------------------------------------------ metrics

    def fid(self) -> None:
        """
        Samples against reconstructions (the paper's FID) and against real images, and precision and recall, so that
        memorising and mode dropping show. Keeps the first 64 samples for a sheet as Figure 5.
        """
        features, reconstruction_features, test_features = (
            self.real.features(images) for images in (self.samples, self.reconstructions, self.real.test)
        )
        names = {"extractor": self.real.extractor_name}
        for name, rows, reference_rows, reference in (
            ("frechet", features, reconstruction_features, "reconstructions of test images"),
            ("frechet_real", features, test_features, "test images"),
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
        sampled = self.sampled_codes[:count]
        self._append("usage_samples", code_usage(sampled, num_codes), count)
        self._append("perplexity_samples", code_perplexity(sampled, num_codes), count)

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

    def _keep(self, **tensors: torch.Tensor) -> None:
        path = self.output_dir / FIGURES_FILE
        kept = load_file(path) if path.is_file() else {}
        save_file(kept | {f"{name}/{self.model}": value.contiguous() for name, value in tensors.items()}, path)
