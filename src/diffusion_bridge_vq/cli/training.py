"""The training scripts: settings from preset, file and options, then train and save."""

import argparse
import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..run_folder import RunFolder
from ..training.config import Config
from ..training.presets import PRESETS
from .next_steps import after_training, print_next
from .parser import OneLineParser, errors_as_lines, json_object, local_path, new_parser

# What takes seconds to import is imported when it is needed, so that `--help` answers at once.
if TYPE_CHECKING:
    from ..hub import PushOptions

# Where the options of a run appear in its help. Those that are named nowhere else are of its kind.
_GROUPS = {
    "common options": (
        "preset", "dataset", "output_dir", "init_from", "vqvae_from", "trajectories", "resume", "dry_run",
        "max_train_steps", "max_train_time", "batch_size", "learning_rate", "mixed_precision", "class_conditional",
        "cache_latents", "latents", "seed",
    ),
    "this kind of run": (),
    "data": (
        "dataset_name", "split", "validation_split", "resolution", "channels", "random_flip", "image_column",
        "label_column", "streaming", "shuffle_buffer", "num_workers",
    ),
    "optimizer": (
        "gradient_accumulation_steps", "lr_schedule", "lr_warmup_steps", "weight_decay", "max_grad_norm", "ema_decay",
    ),
    "losses of the autoencoder": (
        "l1_weight", "perceptual_weight", "perceptual_features", "adversarial_weight", "adversarial_fraction",
    ),
    "networks": ("vqvae", "unet", "prior", "scheduler"),
    "speed and memory": ("gradient_checkpointing", "compile", "network_timeout", "profile"),
    "logs, grids and evaluation": (
        "log_every", "image_every", "num_inference_steps", "validate_every", "evaluate_every", "evaluate_images",
        "evaluate_extractor", "report_to",
    ),
    "checkpoints": ("checkpoint_every", "keep_checkpoints"),
}  # fmt: skip


@errors_as_lines()
def train_command(config_class: type[Config], description: str | None, *, makes_pipeline: bool = True) -> None:
    """
    A training script: read the settings, train, save what was trained and its curves, upload the run if asked to.

    Args:
        config_class (`type`): the kind of run.
        description (`str`, *optional*): what `--help` says first.
        makes_pipeline (`bool`, *optional*, defaults to `True`): whether the run ends in a pipeline, which can be
            evaluated and uploaded.
    """
    config, push = parse_run(config_class, None, description, can_push=makes_pipeline)

    from ..evaluation import evaluation_of
    from ..figures import plot_metrics
    from ..hub import upload_while_training
    from ..pipelines import save_trained
    from ..training import train

    run = RunFolder(config.output_dir)
    with upload_while_training(run.path, None if config.dry_run else push):
        trained = train(config, evaluation_of(config) if makes_pipeline else None)  # type: ignore[arg-type]
        if trained is None:  # a dry run, or not the main process
            return
        saved = save_trained(trained, run)
        plot_metrics(run.path)
        print(f"Saved: {', '.join(map(str, saved))}\nGrids, curves and logs: {run.path}")
    print_next(*after_training(saved, config))


def parse_config(cls: type[Config], arguments: Sequence[str] | None = None) -> Config:
    """The settings of [`parse_run`]."""
    return parse_run(cls, arguments)[0]


def parse_run(
    cls: type[Config],
    arguments: Sequence[str] | None = None,
    description: str | None = None,
    can_push: bool = False,
) -> "tuple[Config, PushOptions | None]":
    """
    Settings from the command line. The preset's values are changed by those of `--config`, then by the other options.

    Args:
        cls (`type`): the kind of run.
        arguments (`Sequence[str]`, *optional*): those of the program without it.
        description (`str`, *optional*): what `--help` says first.
        can_push (`bool`, *optional*, defaults to `False`): whether there are options to upload the run.
    """
    parser = new_parser(description)
    known, _ = _first_options().parse_known_args(arguments)
    saved = _read_settings(known.config, cls, parser) if known.config else {}
    mode = known.mode or saved.get("mode")
    if mode != saved.get("mode", mode):
        parser.error(
            f"--config: {known.config} has settings for mode {saved['mode']!r}, not {mode!r}: leave out --mode, or "
            "give --preset and other flags instead of --config."
        )
    preset = known.preset or saved.get("preset", cls.preset)
    chosen = known.preset is not None or "preset" in saved
    groups = {title: parser.add_argument_group(title) for title in _GROUPS}
    groups["common options"].add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="YAML or JSON file of settings, such as the config.json of a run",
    )
    shown = _preset_defaults(cls, preset, mode) | saved
    hints, fields = typing.get_type_hints(cls), {f.name: f for f in dataclasses.fields(cls)}
    for title, names in _sort_into_groups(list(fields)).items():
        for name in names:
            default = shown.get(name)
            text = "" if isinstance(default, dict) else f" (default: {'none' if default is None else default})"
            groups[title].add_argument(
                f"--{name.replace('_', '-')}",
                default=argparse.SUPPRESS,
                help=(fields[name].metadata["help"] + text).replace("%", "%%"),
                **_options_of(hints[name]),
            )
    if can_push:
        hub = parser.add_argument_group("the Hub")
        hub.add_argument("--push-to-hub", metavar="USER/MODEL", help="upload the run, while it trains and at its end")
        add_repository_options(hub)
    given = vars(parser.parse_args(arguments))
    given.pop("config", None)
    push = _push_options(given, parser) if can_push else None
    for name, value in given.items():  # arguments of components are merged, as with the preset's
        saved[name] = {**saved[name], **value} if isinstance(value, dict) and name in saved else value
    saved.pop("preset", None)
    if saved.get("dataset", "digits") != "digits" and not chosen and not {"resolution", "channels"} <= saved.keys():
        parser.error(
            f"--dataset needs a --preset for its size, color and networks: {', '.join(PRESETS)}. Without one, "
            f"{preset!r} would train on gray images of 16 x 16 pixels. `cifar10-tiny` is a start on a CPU"
        )
    try:
        return cls.from_preset(preset, **saved), push
    except (ValueError, TypeError) as error:
        parser.error(str(error))


def _first_options() -> argparse.ArgumentParser:
    """What decides about the defaults of all other options."""
    parser = OneLineParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset")
    parser.add_argument("--mode")
    parser.add_argument("--config", type=local_path)
    return parser


def _preset_defaults(cls: type[Config], preset: str, mode: str | None) -> dict[str, Any]:
    defaults = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
    try:
        values = cls.preset_settings(preset, mode)
    except ValueError:  # parsing will say it
        values = {}
    return defaults | {name: value for name, value in values.items() if name in defaults} | {"preset": preset}


# What config.json of a run has besides its settings.
_NO_SETTINGS = ("kind", "id2label", "label_examples", "machine")


def _read_settings(path: Path, cls: type[Config], parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Settings from a file. What else a run writes there is left out."""
    import yaml  # of which JSON is a part

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(f"--config: {path} can't be read: {' '.join(str(error).split())}")
    if not isinstance(content, Mapping):
        parser.error(f"--config: {path} must hold settings by name, got {type(content).__name__}.")
    saved_by_a_run = not content.keys().isdisjoint(_NO_SETTINGS)
    content = {str(name).replace("-", "_"): value for name, value in content.items() if name not in _NO_SETTINGS}
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}
    for name, value in content.items():  # YAML takes 1e-3, without a point, for text
        if isinstance(value, str) and float in (hints.get(name), *typing.get_args(hints.get(name))):
            with suppress(ValueError):  # checked with all others
                content[name] = float(value)
    if unknown := sorted(set(content) - fields):
        parser.error(f"--config: {path} has {', '.join(unknown)}, which runs of kind {cls.kind!r} don't have.")
    return cls.used(content) if saved_by_a_run else content


def _sort_into_groups(names: list[str]) -> dict[str, list[str]]:
    """Title of each group -> those of its options that there are."""
    placed = {name for group in _GROUPS.values() for name in group}
    found = {title: [name for name in group if name in names] for title, group in _GROUPS.items()}
    found["this kind of run"] = [name for name in names if name not in placed]
    return found


def describe_options(cls: type[Config]) -> dict[str, list[tuple[str, str, str, str]]]:
    """Flag, values, default (without a preset) and meaning of each option of a kind of run, by group."""
    hints, fields = typing.get_type_hints(cls), {f.name: f for f in dataclasses.fields(cls)}
    described = {}
    for title, names in _sort_into_groups(list(fields)).items():
        described[title] = [
            (
                f"--{name.replace('_', '-')}",
                _values_of(hints[name]),
                "" if fields[name].default in (None, "", dataclasses.MISSING) else str(fields[name].default),
                fields[name].metadata["help"],
            )
            for name in names
        ]
    return described


def _values_of(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is types.UnionType:
        hint = typing.get_args(hint)[0]
    words = {bool: "a switch", int: "a whole number", float: "a number", Path: "a path", str: "text"}
    return words.get(hint, "JSON")


def _options_of(hint: Any) -> dict[str, Any]:
    """How argparse reads a value of this type."""
    if typing.get_origin(hint) is types.UnionType:  # such as int | None
        hint = typing.get_args(hint)[0]
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(hint) is typing.Literal:
        return {"choices": typing.get_args(hint)}
    if typing.get_origin(hint) is dict:
        return {"type": json_object, "metavar": "JSON"}
    return {"type": local_path if hint is Path else hint}


def _push_options(given: dict[str, Any], parser: argparse.ArgumentParser) -> "PushOptions | None":
    """Take `push_to_hub`, `public` and `license` out of `given`."""
    repository, public, license = (given.pop(name) for name in ("push_to_hub", "public", "license"))
    if repository is None:
        if public or license:
            parser.error("--public and --license go with --push-to-hub")
        return None
    from ..hub import PushOptions

    return PushOptions(repository, public, license)


def add_repository_options(parser: Any) -> None:
    """Add `--public` and `--license`."""
    parser.add_argument("--public", action="store_true", help="for all to see; without it a new repository is private")
    parser.add_argument("--license", help="of the weights, by the Hub's name, e.g. apache-2.0")
