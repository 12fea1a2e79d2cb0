"""Command lines: the flags that scripts share, and errors as one line."""

import argparse
import dataclasses
import json
import math
import re
import signal
import sys
import tempfile
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image

from .evaluation import EvaluationConfig, evaluation_of
from .figures import plot_metrics
from .hub import PushOptions, upload_while_training
from .pipelines import save_components
from .run_folder import RunFolder
from .training import train
from .training.config import Config


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """
    End the program on a ValueError, OSError or ImportError, or for want of memory, with its message and status 2, as
    argparse does, where Python would print a traceback. Also decorates a function.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, Image.DecompressionBombError) as error:
        _end(str(error), error)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        _end("There isn't enough memory for this: take fewer images at once, or smaller ones.", error)


def _end(message: str, error: Exception) -> NoReturn:
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    raise SystemExit(2) from error


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows the default of each option."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)


# ------------------------------------------------------------------------------------------------------ training


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
    push, arguments = parse_push_options() if makes_pipeline else (None, None)
    config = parse_config(config_class, arguments, description)
    run = RunFolder(config.output_dir)
    with upload_while_training(run.path, None if config.dry_run else push):
        trained = train(config, evaluation_of(config) if makes_pipeline else None)  # type: ignore[arg-type]
        if trained is None:  # a dry run, or not the main process
            return
        saved = save_components(trained, run)
        plot_metrics(run.path)
        print(f"Saved: {', '.join(map(str, saved))}\nGrids, curves and logs: {run.path}")


def parse_config(cls: type[Config], arguments: Sequence[str] | None = None, description: str | None = None) -> Config:
    """Settings from the command line: those of `--preset`, changed by the other options."""
    parser = new_parser(description)
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        names = sorted({f"--{f.name.replace('_', '-')}", f"--{f.name}"})
        hint = hints[f.name]
        options: dict[str, Any] = {"help": f.metadata["help"].replace("%", "%%"), "default": argparse.SUPPRESS}
        if typing.get_origin(hint) is types.UnionType:  # such as int | None
            hint = typing.get_args(hint)[0]
        if hint is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(hint) is typing.Literal:
            options["choices"] = typing.get_args(hint)
        elif typing.get_origin(hint) is dict:
            options["type"] = _json_object
        else:
            options["type"] = local_path if hint is Path else hint
        parser.add_argument(*names, **options)
    given = vars(parser.parse_args(arguments))
    try:
        return cls.from_preset(given.pop("preset", cls.preset), **given)
    except ValueError as error:
        parser.error(str(error))


def parse_push_options(arguments: Sequence[str] | None = None) -> tuple[PushOptions | None, list[str]]:
    """`--push-to-hub`, `--public` and `--license` of a training script (None without the first), and what is left."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    group = parser.add_argument_group("the Hub")
    group.add_argument(
        "--push-to-hub", metavar="USER/MODEL", help="upload the run there, while it trains and at its end"
    )
    add_repository_options(group)
    given, rest = parser.parse_known_args(arguments)
    if {"-h", "--help"} & set(rest):
        parser.print_help()  # before that of the run's settings
    if given.push_to_hub is None:
        if given.public or given.license:
            parser.error("--public and --license go with --push-to-hub")
        return None, rest
    return PushOptions(given.push_to_hub, given.public, given.license), rest


def add_repository_options(parser: Any) -> None:
    """Add `--public` and `--license`."""
    parser.add_argument("--public", action="store_true", help="for all to see; without it a new repository is private")
    parser.add_argument("--license", help="of the weights, by the Hub's name, e.g. apache-2.0")


# ---------------------------------------------------------------------------------------------------- evaluation


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what evaluate.py and reproduce.py share: which images, and the fields of `EvaluationConfig`."""
    parser.add_argument("--dataset-name", help="in the results: cifar10 and miniimagenet have places in the tables")
    parser.add_argument(
        "--train-split",
        default="train",
        help="images that models are trained on, in tables also a part: train[:20000]",
    )
    parser.add_argument("--test-split", default="test", help="images that models are compared with")
    parser.add_argument("--image-column", help="column with the images, if there are several")
    for option in dataclasses.fields(EvaluationConfig):
        name, text = f"--{option.name.replace('_', '-')}", option.metadata["help"]
        kind = finite_number if isinstance(option.default, float) else type(option.default)
        parser.add_argument(name, type=kind, default=option.default, help=text)


def evaluation_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What [`add_evaluation_arguments`] read, as keyword arguments of `evaluate_pipelines`."""
    names = [option.name for option in dataclasses.fields(EvaluationConfig)]
    config = EvaluationConfig(**{name: getattr(args, name) for name in names})
    shared = ("dataset_name", "train_split", "test_split", "image_column")
    return {name: getattr(args, name) for name in shared} | {"config": config}


def exit_on_sigterm() -> None:
    """Make SIGTERM, which `timeout` sends, end the program with a message: what was measured is on disk already."""

    def end(number: int, _: Any) -> None:
        print(f"{signal.Signals(number).name}: stopped; run the same command again to continue.", file=sys.stderr)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)


# --------------------------------------------------------------------------------------------- types of arguments


def local_path(text: str) -> Path:
    """A path; `~` is the home folder, also where the shell doesn't expand it, as in `--output-dir=~/x`."""
    return Path(text).expanduser()


def whole_number(lowest: int, highest: int = 2**31 - 1) -> Callable[[str], int]:
    """Type of an argument: a whole number in this range."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
        if not lowest <= value <= highest:
            limit = f"at least {lowest}" if value < lowest else f"at most {highest}"
            raise argparse.ArgumentTypeError(f"must be {limit}, got {text}")
        return value

    return read


def finite_number(text: str) -> float:
    """Type of an argument: a number, but not NaN or infinite."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")
    return value


def class_label(text: str) -> int | str:
    """Type of an argument: the number or the name of a class."""
    return int(text) if re.fullmatch(r"-?\d{1,9}", text) else text


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {text!r} ({error})") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object such as '{{\"eta\": 2.0}}', got {text!r}")
    return value


# -------------------------------------------------------------------------------------------------------- outputs


def check_output_folder(folder: Path) -> None:
    """
    Before the work: can files be written into `folder`? Nothing stays behind.

    Raises:
        ValueError: it, or a folder above it, is a file or can't be written.
    """
    try:
        place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not place.is_dir():
            raise ValueError(f"{folder} can't be a folder: {place} is a file. Give another output.")
        with tempfile.TemporaryDirectory(dir=place) as inside:  # with the longest names that it will have
            (Path(inside) / folder.name).mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(f"Nothing can be written to {folder}: {error.strerror}. Give another output.") from error


def check_output_image(path: Path) -> None:
    """
    Before the work: can a picture be written to `path`?

    Raises:
        ValueError: a folder, a name without the ending of a picture, or as in [`check_output_folder`].
    """
    endings = Image.registered_extensions()
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a picture in it, such as {path / 'samples.png'}.")
    if endings.get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"{path} needs the ending of a picture, such as {path.stem or 'samples'}.png.")
    check_output_folder(path.parent)
