"""Grids of images, without matplotlib."""

import math
from collections.abc import Iterable, Sequence

import torch
from diffusers.utils import make_image_grid
from PIL import Image, ImageOps

_MOST = 10_000  # columns, and pixels of a tile's side


def image_grid(images: Sequence[Image.Image], columns: int, tile_size: int = 64) -> Image.Image:
    """
    Images of one size, row by row, with a gray line around each; the last row is filled up with black.

    Args:
        images (`Sequence[PIL.Image.Image]`): at least one; all of one size and mode.
        columns (`int`): images per row.
        tile_size (`int`, *optional*, defaults to 64): pixels that small images are enlarged to, by a whole factor.

    Raises:
        TypeError: something that isn't a PIL image.
        ValueError: no image, images of several sizes or modes, or a number outside 1..10,000.
    """
    if not isinstance(images, Iterable) or isinstance(images, torch.Tensor):
        raise TypeError(f"`images` must be a list of PIL images, got {type(images).__name__}.")
    images = list(images)
    for name, number in (("columns", columns), ("tile_size", tile_size)):
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= _MOST:
            raise ValueError(f"`{name}` must be a whole number in 1..{_MOST}, got {number!r}.")
    if not images:
        raise ValueError("`images` is empty: a grid needs at least one image.")
    for image in images:
        if not isinstance(image, Image.Image):
            raise TypeError(f"`images` must be PIL images, got {type(image).__name__}.")
    kinds = {(image.size, image.mode) for image in images}
    if len(kinds) > 1:
        found = ", ".join(f"{width}x{height} {mode}" for (width, height), mode in sorted(kinds))
        raise ValueError(f"`images` must have one size and mode, got {found}.")
    factor = max(1, tile_size // images[0].width)
    tiles = [image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST) for image in images]
    tiles = [ImageOps.expand(tile, border=2, fill="gray") for tile in tiles]
    rows = math.ceil(len(tiles) / columns)
    tiles += [Image.new(tiles[0].mode, tiles[0].size)] * (rows * columns - len(tiles))
    return make_image_grid(tiles, rows=rows, cols=columns)
