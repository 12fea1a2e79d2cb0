"""Settings of each kind of run: one frozen dataclass per kind."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..choices import Extractor, PerceptualFeatures, Regularization, Weighting
from .config import Config, RunConfig, find_start
from .options import (
    FRACTION,
    POSITIVE_FRACTION,
    PROPER_FRACTION,
    at_least,
    option,
)

if TYPE_CHECKING:
    from ..data.encoded_shards import Encoding


@dataclass(frozen=True)
class AutoencoderConfig(RunConfig):
    """What runs that train the autoencoder share: the terms of `ReconstructionLoss`."""

    l1_weight: float = option(0.0, "weight of the absolute error, added to the squared one", at_least(0))
    perceptual_weight: float = option(
        0.0, "weight of the distance in a frozen network's features (extra `eval`)", at_least(0)
    )
    perceptual_features: PerceptualFeatures = option(
        "efficientnet-lite0",
        "whose features; 'lpips' is VGG-16 and needs torchvision and a download. Evaluate with another network, and "
        "let tables name both",
        needs="perceptual_weight",
    )
    adversarial_weight: float = option(0.0, "weight of the adversarial loss of decoded images", at_least(0))
    adversarial_fraction: float = option(
        0.5, "fraction of the run before the discriminator joins", FRACTION, needs="adversarial_weight"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.perceptual_weight and self.perceptual_features == "lpips" and self.resolution < 16:
            raise ValueError(
                f"VGG-16 halves images four times: `perceptual_features` 'lpips' needs a `resolution` of at least 16, "
                f"got {self.resolution}; take 'efficientnet-lite0'."
            )
        joins = round(self.adversarial_fraction * self.max_train_steps)
        if self.adversarial_weight and joins >= self.autoencoder_steps:
            raise ValueError(
                f"`adversarial_fraction` {self.adversarial_fraction} lets the discriminator join after step {joins}, "
                f"but the autoencoder is trained for {self.autoencoder_steps} steps: take less, or drop "
                "`adversarial_weight`."
            )

    @property
    def autoencoder_steps(self) -> int:
        """For how many steps the autoencoder is trained."""
        return self.max_train_steps


@dataclass(frozen=True)
class VQConfig(AutoencoderConfig):
    """Stage 1, `VQObjective`."""

    kind = "vq"

    decoder_only: bool = option(
        False, "keep encoder and codebook, and train the decoder on: priors on these codes stay valid"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder_only and self.autoencoder_from is None:
            raise ValueError(
                "`decoder_only` keeps the encoder of a trained autoencoder: give `init_from`, the folder of its run "
                "or of a pipeline, or `vqvae_from`."
            )


@dataclass(frozen=True)
class PriorRunConfig(RunConfig):
    """What runs that train a prior share."""

    class_conditional: bool = option(False, "train on the labels too, with a null class for guidance")
    class_dropout: float = option(
        0.1, "fraction of labels replaced by the null class", FRACTION, needs="class_conditional"
    )
    evaluate_every: int = option(
        0,
        "steps between evaluations against validation_split; 0 for none. They read both splits from disk, also of a "
        "stream",
        at_least(0),
    )
    evaluate_images: int = option(
        5000, "samples, and validation images, of an evaluation", at_least(1), needs="evaluate_every"
    )
    evaluate_extractor: Extractor = option(
        "inception", "features of its Frechet distance; see examples/evaluate.py", needs="evaluate_every"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.class_conditional and self.class_dropout == 1:
            raise ValueError("`class_dropout` of 1 would never show a class; take less, or drop `class_conditional`.")
        if self.evaluate_every and self.validation_split is None:
            raise ValueError("`evaluate_every` compares with real images: give `validation_split`.")

    @property
    def uses_classes(self) -> bool:
        return self.class_conditional

    @property
    def evaluation_interval(self) -> int:
        return self.evaluate_every


@dataclass(frozen=True)
class FrozenAutoencoderConfig(PriorRunConfig):
    """What runs that train a prior on a frozen autoencoder share."""

    encoded_option = "latents"

    latents: Path | None = option(
        None, "train on this folder that examples/encode_dataset.py wrote, or its id on the Hub, instead of on images"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.autoencoder_from is None:
            raise ValueError(
                "The prior needs a trained autoencoder: give `vqvae_from`, a folder that train_vqvae wrote, or "
                "`init_from`, a pipeline to go on from."
            )
        if self.latents is not None and self.streaming:
            raise ValueError("`latents` are read from disk as they are: drop `streaming`.")


@dataclass(frozen=True)
class BridgeConfig(PriorRunConfig):
    """What runs that train a diffusion prior share."""

    starts_with = ("vqvae", "unet", "scheduler")

    label_words: bool = option(
        False,
        "with class_conditional: labels are texts, and each of their words is a class; an image may have several",
    )
    unet: dict[str, Any] = option({}, "arguments of UNet2DModel, JSON; added to the preset's")
    scheduler: dict[str, Any] = option({}, "arguments of OUBridgeScheduler, JSON; added to the preset's")
    weighting: Weighting = option("simple", "weight of L_t over the noise levels")
    condition: str | None = option(
        None,
        "draw from another image: gray (colorization), low-resolution:8 (from 8 x 8 pixels), both made of each image, "
        "or column:NAME, a column of the data set",
        fixed=True,
    )
    condition_dropout: float = option(
        0.1,
        "fraction of images that are learned without condition and class, for guidance",
        FRACTION,
        needs="condition",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.condition is not None:
            self._check_condition(self.condition)
        if self.label_words and not self.class_conditional:
            raise ValueError("`label_words` says what classes are: give `class_conditional`, too, or drop it.")
        if self.label_words and self.evaluate_every:
            raise ValueError("Evaluation draws classes one by one: drop `evaluate_every`, or `label_words`.")

    def _check_condition(self, name: str) -> None:
        from ..data.conditions import ImageCondition  # torch, which `--help` needn't wait for

        ImageCondition.parse(name, self.channels, self.resolution)
        if self.condition_dropout == 1:
            raise ValueError("`condition_dropout` of 1 would never show a condition; take less, or drop `condition`.")

    @property
    def uses_words(self) -> bool:
        return self.label_words

    @property
    def image_condition(self) -> str | None:
        return self.condition

    @property
    def condition_column(self) -> str | None:
        name = self.condition or ""
        return name.removeprefix("column:") if name.startswith("column:") else None

    @property
    def keeps_codes(self) -> bool:
        """Whether the run leaves the codebook as it is, as a `CodeUNet2DModel` needs."""
        return False

    @property
    def wants_code_unet(self) -> bool:
        """Whether the U-Net is a `CodeUNet2DModel`."""
        return False


@dataclass(frozen=True)
class PriorConfig(BridgeConfig, FrozenAutoencoderConfig):
    """Stage 2, `PriorObjective`."""

    kind = "prior"

    cache_latents: bool = option(
        False,
        "encode the data set once (with its mirror images, if random_flip), each process its share, into output_dir",
        fixed=True,
    )
    code_posterior: bool = option(False, "a CodeUNet2DModel: it gives each code a probability, z_0 is their mean")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cache_latents and self.latents is not None:
            raise ValueError("`latents` are encoded already: drop `cache_latents`.")
        if self.condition is not None and self.code_posterior:
            raise ValueError("A U-Net with `code_posterior` takes no `condition`: drop one of them.")

    @property
    def keeps_codes(self) -> bool:
        return True

    @property
    def wants_code_unet(self) -> bool:
        return self.code_posterior


@dataclass(frozen=True)
class DistillConfig(RunConfig):
    """A student of a trained bridge, which draws in one to four steps, `DistillObjective`."""

    kind = "distill"
    encoded_option = "trajectories"

    trajectories: Path | None = option(None, "the folder that draw_trajectories.py wrote")

    def __post_init__(self) -> None:
        if self.balance_classes:
            raise ValueError("Trajectories have their classes in turn: drop `balance_classes`.")
        super().__post_init__()
        if self.streaming:
            raise ValueError("A student learns from `trajectories`, which can't be streamed: drop `streaming`.")
        if self.init_from is None or self.trajectories is None:
            raise ValueError(
                "A student needs its teacher, `init_from`, and `trajectories` of it, a folder that draw_trajectories "
                "wrote: give both."
            )
        if self.validation_split is not None:
            raise ValueError("A student is trained on trajectories, not on images: drop `validation_split`.")

    @classmethod
    def from_preset(cls: type[Config], preset: str, **overrides: Any) -> Config:
        """As of the base class. Resolution and channels are the teacher's, whatever the preset."""
        return super().from_preset(preset, **_image_sizes(cls, overrides) | overrides)

    @property
    def uses_classes(self) -> bool:
        return self._encoding.labels

    @property
    def uses_words(self) -> bool:
        return self._encoding.words is not None

    @property
    def _encoding(self) -> "Encoding":
        from ..data.encoded_shards import Encoding  # torch, which `--help` needn't wait for

        assert self.trajectories is not None
        return Encoding.read(self.trajectories)


@dataclass(frozen=True)
class PixelCNNConfig(FrozenAutoencoderConfig):
    """
    Stage 2 of the baseline, `PixelCNNObjective`: it always encodes the data set once, and stops early by the bits per
    code of images that it isn't trained on.
    """

    kind = "pixelcnn"

    prior: dict[str, Any] = option({}, "arguments of PixelCNNPrior, JSON; added to the preset's")
    holdout_fraction: float = option(
        0.1, "fraction of the images that is held out, between 0 and 1", PROPER_FRACTION, fixed=True
    )
    eval_every: int = option(500, "steps between evaluations on the held-out images", at_least(1))
    patience: int = option(10, "evaluations without a better value after which the run stops", at_least(1))


@dataclass(frozen=True)
class E2EConfig(BridgeConfig, AutoencoderConfig):
    """Autoencoder and prior in one run; mode "paper" is Algorithm 1. `E2EObjective`."""

    kind = "e2e"

    mode: Literal["decoder", "stable", "paper"] = option(
        "decoder",
        "what trains together: 'decoder' first the autoencoder, then prior and decoder on frozen codes; 'stable' all, "
        "the encoder by a fraction of the prior's gradient; 'paper' is Algorithm 1: all, every gradient in full",
        fixed=True,
    )
    reconstruction_weight: float = option(1.0, "weight of L_rec against the terms per latent coordinate", at_least(0))
    regularization: Regularization = option(
        "gamma", "form of L_t^reg: appendix 8, eq. 5, or none (stable, paper)", modes=("stable", "paper")
    )
    regularization_weight: float = option(
        0.01, "weight of L_t^reg (stable, paper)", at_least(0), modes=("stable", "paper")
    )
    encoder_gradient_weight: float = option(
        0.1, "fraction of the prior's gradient that reaches the encoder (stable)", at_least(0), modes=("stable",)
    )
    ramp_fraction: float = option(
        0.1, "fraction of the run over which that one rises from 0 (stable)", FRACTION, modes=("stable",)
    )
    joint_fraction: float = option(
        0.3, "fraction of the run before the prior joins (decoder, stable)", FRACTION, modes=("decoder", "stable")
    )
    freeze_fraction: float = option(
        1.0, "fraction of the run after which the autoencoder is frozen (stable)", FRACTION, modes=("stable",)
    )
    decoder_fraction: float = option(
        0.2,
        "fraction of each batch that trains the decoder once the prior has joined (decoder)",
        POSITIVE_FRACTION,
        modes=("decoder",),
    )
    decoder_noise: float = option(
        0.0,
        "noise level, as a fraction of T, up to which the prior predicts codes for the decoder (decoder)",
        FRACTION,
        modes=("decoder",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "stable" and self.joint_fraction > self.freeze_fraction:
            raise ValueError(
                f"`joint_fraction` must be at most `freeze_fraction`, got {self.joint_fraction} and "
                f"{self.freeze_fraction}: in between nothing would be trained. Give both."
            )
        if self.mode != "paper" and self.joint_fraction == 1:
            raise ValueError("`joint_fraction` of 1 would never train the prior; take less, or train_vqvae.")
        started = self.init_from is not None or self.vqvae_from is not None or self.resume
        if self.autoencoder_steps == 0 and not started:
            raise ValueError(
                f"`freeze_fraction` {self.freeze_fraction} of {self.max_train_steps} steps leaves none for the "
                "autoencoder: take more, or give one that is trained as `vqvae_from`."
            )

        if self.mode == "decoder" and round(self.joint_fraction * self.max_train_steps) == 0 and not started:
            raise ValueError(
                f"`joint_fraction` {self.joint_fraction} of {self.max_train_steps} steps leaves none for the encoder, "
                "which mode 'decoder' freezes once the prior joins: take more of either, or give a trained one as "
                "`vqvae_from`."
            )

    @property
    def autoencoder_steps(self) -> int:
        return round(self.freeze_fraction * self.max_train_steps) if self.mode == "stable" else self.max_train_steps


def _image_sizes(cls: type[RunConfig], settings: dict[str, Any]) -> dict[str, int]:
    """`resolution` and `channels` of the autoencoder in `init_from`; {} where there is none, which building says."""
    folder = find_start(cls, "vqvae", settings.get("init_from"), settings.get("vqvae_from"))
    try:
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else {}
        sizes = {"resolution": saved.get("sample_size"), "channels": saved.get("in_channels")}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
    return {name: size for name, size in sizes.items() if type(size) is int}
