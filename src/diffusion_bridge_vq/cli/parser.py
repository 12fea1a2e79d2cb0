"""Parsers of all scripts: errors as one line, and types of arguments."""

import argparse
import json
import math
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image

from ..home_folder import expand_home

# What torch says in errors of no class of their own: on CPUs, and on devices (CUDA outside of its allocator, MPS).
_WITHOUT_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """
    End the program on a ValueError, OSError or ImportError, or if memory runs out, with its message and status 2, as
    argparse does, where Python would print a traceback. Also decorates a function.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, Image.DecompressionBombError) as error:
        _end(str(error), error)
    except (RuntimeError, MemoryError) as error:
        if not _memory_ran_out(error):
            raise
        _end("There isn't enough memory for this: take fewer images at once, or smaller ones.", error)


def _memory_ran_out(error: Exception) -> bool:
    """Not so of other errors that name memory, such as "an illegal memory access" or "out of shared memory"."""
    torch = sys.modules.get("torch")  # which `--help` doesn't import
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in _WITHOUT_MEMORY)


def _end(message: str, error: Exception) -> NoReturn:
    line = " ".join(part for part in map(str.strip, message.splitlines()) if part)  # libraries write several
    print(f"{Path(sys.argv[0]).name}: error: {line}", file=sys.stderr)
    raise SystemExit(2) from error


class OneLineParser(argparse.ArgumentParser):
    """Ends with one line on an error, without the whole usage; takes `--output_dir` for `--output-dir`."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        arguments = sys.argv[1:] if args is None else args
        return super().parse_known_args([_with_hyphens(text) for text in arguments], namespace)


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The description as it is written, and all defaults but None and False, of which the help text says more."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        if isinstance(action.default, (list, tuple)):
            every = action.choices is not None and list(action.choices) == list(action.default)
            return f"{action.help} (default: {'all' if every else ' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows the default of each option, and whose errors are one line."""
    return OneLineParser(
        description=description,
        usage="%(prog)s [options]",
        formatter_class=_Help,
        allow_abbrev=False,
    )


def exit_on_sigterm() -> None:
    """Make SIGTERM, which `timeout` sends, end the program with a message: what was measured is on disk already."""

    def end(number: int, _: Any) -> None:
        print(f"{signal.Signals(number).name}: stopped; run the same command again to continue.", file=sys.stderr)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)


def local_path(text: str) -> Path:
    """A path; `~` is the home folder, also where the shell doesn't expand it, as in `--output-dir=~/x`."""
    try:
        return expand_home(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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


def _with_hyphens(text: str) -> str:
    """`--output_dir=a_b` -> `--output-dir=a_b`."""
    if not text.startswith("--"):
        return text
    name, equals, value = text.partition("=")
    return name.replace("_", "-") + equals + value


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {text!r} ({error})") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object such as '{{\"eta\": 2.0}}', got {text!r}")
    return value
