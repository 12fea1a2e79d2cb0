"""Settings of a run: one frozen dataclass per kind, with presets."""

import dataclasses
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from diffusers.optimization import SchedulerType

from ..losses import PerceptualFeatures, Regularization, Weighting
from ..privacy import public_dataset
from .presets import PAPER_MODE, PRESETS, preset_values

Config = TypeVar("Config", bound="RunConfig")

# `evaluation.EXTRACTORS`, which lies above
Extractor = Literal["inception", "dinov2", "efficientnet-lite0", "efficientnet-lite2"]

# without those whose rules no option gives
_LR_SCHEDULES = tuple(s.value for s in SchedulerType if s is not SchedulerType.PIECEWISE_CONSTANT)


def _option(default: Any, text: str) -> Any:
    if isinstance(default, dict):
        return field(default_factory=dict, metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class RunConfig:
    """
    What every run needs. Fields are the options of the command line, help texts their documentation.

    Raises:
        ValueError: a value outside its range; says what was given and expected.
    """

    kind: ClassVar[str]

    preset: str = _option("digits", f"settings to start from: {', '.join(PRESETS)}")
    dataset: str = _option(
        "", "Hub id, folder of images, folder of parquet files, folder with CSV splits, or 'digits' (embedded)"
    )
    dataset_name: str | None = _option(
        None, "what to call the data set in public; without it one that isn't on the Hub has no name there"
    )
    split: str = _option("train", "split to train on")
    validation_split: str | None = _option(None, "split whose losses are logged, too, with the averaged weights")
    streaming: bool = _option(False, "read the data while training instead of before: Hub id, parquet or tar shards")
    shuffle_buffer: int = _option(10_000, "images among which a stream is shuffled; see docs/how-to/large-data.md")
    image_column: str | None = _option(None, "column with the images, if there are several")
    label_column: str | None = _option(None, "column with the classes, if it isn't a ClassLabel")
    output_dir: Path = _option(Path("outputs/run"), "everything the run writes goes here")
    init_from: Path | None = _option(
        None, "run or pipeline folder whose autoencoder (and U-Net, for e2e) to start from"
    )
    resolution: int = _option(32, "side of the square training images, in pixels")
    channels: int = _option(3, "3 for RGB, 1 for grayscale")
    random_flip: bool = _option(False, "mirror images at random, left to right")
    batch_size: int = _option(64, "images per process and step")
    gradient_accumulation_steps: int = _option(1, "batches per optimiser step")
    max_train_steps: int = _option(10_000, "optimiser steps")
    max_train_time: float | None = _option(
        None,
        "seconds of training after which the run ends, as after its last step; the schedule stays that of all steps",
    )
    learning_rate: float = _option(1e-3, "peak learning rate of AdamW")
    lr_schedule: str = _option("cosine", "diffusers.optimization's name: cosine, constant_with_warmup, ...")
    lr_warmup_steps: int = _option(0, "steps of linear warm-up")
    weight_decay: float = _option(0.0, "AdamW's")
    max_grad_norm: float = _option(1.0, "gradients are clipped to this norm")
    ema_decay: float = _option(0.999, "decay of the averaged weights that are saved; 0 keeps the last")
    mixed_precision: Literal["no", "fp16", "bf16"] = _option("no", "arithmetic of the networks")
    seed: int = _option(0, "of weights, noise and data order")
    gradient_checkpointing: bool = _option(False, "compute activations again in the backward pass, to save memory")
    compile: bool = _option(False, "torch.compile the networks")
    num_workers: int = _option(0, "processes that load data")
    log_every: int = _option(50, "steps between log lines")
    image_every: int = _option(2000, "steps between grids of reconstructions and samples; 0 for the end only")
    validate_every: int = _option(500, "steps between losses of validation_split")
    num_inference_steps: int = _option(50, "reverse steps of the sample grids")
    checkpoint_every: int = _option(1000, "steps between checkpoints; 0 for none")
    keep_checkpoints: int = _option(2, "checkpoints that are kept")
    resume: bool = _option(False, "go on from the newest checkpoint in output_dir")
    report_to: str = _option("tensorboard", "tracker, by Accelerate's name; 'none' for metrics.jsonl alone")
    profile: bool = _option(False, "torch profiler's trace of five steps, in output_dir/profile")
    dry_run: bool = _option(False, "check configuration, data, disk, memory and one step, then stop without writing")
    vqvae: dict[str, Any] = _option({}, "arguments of GumbelVQModel, JSON; added to the preset's")

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self)).items():
            if typing.get_origin(hint) is Literal and getattr(self, name) not in typing.get_args(hint):
                raise ValueError(f"`{name}` must be one of {typing.get_args(hint)}, got {getattr(self, name)!r}.")
        for f in dataclasses.fields(self):
            if isinstance(value := getattr(self, f.name), float) and not math.isfinite(value):
                raise ValueError(f"`{f.name}` must be a finite number, got {value}.")
        self._check_lowest(
            resolution=1,
            batch_size=1,
            gradient_accumulation_steps=1,
            max_train_steps=1,
            log_every=1,
            num_inference_steps=1,
            keep_checkpoints=1,
            lr_warmup_steps=0,
            image_every=0,
            checkpoint_every=0,
            num_workers=0,
            shuffle_buffer=1,
            validate_every=1,
            weight_decay=0,
            seed=0,
        )
        if self.lr_schedule not in _LR_SCHEDULES:
            raise ValueError(f"`lr_schedule` must be one of {', '.join(_LR_SCHEDULES)}, got {self.lr_schedule!r}.")
        if self.channels not in (1, 3):
            raise ValueError(f"`channels` must be 1 or 3, got {self.channels}.")
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        if self.max_train_time is not None and not self.max_train_time > 0:
            raise ValueError(f"`max_train_time` must be positive seconds, got {self.max_train_time}.")
        self._check_shares("ema_decay")
        if self.ema_decay == 1:
            raise ValueError("`ema_decay` of 1 would never leave the initial weights; take less, e.g. 0.999.")
        if not self.dataset:
            raise ValueError(f"The preset {self.preset!r} has no data set of its own: give `dataset`.")
        factor = 2 ** (len(self.vqvae.get("block_out_channels", (64,))) - 1)
        if self.resolution % factor:
            raise ValueError(
                f"`resolution` must be divisible by {factor} for this autoencoder, got {self.resolution}."
            )

    def _check_shares(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie in [0, 1], got {getattr(self, name)}.")

    def _check_lowest(self, **lowest: float) -> None:
        for name, value in lowest.items():
            if not getattr(self, name) >= value:
                raise ValueError(f"`{name}` must be at least {value}, got {getattr(self, name)}.")

    def _refuse_streaming(self, who: str) -> None:
        if self.streaming:
            raise ValueError(f"{who} the whole data set before it starts, so it can't be streamed: drop `streaming`.")

    @classmethod
    def from_preset(cls: type[Config], preset: str, **overrides: Any) -> Config:
        """A preset's settings with some changed; dicts of component arguments are merged, not replaced."""
        values: dict[str, Any] = {"preset": preset}
        names = {f.name for f in dataclasses.fields(cls)}
        values |= {k: v for k, v in preset_values(preset, cls.kind).items() if k in names}
        for changes in (PAPER_MODE if overrides.get("mode") == "paper" else {}, overrides):
            for key, value in changes.items():
                values[key] = {**values[key], **value} if isinstance(value, dict) and key in values else value
        return cls(**values)

    def moments(self) -> list[int]:
        """Steps, evenly over the run: the phases of end-to-end training differ in terms and cost."""
        return [moment * self.max_train_steps // 6 for moment in range(6)]

    def to_json(self) -> dict[str, Any]:
        """JSON-safe settings; `dataset_name` is None only where the name of `dataset` may be private."""
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()}
        return settings | {"dataset_name": self.dataset_name or public_dataset(self.dataset)}


@dataclass(frozen=True)
class AutoencoderConfig(RunConfig):
    """What runs that train the autoencoder share: the terms of `ReconstructionLoss`."""

    l1_weight: float = _option(0.0, "weight of the absolute error beside the squared one")
    perceptual_weight: float = _option(0.0, "weight of the distance in a frozen network's features (extra `eval`)")
    perceptual_features: PerceptualFeatures = _option(
        "efficientnet-lite0",
        "whose features; 'lpips' is VGG-16 and needs torchvision and a download. Judge by another network, and let "
        "tables name both",
    )
    adversarial_weight: float = _option(0.0, "weight of what a patch discriminator says of decoded images")
    adversarial_fraction: float = _option(0.5, "share of the run before the discriminator joins")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_shares("adversarial_fraction")
        self._check_lowest(l1_weight=0, perceptual_weight=0, adversarial_weight=0)
        if self.perceptual_weight and self.perceptual_features == "lpips" and self.resolution < 16:
            raise ValueError(
                f"VGG-16 halves images four times: `perceptual_features` 'lpips' needs a `resolution` of at least 16, "
                f"got {self.resolution}; take 'efficientnet-lite0'."
            )


@dataclass(frozen=True)
class VQConfig(AutoencoderConfig):
    """Stage 1, `VQObjective`."""

    kind = "vq"


@dataclass(frozen=True)
class PriorRunConfig(RunConfig):
    """What runs with a prior share."""

    class_conditional: bool = _option(False, "train on the labels too, with a null class for guidance")
    class_dropout: float = _option(0.1, "share of labels replaced by the null class")
    evaluate_every: int = _option(0, "steps between evaluations against validation_split; 0 for none")
    evaluate_images: int = _option(5000, "samples, and validation images, of an evaluation")
    evaluate_extractor: Extractor = _option("inception", "features of its Frechet distance; see examples/evaluate.py")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_shares("class_dropout")
        self._check_lowest(evaluate_every=0, evaluate_images=1)
        if self.evaluate_every and self.validation_split is None:
            raise ValueError("`evaluate_every` compares with real images: give `validation_split`.")

    def _check_init_from(self) -> None:
        if self.init_from is None:
            raise ValueError(
                "The prior needs a trained autoencoder: give `init_from`, a folder that train_vqvae wrote."
            )


@dataclass(frozen=True)
class _BridgeConfig(PriorRunConfig):
    """What runs with a diffusion prior share."""

    unet: dict[str, Any] = _option({}, "arguments of UNet2DModel, JSON; added to the preset's")
    scheduler: dict[str, Any] = _option({}, "arguments of OUBridgeScheduler, JSON; added to the preset's")
    weighting: Weighting = _option("simple", "weight of L_t over the noise levels")


@dataclass(frozen=True)
class PriorConfig(_BridgeConfig):
    """Stage 2, `PriorObjective`."""

    kind = "prior"

    cache_latents: bool = _option(False, "encode the data set once (with its mirror images, if random_flip)")
    code_posterior: bool = _option(False, "a CodeUNet2DModel: it gives each code a probability, z_0 is their mean")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_init_from()
        if self.cache_latents:
            self._refuse_streaming("`cache_latents` encodes")


@dataclass(frozen=True)
class PixelCNNConfig(PriorRunConfig):
    """
    Stage 2 of the baseline, `PixelCNNObjective`: it always encodes the data set once, and stops early by the bits per
    code of images that it isn't trained on.
    """

    kind = "pixelcnn"

    prior: dict[str, Any] = _option({}, "arguments of PixelCNNPrior, JSON; added to the preset's")
    holdout_fraction: float = _option(0.1, "share of the images that is held out, between 0 and 1")
    eval_every: int = _option(500, "steps between evaluations on the held-out images")
    patience: int = _option(10, "evaluations without a better value after which the run stops")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_init_from()
        self._refuse_streaming("Training a PixelCNN encodes")
        if not 0 < self.holdout_fraction < 1:
            raise ValueError(f"`holdout_fraction` must lie between 0 and 1, got {self.holdout_fraction}.")
        self._check_lowest(eval_every=1, patience=1)


@dataclass(frozen=True)
class E2EConfig(_BridgeConfig, AutoencoderConfig):
    """Algorithm 1, `E2EObjective`."""

    kind = "e2e"

    mode: Literal["stable", "paper"] = _option(
        "stable", "which gradients move the encoder; 'paper' is Algorithm 1: every one, in full"
    )
    reconstruction_weight: float = _option(1.0, "weight of L_rec against the terms per latent coordinate")
    regularization: Regularization = _option("gamma", "form of L_t^reg: appendix 8, eq. 5, or none")
    regularization_weight: float = _option(0.01, "weight of L_t^reg")
    encoder_gradient_weight: float = _option(0.1, "share of the prior's gradient that reaches the encoder (stable)")
    ramp_fraction: float = _option(0.1, "share of the run over which that share rises from 0 (stable)")
    joint_fraction: float = _option(0.0, "share of the run before the prior joins (stable)")
    freeze_fraction: float = _option(1.0, "share of the run after which the autoencoder stands still (stable)")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_shares("ramp_fraction", "joint_fraction", "freeze_fraction")
        self._check_lowest(reconstruction_weight=0, regularization_weight=0, encoder_gradient_weight=0)
        if self.joint_fraction > self.freeze_fraction:
            raise ValueError(
                f"`joint_fraction` must be at most `freeze_fraction`, got {self.joint_fraction} and "
                f"{self.freeze_fraction}: in between nothing would be trained. Give both."
            )
        if self.joint_fraction == 1:
            raise ValueError("`joint_fraction` of 1 would never train the prior; take less, or train_vqvae.")
