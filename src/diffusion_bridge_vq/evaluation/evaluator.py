"""From saved pipelines and real images to results in a file: every metric of the paper's section 4."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ..data import load_images
from ..data.images import short_hash
from ..data.pixels import to_pixels
from ..figures import plot_kl_maps, sample_sheets
from ..models import GumbelVQModel, bridge_start_latents
from ..pipelines import DiffusionBridgeVQPipeline, PixelCNNVQPipeline
from ..schedulers import OUBridgeScheduler
from .autoencoder_evaluator import (
    AUTOENCODER_METRICS,
    AutoencoderEvaluator,
    RealImages,
    evenly,
    fingerprint,
    mean,
)
from .code_bits import bridge_code_bits
from .code_histograms import code_kl
from .config import EvaluationConfig
from .elbo import bridge_elbo
from .frechet import check_features, frechet_distance
from .improved_precision_recall import precision_recall
from .nll import BridgeNLL, bridge_nll, pixelcnn_nll
from .paper_masks import paper_mask
from .results import RESULTS_FILE, describe_device, read_results
from .sample_store import KEPT_FILE, load_kept, of_kind, save_kept
from .tables import all_results, paper_tables
from .timing import seconds_per_sample

_KL_IMAGES = 1000  # the paper's M
_ELBO_TIMESTEPS = 32  # per image
_TIMING_BATCH, _TIMING_REPEATS = 32, 10  # the paper's batch
_SHEET_IMAGES = 64
_MASKS = {"center": "", "top-left": "_top_left"}  # and what their figures' names end with
METRICS = ("fid", "rfid", "nll", "bits", "kl", "reconstruction", "elbo", "timing")


def evaluate_pipelines(
    folders: Mapping[str, str | Path],
    dataset: str,
    output_dir: Path,
    config: EvaluationConfig | None = None,
    metrics: Sequence[str] = METRICS,
    dataset_name: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    image_column: str | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    **facts: Any,
) -> None:
    """
    Measure saved pipelines on one data set; results go to `output_dir`/results.json. Whenever it is killed, the same
    call goes on: with the next batch of samples, or the next metric. See [`Evaluator`].

    Args:
        folders (`Mapping[str, str]`): {model: folder of a saved pipeline, bridge or PixelCNN, or of an autoencoder,
            which has those of the metrics that are in `AUTOENCODER_METRICS`}.
        dataset (`str`), image_column (`str`, *optional*): as `load_images` takes them.
        config ([`EvaluationConfig`], *optional*): the default one without it.
        metrics (`Sequence[str]`): of `METRICS`.
        dataset_name (`str`, *optional*): in the results, see [`RealImages`].
        train_split, test_split (`str`): of the images that models were trained on and are held against.
        batch_size, facts: see [`Evaluator`].
        device (`torch.device`): of everything.

    Raises:
        ValueError: no pipeline, a name that can't be a file's, models of different image sizes, an unknown metric or
            only such as an autoencoder lacks, a results.json that is none, and what the metrics raise.
    """
    config = config or EvaluationConfig()
    if not folders:
        raise ValueError("No pipeline is given: name at least one, e.g. bridge=outputs/demo/pipeline.")
    for model in folders:
        if not model or set(model) & set('/\\:*?"<>|'):
            raise ValueError(f"{model!r} can't be a model's name: its figures are files that are named after it.")
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        raise ValueError(f"Metrics are {', '.join(METRICS)}, got {', '.join(unknown)}.")
    output_dir.mkdir(parents=True, exist_ok=True)
    facts |= {"train_split": train_split, "test_split": test_split}
    real, size = None, {}
    for model, folder in folders.items():
        evaluated = _load(Path(folder)).to(device)
        alone = isinstance(evaluated, GumbelVQModel)
        own = [metric for metric in metrics if not alone or metric in AUTOENCODER_METRICS]
        if not own:
            raise ValueError(f"{folder} is an autoencoder: its metrics are {', '.join(AUTOENCODER_METRICS)}.")
        vqvae = (evaluated if alone else evaluated.vqvae).config
        own_size = {"resolution": vqvae.sample_size, "channels": vqvae.in_channels}
        if real is None:
            size = own_size
            train, test = (
                load_images(dataset, split=split, image_column=image_column, **size)
                for split in (train_split, test_split)
            )
            name = dataset_name or train.name
            real = RealImages(name, train, test, config.num_images, config.extractor, device)
        elif own_size != size:
            raise ValueError(f"{model} has images of {own_size}, those before it of {size}: evaluate it by itself.")
        kind = AutoencoderEvaluator if alone else Evaluator
        evaluator = kind(model, evaluated, real, output_dir, config, batch_size, **facts)
        for metric in own:
            getattr(evaluator, metric)()


def _load(folder: Path) -> DiffusionPipeline | GumbelVQModel:
    if (folder / "config.json").is_file():  # a pipeline has its own in folders
        return GumbelVQModel.from_pretrained(folder)
    cls = PixelCNNVQPipeline if (folder / "prior").is_dir() else DiffusionBridgeVQPipeline
    return cls.from_pretrained(folder)


def write_report(output_dir: Path) -> list[Path]:
    """
    The paper's tables and all results (tables.md), KL maps and sheets of samples, from what `output_dir` holds.

    Raises:
        ValueError: there is no results.json, or it or figures.safetensors is damaged.
    """
    results = output_dir / RESULTS_FILE
    if not results.is_file():
        raise ValueError(f"There is no {results}: measure something first.")
    tables = output_dir / "tables.md"
    found, kept = read_results(results), load_kept(output_dir / KEPT_FILE)
    tables.write_text(f"{paper_tables(found)}\n{all_results(found)}", encoding="utf-8")
    maps, floors, samples = (of_kind(kept, kind) for kind in ("kl", "kl_floor", "samples"))
    return [tables, *plot_kl_maps(maps, floors, output_dir), *sample_sheets(samples, output_dir)]


class Evaluator(AutoencoderEvaluator):
    """
    All metrics of one model. Its samples are drawn once. `output_dir`/figures.safetensors keeps what figures need,
    samples/MODEL, kl/MODEL and kl_floor/MODEL, and the codes drawn so far, codes/MODEL/KEY with the state of their
    generator, generator/MODEL/KEY; KEY is a fingerprint of the weights and of all that the draws depend on.

    Args:
        model (`str`): its name in the results; "bridge", "bridge-e2e" and "pixelcnn" have places in the tables.
        pipe: [`DiffusionBridgeVQPipeline`] or [`PixelCNNVQPipeline`], on the device of `real`.
        real, output_dir, config, batch_size, facts: see [`AutoencoderEvaluator`].

    Raises:
        ValueError: a guidance scale for a model without classes, or other than 1 for a PixelCNN.
    """

    def __init__(
        self,
        model: str,
        pipe: DiffusionPipeline,
        real: RealImages,
        output_dir: Path,
        config: EvaluationConfig,
        batch_size: int = 64,
        **facts: Any,
    ):
        super().__init__(model, pipe.vqvae, real, output_dir, config, batch_size, **facts)
        self.pipe, self.is_bridge = pipe, hasattr(pipe, "unet")
        self.has_own_scheduler = self.is_bridge and isinstance(pipe.scheduler, OUBridgeScheduler)
        # a stock scheduler is a solver itself
        solver: dict[str, Any] = {"solver": config.solver} if self.has_own_scheduler else {}
        steps = config.num_inference_steps
        self._call = {"num_inference_steps": steps} | solver if self.is_bridge else {}
        self._draws = {"steps": steps} | solver if self.is_bridge else {}  # as facts
        self._classes = (pipe.unet if self.is_bridge else pipe.prior).config.num_class_embeds
        guidance = config.guidance_scale
        if guidance and self._classes is None:
            raise ValueError(f"{model} has no classes: leave out `guidance_scale`.")
        if guidance not in (0, 1) and not self.is_bridge:
            raise ValueError(
                f"{model} is a PixelCNN, which has no guidance: `guidance_scale` is 0 or 1, not {guidance}."
            )
        # as facts: what samples depend on
        self._samples = self._draws | ({} if self._classes is None else {"guidance_scale": guidance})
        pipe.set_progress_bar_config(disable=True)

    @cached_property
    def weights(self) -> str:
        return fingerprint(*self.pipe.components.values())

    # --------------------------------------------------------------------------------------------------- collecting

    def sampled_codes(self, count: int) -> torch.Tensor:
        """
        The first `count` maps of codes, (count, h, w) on the CPU. They are drawn in whole batches, each of which is
        kept on disk, so that fewer or more of them are the same ones, whoever asks and after whatever interruption.
        """
        path = self.output_dir / KEPT_FILE
        law = {"weights": self.weights, "seed": self.config.seed, **self._samples}
        law |= {"batch_size": self.batch_size, "device": self.real.device.type}
        own = (f"codes/{self.model}/", f"generator/{self.model}/")
        codes_name, generator_name = (prefix + short_hash(json.dumps(law).encode()) for prefix in own)
        dtypes = (torch.uint8, torch.int16, torch.int64)
        dtype = next(d for d in dtypes if self.vqvae.config.num_vq_embeddings <= torch.iinfo(d).max + 1)
        kept, generator = load_kept(path), self._generator()
        batches = [kept[codes_name]] if codes_name in kept else []
        if batches:
            generator.set_state(kept[generator_name])
        # pictures of other draws go with their codes
        stale = () if batches else {name for name in kept if name.partition("/")[2] == self.model}
        while (drawn := sum(map(len, batches))) < count:
            call = self._call | self._next_classes(drawn)
            latents = self.pipe(self.batch_size, generator=generator, output_type="latent", **call).images
            batches.append(self.vqvae.encode_codes(latents).to("cpu", dtype))
            now = load_kept(path)
            others = {name: now[name] for name in now if not name.startswith(own) and name not in stale}
            save_kept(path, others | {codes_name: torch.cat(batches), generator_name: generator.get_state()})
        return torch.cat(batches)[:count].long()

    def _next_classes(self, drawn: int) -> dict[str, Any]:
        """Labels of the batch that follows `drawn` samples, each class as often as every other."""
        if not self.config.guidance_scale:
            return {}
        labels = torch.arange(drawn, drawn + self.batch_size) % (self._classes - 1)
        guidance = {"guidance_scale": self.config.guidance_scale} if self.is_bridge else {}
        return {"class_labels": labels.tolist(), **guidance}

    @cached_property
    def samples(self) -> torch.Tensor:
        """As many as there are test images, decoded, uint8 (n, C, H, W)."""
        return self._decode(self.sampled_codes(len(self.real.test)))

    # ------------------------------------------------------------------------------------------------------ metrics

    def fid(self) -> None:
        """
        Samples against reconstructions (the paper's FID) and against real images, and precision and recall, so that
        memorising and mode dropping show. A perfect prior isn't at 0 either: `frechet_floor` is what reconstructions
        of as many training images get, if those are others. Keeps the first 64 samples for a sheet as Figure 5.
        """
        settings = self._settings("fid", len(self.real.test), extractor=self.real.extractor_name, **self._samples)
        if self._is_measured(settings):
            return
        test_features = self.real.features(self.real.test)
        check_features(test_features, "reference")  # an extractor that won't do is no reason to draw samples
        features, reconstruction_features = map(self.real.features, (self.samples, self.reconstructions))
        near = precision_recall(features, reconstruction_features)
        against = {"reference": "reconstructions of test images"}
        figures = {
            "frechet": {"value": frechet_distance(features, reconstruction_features), **against},
            "frechet_real": {"value": frechet_distance(features, test_features), "reference": "test images"},
            "precision": {"value": near.precision, **against},
            "recall": {"value": near.recall, **against},
        }
        if not torch.equal(self.real.train, self.real.test):
            train = self.real.features(self._decode(self._codes(self._encode(self.real.train))))
            figures["frechet_floor"] = {
                "value": frechet_distance(train, reconstruction_features),
                "reference": "reconstructions of train against test images",
            }
        self._keep(samples=self.samples[:_SHEET_IMAGES])
        self._append(settings, figures)

    def nll(self) -> None:
        """
        Bits per masked code, centre and top left hidden ([`bridge_nll`], [`pixelcnn_nll`]): mean over images, with the
        standard deviation over them. For a bridge also the joint estimate from all draws of an image.
        """
        facts: dict[str, Any] = {"reference": "test images"}
        if self.is_bridge:
            facts |= {"draws": self.config.num_nll_samples, "jump_n_sample": 1, **self._draws}
        if "solver" in facts:
            facts["solver"] = "ancestral"
        count = min(self.config.num_nll_images, len(self.real.test))
        for mask_name, suffix in _MASKS.items():
            settings = self._settings("nll", count, mask=mask_name, **facts)
            if self._is_measured(settings):
                continue
            latents, codes = (evenly(rows, count) for rows in (self.test_latents, self.test_codes))
            mask = paper_mask(mask_name, *codes.shape[1:]).to(self.real.device)
            if self.is_bridge:
                bits = self._bridge_bits(latents, codes, mask)
                figures = {
                    "nll": torch.cat([b.one_sample for b in bits]),
                    "nll_joint": torch.cat([b.joint for b in bits]),
                }
            else:
                prior = self.pipe.prior
                figures = {"nll": torch.cat([pixelcnn_nll(prior, part, mask) for part in self._batches(codes)])}
            self._append(settings, {f"{name}{suffix}": mean(values) for name, values in figures.items()})

    def _bridge_bits(self, latents: torch.Tensor, codes: torch.Tensor, mask: torch.Tensor) -> list[BridgeNLL]:
        generator = self._generator()
        return [
            bridge_nll(
                self.pipe.unet,
                self.pipe.scheduler,
                self.vqvae.quantize,
                bridge_start_latents(self.pipe.unet, self.vqvae.quantize, z),
                k,
                mask,
                self.config.num_nll_samples,
                self.config.num_inference_steps,
                generator,
                class_labels=self._null_classes(len(z)),
            )
            for z, k in zip(self._batches(latents), self._batches(codes), strict=True)
        ]

    def bits(self) -> None:
        """
        Bits per code of whole maps, comparable between priors on one autoencoder: exact of a PixelCNN, a bound of a
        bridge ([`bridge_code_bits`]; none with a stock scheduler). Mean and standard deviation over images.
        """
        if self.is_bridge and not self.has_own_scheduler:
            return
        count = min(self.config.num_nll_images, len(self.real.test))
        settings = self._settings("bits", count, reference="test images")
        if self._is_measured(settings):
            return
        codes = evenly(self.test_codes, count).to(self.real.device)
        if self.is_bridge:
            bits = bridge_code_bits(
                self.pipe.unet.eval(),
                self.pipe.scheduler,
                self.vqvae.quantize,
                codes,
                self._generator(),
                self.batch_size,
                class_labels=self._null_classes(count),
            )
        else:
            everything = torch.ones(codes.shape[1:], dtype=torch.bool)
            bits = torch.cat([pixelcnn_nll(self.pipe.prior, part, everything) for part in self._batches(codes)])
        self._append(settings, {"code_bits": mean(bits)})

    def _null_classes(self, count: int) -> torch.Tensor | None:
        """As the pipelines draw without labels: of a U-Net with classes, the last of them."""
        null = None if self._classes is None else self._classes - 1
        return None if null is None else torch.full((count,), null, device=self.real.device)

    def kl(self) -> None:
        """KL map of Figure 4 and its mean, beside its floor (train against test), and how the codebook is used."""
        count, num_codes = min(_KL_IMAGES, len(self.real.test)), self.vqvae.config.num_vq_embeddings
        settings = self._settings("kl", count, **self._samples)
        if self._is_measured(settings):
            return
        sampled, real = self.sampled_codes(count), evenly(self.test_codes, count)
        train = self._codes(self._encode(evenly(self.real.train, count)))
        maps = {"kl": code_kl(sampled, real, num_codes), "kl_floor": code_kl(train, real, num_codes)}
        self._keep(**maps)
        figures = {
            "kl": {"value": maps["kl"].mean().item(), "reference": "test images"},
            "kl_floor": {"value": maps["kl_floor"].mean().item(), "reference": "train against test images"},
        }
        self._append(settings, figures | self._code_use(sampled, "_samples"))

    def elbo(self) -> None:
        """-ELBO in bits per dimension with its terms; a PixelCNN has none, nor a bridge with a stock scheduler."""
        if not self.has_own_scheduler:
            return
        count = min(self.config.num_nll_images, len(self.real.test))
        settings = self._settings("elbo", count, reference="test images", timesteps_per_image=_ELBO_TIMESTEPS)
        if self._is_measured(settings):
            return
        bound = bridge_elbo(
            self.vqvae,
            self.pipe.unet.eval(),
            self.pipe.scheduler,
            to_pixels(evenly(self.real.test, count).to(self.real.device)),
            self._generator(),
            _ELBO_TIMESTEPS,
            batch_size=self.batch_size,
            class_labels=self._null_classes(count),
        )
        self._append(settings, {f"elbo_{name}": {"value": value} for name, value in bound._asdict().items()})

    def timing(self) -> None:
        """Seconds per sample at batch 32, images included: median, with the quartiles. Of this device."""
        settings = self._settings("timing", _TIMING_REPEATS, batch_size=_TIMING_BATCH, **self._draws)
        if self._is_measured(settings | {"device": describe_device(self.real.device)}):
            return

        def draw() -> None:
            self.pipe(batch_size=_TIMING_BATCH, output_type="pt", **self._call)

        found = seconds_per_sample(draw, _TIMING_BATCH, _TIMING_REPEATS, device=self.real.device)
        quartiles = [found.lower_quartile, found.upper_quartile]
        self._append(settings, {"seconds_per_sample": {"value": found.median, "quartiles": quartiles}})

    def _keep(self, **tensors: torch.Tensor) -> None:
        path = self.output_dir / KEPT_FILE
        named = {f"{kind}/{self.model}": tensor.contiguous() for kind, tensor in tensors.items()}
        save_kept(path, load_kept(path) | named)
