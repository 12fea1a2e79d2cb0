"""What can be hidden of a picture, as maps of its codes: 1 where it is drawn anew."""

from typing import Any

import numpy as np


def preset_masks(side: int) -> dict[str, list[list[int]]]:
    """Masks by their names on the page, (side, side). The center has 9 of 21 positions a side, as in the paper."""
    hidden = {name: np.zeros((side, side), int) for name in PRESETS}
    hidden["left half given"][:, side // 2 :] = 1
    hidden["top half given"][side // 2 :] = 1
    size = max(1, round(side * 9 / 21))
    hidden["top left hidden"][:size, :size] = 1
    size += (side - size) % 2  # or it wouldn't be in the middle
    start = (side - size) // 2
    hidden["center hidden"][start : start + size, start : start + size] = 1
    return {name: mask.tolist() for name, mask in hidden.items()}


PRESETS = ("left half given", "top half given", "center hidden", "top left hidden")


def read_mask(hidden: Any, side: int) -> np.ndarray:
    """
    A preset's name or a map of 0 and 1 -> (side, side) bool, True where hidden.

    Raises:
        ValueError: an unknown name, another shape, other values, or nothing hidden.
    """
    if isinstance(hidden, str):
        if hidden not in PRESETS:
            raise ValueError(f"`hidden` must be one of {', '.join(map(repr, PRESETS))} or a map, got {hidden!r}.")
        hidden = preset_masks(side)[hidden]
    check_map("hidden", hidden, side, 1)
    mask = np.array(hidden, bool)
    if not mask.any():
        raise ValueError("Nothing is hidden: choose at least one position that is to be drawn anew.")
    return mask


def check_map(name: str, rows: Any, side: int, most: int) -> None:
    """
    Raises:
        ValueError: `rows` isn't `side` lists of `side` whole numbers from 0 to `most`.
    """
    square = isinstance(rows, list) and len(rows) == side
    square = square and all(isinstance(row, list) and len(row) == side for row in rows)
    if not square or not all(type(value) is int and 0 <= value <= most for row in rows for value in row):
        raise ValueError(f"`{name}` must be {side} lists of {side} whole numbers from 0 to {most}.")
