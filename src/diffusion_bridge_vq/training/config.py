"""Settings that all kinds of run share, and how presets and starting points fill them in."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from ..home_folder import expand_home
from ..run_folder import RunFolder
from .options import (
    FRACTION,
    POSITIVE,
    at_least,
    between,
    check_options,
    expand_paths,
    find_unused,
    one_of,
    option,
)
from .presets import PAPER_MODE, PRESETS, fine_tuning_values, preset_values

Config = TypeVar("Config", bound="RunConfig")

# Those of diffusers' SchedulerType (a test compares), but for piecewise_constant, whose rules no option gives.
_LR_SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
)


@dataclass(frozen=True)
class RunConfig:
    """
    What every run needs. Fields are the options of the command line, help texts their documentation.

    Raises:
        ValueError: a value outside its range; says what was given and expected.
        TypeError: a value of another type.
    """

    kind: ClassVar[str]
    starts_with: ClassVar[tuple[str, ...]] = ("vqvae",)  # what it takes of `init_from`, if it is there
    encoded_option: ClassVar[str] = ""  # names a folder of encoded images to train on, instead of images

    preset: str = option("digits", f"settings to start from: {', '.join(PRESETS)}")
    dataset: str = option(
        "", "Hub id, folder of images, folder of parquet files, folder with CSV splits, or 'digits' (embedded)"
    )
    dataset_name: str | None = option(
        None, "what to call the data set in public; without it one that isn't on the Hub has no name there"
    )
    split: str = option("train", "split to train on")
    validation_split: str | None = option(None, "split whose losses are logged, too, with the averaged weights")
    streaming: bool = option(False, "read the data while training instead of before: Hub id, parquet or tar shards")
    shuffle_buffer: int = option(
        10_000,
        "images among which a stream is shuffled; see docs/how-to/large-data.md",
        at_least(1),
        fixed=True,
        needs="streaming",
    )
    image_column: str | None = option(None, "column with the images, if there are several")
    label_column: str | None = option(
        None, "column with the classes, if it isn't a ClassLabel; of several, as in name,style, the texts are joined"
    )
    balance_classes: bool = option(
        False, "repeat images of rare classes, so that all classes are learned from about equally often", fixed=True
    )
    output_dir: Path = option(Path("outputs/run"), "everything the run writes goes here")
    init_from: Path | None = option(
        None,
        "run or pipeline folder to go on from: its autoencoder and, for a diffusion prior, its U-Net and scheduler, "
        "which keep their settings",
    )
    vqvae_from: Path | None = option(
        None,
        "an autoencoder, such as a stock VQModel, by its folder, or its run, its pipeline or its id on the Hub, of "
        "which nothing else is taken",
    )
    resolution: int = option(32, "side of the square training images, in pixels", between(1, 8192))
    channels: int = option(3, "3 for RGB, 1 for grayscale", one_of(1, 3))
    random_flip: bool = option(False, "mirror images at random, left to right", fixed=True)
    batch_size: int = option(64, "images per process and step", at_least(1), fixed=True)
    gradient_accumulation_steps: int = option(1, "batches per optimizer step", at_least(1), fixed=True)
    max_train_steps: int = option(10_000, "optimizer steps", at_least(1))
    max_train_time: float | None = option(
        None,
        "seconds of training, over all starts, after which the run ends as after its last step; the schedule follows",
        POSITIVE,
    )
    learning_rate: float = option(1e-3, "peak learning rate of AdamW", POSITIVE)
    lr_schedule: str = option(
        "cosine", "diffusers.optimization's name: cosine, constant_with_warmup, ...", one_of(*_LR_SCHEDULES)
    )
    lr_warmup_steps: int = option(0, "steps of linear warm-up", at_least(0))
    weight_decay: float = option(0.0, "AdamW's", at_least(0))
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm", POSITIVE)
    ema_decay: float = option(0.999, "decay of the averaged weights that are saved; 0 keeps the last", FRACTION)
    mixed_precision: Literal["no", "fp16", "bf16"] = option("no", "arithmetic of the networks")
    seed: int = option(0, "of weights, noise and data order", at_least(0), fixed=True)
    gradient_checkpointing: bool = option(False, "compute activations again in the backward pass, to save memory")
    compile: bool = option(False, "torch.compile the networks")
    num_workers: int = option(0, "processes that load data", at_least(0))
    log_every: int = option(50, "steps between log lines", at_least(1))
    image_every: int = option(
        2000, "steps between grids of reconstructions and samples; 0 for the end only", at_least(0)
    )
    validate_every: int = option(
        500, "steps between losses of validation_split", at_least(1), needs="validation_split"
    )
    num_inference_steps: int = option(50, "reverse steps of the sample grids", at_least(1))
    checkpoint_every: int = option(1000, "steps between checkpoints; 0 for none", at_least(0))
    keep_checkpoints: int = option(2, "checkpoints that are kept", at_least(1))
    resume: bool = option(False, "go on from the newest checkpoint in output_dir")
    report_to: str = option("tensorboard", "tracker, by Accelerate's name; 'none' for metrics.jsonl alone")
    network_timeout: int = option(
        1800, "seconds that a process waits for the others before the run ends, evaluations included", at_least(1)
    )
    profile: bool = option(False, "torch profiler's trace of five steps, in output_dir/profile")
    dry_run: bool = option(
        False, "check settings, data and disk, try each phase, estimate time and memory; write nothing"
    )
    vqvae: dict[str, Any] = option({}, "arguments of GumbelVQModel, JSON; added to the preset's")

    def __post_init__(self) -> None:
        expand_paths(self)
        check_options(self)
        self._check_unused()
        if self.init_from is not None and self.vqvae_from is not None:
            raise ValueError(
                "`init_from` takes the autoencoder, too: give either it or `vqvae_from`, which takes nothing else."
            )
        if self.lr_schedule == "constant" and self.lr_warmup_steps:
            raise ValueError(
                f"`lr_schedule` 'constant' has no warm-up, and `lr_warmup_steps` is {self.lr_warmup_steps}: take "
                "'constant_with_warmup', or 0."
            )
        if self.ema_decay == 1:
            raise ValueError("`ema_decay` of 1 would never leave the initial weights; take less, e.g. 0.999.")
        if not self.dataset and self.encoded_data is None:
            raise ValueError(f"The preset {self.preset!r} has no data set of its own: give `dataset`.")
        if self.balance_classes and (self.streaming or self.uses_words):
            what = "a stream, whose classes aren't counted" if self.streaming else "labels of several words"
            raise ValueError(f"`balance_classes` doesn't work with {what}: drop it.")
        factor = 2 ** (len(self.vqvae.get("block_out_channels", (64,))) - 1)
        if self.resolution % factor:
            raise ValueError(
                f"`resolution` must be divisible by {factor} for this autoencoder, got {self.resolution}."
            )

    def _check_unused(self) -> None:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name, why in self.find_unused(values).items():
            raise ValueError(f"`{name}` {values[name]!r} {why}: leave it out, or change that.")

    @property
    def autoencoder_from(self) -> Path | None:
        """Where the run's autoencoder comes from; None for a fresh one."""
        return self.init_from if self.vqvae_from is None else self.vqvae_from

    def find_start(self, name: str) -> Path | None:
        """The folder of a component that the run starts from; None for a fresh one."""
        return find_start(type(self), name, self.init_from, self.vqvae_from)

    @property
    def uses_classes(self) -> bool:
        """Whether the run learns from the labels of the data."""
        return False

    @property
    def uses_words(self) -> bool:
        """Whether labels are texts, whose words are the classes."""
        return False

    @property
    def image_condition(self) -> str | None:
        """What the run draws from, see `data.ImageCondition`."""
        return None

    @property
    def condition_column(self) -> str | None:
        """The column of the images that the run draws from."""
        return None

    @property
    def encoded_data(self) -> Path | None:
        """A folder of encoded images to train on, instead of images."""
        return getattr(self, self.encoded_option) if self.encoded_option else None

    @property
    def evaluation_interval(self) -> int:
        """Steps between evaluations by the function that `train` is given; 0 for none."""
        return 0

    @classmethod
    def preset_settings(cls, preset: str, mode: str | None = None) -> dict[str, Any]:
        """
        What a preset gives to this kind of run: nothing for another mode, and in mode "paper" Algorithm 1 as printed.

        Raises:
            ValueError: no such preset.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        if mode is None and "mode" in fields:
            mode = str(fields["mode"].default)
        names = {name for name, f in fields.items() if mode in (f.metadata["modes"] or (mode,))}
        values = {name: value for name, value in preset_values(preset, cls.kind).items() if name in names}
        for name, value in (PAPER_MODE if mode == "paper" else {}).items():
            values[name] = values.get(name, {}) | value if isinstance(value, dict) else value
        return values

    @classmethod
    def from_preset(cls: type[Config], preset: str, **overrides: Any) -> Config:
        """
        A preset's settings with some changed; dicts of component arguments are merged, not replaced. Components that
        the run starts from have settings of their own, so the preset's are left out, and a U-Net that goes on gets a
        lower learning rate and a shorter warm-up.
        """
        start = [overrides.get(name) for name in ("init_from", "vqvae_from")]
        loaded = [name for name in cls.starts_with if find_start(cls, name, *start) is not None]
        settings = cls.preset_settings(preset, overrides.get("mode"))
        values = {"preset": preset} | {name: value for name, value in settings.items() if name not in loaded}
        if "unet" in loaded:
            values |= fine_tuning_values(values)
        elif "vqvae" in loaded and "unet" in values:  # the latents' channels are then the autoencoder's
            values["unet"] = {k: v for k, v in values["unet"].items() if k not in ("in_channels", "out_channels")}
        for key, value in overrides.items():
            values[key] = {**values[key], **value} if isinstance(value, dict) and key in values else value
        return cls(**values)

    @classmethod
    def used(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings of a run that was saved, without those that do nothing; version 0.1.0 saved them, too."""
        unused = cls.find_unused(settings)
        return {name: value for name, value in settings.items() if name not in unused}

    @classmethod
    def find_unused(cls, settings: Mapping[str, Any]) -> dict[str, str]:
        """
        The changed options that the others leave without effect, and why: also those that say how to read images, of
        a run that reads encoded ones.
        """
        found, encoded = find_unused(cls, settings), settings.get(cls.encoded_option)
        if encoded is None:
            return found
        unread = [] if settings.get("evaluate_every") else ["split"]
        if settings.get("validation_split") is None:
            unread += ["dataset", "image_column", "label_column"]
        defaults = {f.name: f.default for f in dataclasses.fields(cls) if f.name in unread}
        preset = settings.get("preset", cls.preset)
        own = cls.preset_settings(preset) if preset in PRESETS else {}
        for name, default in defaults.items():
            if settings.get(name, default) not in (default, own.get(name)):
                found[name] = f"isn't read, since the run is trained on what is encoded in {encoded}"
        return found

    def spread_steps(self) -> list[int]:
        """Six steps spread evenly over the run: the phases of end-to-end training differ in terms and cost."""
        return [part * self.max_train_steps // 6 for part in range(6)]

    def to_json(self) -> dict[str, Any]:
        """JSON-safe settings; `dataset_name` is None only where the name of `dataset` may be private."""
        from ..privacy import public_dataset

        settings = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()}
        dataset = self.dataset if self.encoded_data is None else _name_of_encoded(self.encoded_data)
        return settings | {"dataset_name": self.dataset_name or public_dataset(dataset)}


def _name_of_encoded(folder: Path) -> str:
    """Of what, `dataset` being ignored; "" where it can't be read, which the run will say."""
    from ..data.encoded import find_encoded  # torch, which `--help` needn't wait for
    from ..data.encoded_shards import Encoding

    try:
        return str(Encoding.read(find_encoded(folder)).data["name"])
    except (OSError, ValueError):
        return ""


def find_start(
    cls: type[RunConfig], name: str, init_from: Path | str | None, vqvae_from: Path | str | None
) -> Path | None:
    """See [`RunConfig.find_start`]."""
    if name == "vqvae" and vqvae_from is not None:
        return expand_home(vqvae_from)
    if init_from is None or name not in cls.starts_with:
        return None
    folder = RunFolder(expand_home(init_from))
    if name == "scheduler" and folder.find_component("unet") is None:
        return None
    return folder.find_component(name)
