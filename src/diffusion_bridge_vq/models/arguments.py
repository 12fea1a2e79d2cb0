"""Checks of constructor arguments: a configuration is text that anybody can have written."""

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

# Of images and latents. It has no weights that would bound it.
MAX_SIDE = 8192


class Rule(Protocol):
    """What an argument may be. `str()` of a rule says it in words."""

    def accepts(self, value: Any) -> bool: ...


@dataclass(frozen=True)
class Integer:
    """An integer of `low` to `high`."""

    low: int = 1
    high: int | None = None

    def accepts(self, value: Any) -> bool:
        is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return is_integer and self.low <= value and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        return f"an integer of at least {self.low}" + ("" if self.high is None else f" and at most {self.high}")


@dataclass(frozen=True)
class Number:
    """A finite number of `low` to `high`, each included or not."""

    low: float = -math.inf
    high: float = math.inf
    without_low: bool = False
    without_high: bool = False

    def accepts(self, value: Any) -> bool:
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            return False
        try:
            number = float(value)
        except OverflowError:  # an integer of hundreds of digits
            return False
        above = number > self.low if self.without_low else number >= self.low
        below = number < self.high if self.without_high else number <= self.high
        return math.isfinite(number) and above and below

    def __str__(self) -> str:
        bounds = [f"{'above' if self.without_low else 'at least'} {self.low}"] if self.low > -math.inf else []
        bounds += [f"{'below' if self.without_high else 'at most'} {self.high}"] if self.high < math.inf else []
        return ", ".join(["a finite number", *([" and ".join(bounds)] if bounds else [])])


@dataclass(frozen=True)
class Flag:
    """True or False."""

    def accepts(self, value: Any) -> bool:
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "True or False"


@dataclass(frozen=True)
class Choice:
    """A string, one of `choices` if there are any."""

    choices: tuple[str, ...] = ()

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) and (not self.choices or value in self.choices)

    def __str__(self) -> str:
        return f"one of {', '.join(self.choices)}" if self.choices else "a string"


@dataclass(frozen=True)
class OrNone:
    """What `rule` takes, or None."""

    rule: Rule

    def accepts(self, value: Any) -> bool:
        return value is None or self.rule.accepts(value)

    def __str__(self) -> str:
        return f"{self.rule} or None"


@dataclass(frozen=True)
class ListOf:
    """A list or tuple of what `rule` takes, not empty."""

    rule: Rule

    def accepts(self, value: Any) -> bool:
        return isinstance(value, (list, tuple)) and len(value) > 0 and all(map(self.rule.accepts, value))

    def __str__(self) -> str:
        return f"a list, not empty, each entry {self.rule}"


@dataclass(frozen=True)
class Sides:
    """A side of a square, or height and width."""

    side: Integer = Integer(1, MAX_SIDE)

    def accepts(self, value: Any) -> bool:
        is_pair = isinstance(value, (list, tuple)) and len(value) == 2 and all(map(self.side.accepts, value))
        return is_pair or self.side.accepts(value)

    def __str__(self) -> str:
        return f"{self.side}, or a pair of them"


def check_arguments(owner: str, given: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """
    Check those arguments for which there is a rule.

    Args:
        owner (`str`): the class that takes them, for the message.
        given (`Mapping[str, Any]`): name -> value.
        rules (`Mapping[str, Rule]`): name -> what it may be.

    Raises:
        ValueError: with the argument, what it may be and what was given.
    """
    for name, rule in rules.items():
        if name in given and not rule.accepts(given[name]):
            shown = repr(given[name])
            shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
            raise ValueError(f"`{name}` of {owner} must be {rule}, got {shown}.")


def check_same_length(owner: str, given: Mapping[str, Any], names: Sequence[str]) -> None:
    """
    Raises:
        ValueError: these lists differ in length.
    """
    lengths = {name: len(given[name]) for name in names if name in given}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"`{name}` {length}" for name, length in lengths.items())
        raise ValueError(f"{owner} needs lists of the same length, one entry per level, got {shown}.")
