"""Options of a run: dataclass fields that carry their help text and bounds."""

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..home_folder import expand_home


class Bound(NamedTuple):
    """What a value must fulfil, and the words for it: "must {words}"."""

    holds: Callable[[Any], bool]
    words: str


POSITIVE = Bound(lambda value: value > 0, "be positive")
FRACTION = Bound(lambda value: 0 <= value <= 1, "lie in [0, 1]")
POSITIVE_FRACTION = Bound(lambda value: 0 < value <= 1, "lie in (0, 1]")
PROPER_FRACTION = Bound(lambda value: 0 < value < 1, "lie between 0 and 1")


def at_least(lowest: float) -> Bound:
    return Bound(lambda value: value >= lowest, f"be at least {lowest}")


def between(lowest: int, highest: int) -> Bound:
    return Bound(lambda value: lowest <= value <= highest, f"lie in {lowest}..{highest}")


def one_of(*choices: Any) -> Bound:
    return Bound(lambda value: value in choices, f"be one of {', '.join(map(str, choices))}")


def option(
    default: Any,
    text: str,
    bound: Bound | None = None,
    *,
    fixed: bool = False,
    modes: tuple[str, ...] = (),
    needs: str = "",
) -> Any:
    """
    A field of a configuration.

    Args:
        default: its default value; a dict is copied.
        text (`str`): its help text.
        bound ([`Bound`], *optional*): checked by [`check_options`].
        fixed (`bool`, *optional*, defaults to `False`): whether a resumed run must have the value of its first start,
            because the order of the data, or what was learned so far, depends on it.
        modes (`tuple[str, ...]`, *optional*, defaults to `()`): values of `mode` that use it; all, if it is empty.
        needs (`str`, *optional*, defaults to `""`): an option without which it does nothing.
    """
    metadata = {"help": text, "bound": bound, "fixed": fixed, "modes": modes, "needs": needs}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


LARGEST = 2**31 - 1  # what numpy, torch and the data loaders take as counts and seeds


def check_options(config: Any) -> None:
    """
    Check every field of a dataclass against its type and its bound.

    Raises:
        TypeError: a value of another type.
        ValueError: a value that isn't among the choices, is not finite, or is out of bounds.
    """
    hints = typing.get_type_hints(type(config))
    for f in dataclasses.fields(config):
        name, value, hint = f.name, getattr(config, f.name), hints[f.name]
        if typing.get_origin(hint) is Literal:
            if value not in typing.get_args(hint):
                raise ValueError(f"`{name}` must be one of {typing.get_args(hint)}, got {value!r}.")
            continue
        expected = [cls for cls in (typing.get_args(hint) or (hint,)) if isinstance(cls, type)]
        if typing.get_origin(hint) is dict:
            expected = [dict]
        if value is None and type(None) in expected:
            continue
        if float in expected:
            expected.append(int)
        if not isinstance(value, tuple(expected)) or (isinstance(value, bool) and bool not in expected):
            wanted = " or ".join(cls.__name__ for cls in expected if cls is not type(None))
            raise TypeError(f"`{name}` must be of type {wanted}, got {value!r}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"`{name}` must be a finite number, got {value}.")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError(f"`{name}` must be at most {LARGEST}, got {value:.3g}.")
        bound: Bound | None = f.metadata.get("bound")
        if bound is not None and not bound.holds(value):
            raise ValueError(f"`{name}` must {bound.words}, got {value!r}.")


def find_unused(cls: type, values: Mapping[str, Any]) -> dict[str, str]:
    """
    The changed options that the others leave without effect, and why.

    Args:
        cls (`type`): a configuration.
        values (`Mapping[str, Any]`): options by name; those that are missing have their defaults.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}

    def value_of(name: str) -> Any:
        return values.get(name, fields[name].default)

    found = {}
    for name, value in values.items():
        if name not in fields or value == fields[name].default:
            continue
        modes, needs = fields[name].metadata["modes"], fields[name].metadata["needs"]
        if modes and value_of("mode") not in modes:
            found[name] = f"is for mode {' or '.join(map(repr, modes))}, and `mode` is {value_of('mode')!r}"
        elif needs and not value_of(needs):
            found[name] = f"does nothing without `{needs}`"
    return found


def expand_paths(config: Any) -> None:
    """Make `pathlib.Path` of every path that was given as text, with `~` expanded, in a frozen dataclass."""
    hints = typing.get_type_hints(type(config))
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if Path in (typing.get_args(hints[f.name]) or (hints[f.name],)) and isinstance(value, (str, Path)):
            object.__setattr__(config, f.name, expand_home(value))
