"""Grids of images, without matplotlib."""

import math
from collections.abc import Sequence

from diffusers.utils import make_image_grid
from PIL import Image, ImageOps


def image_grid(images: Sequence[Image.Image], columns: int, tile_size: int = 64) -> Image.Image:
    """
    Images of one size, row by row, with a gray line around each; the last row is filled up with black.

    Args:
        images (`Sequence[PIL.Image.Image]`): at least one.
        columns (`int`): images per row.
        tile_size (`int`): pixels that small images are enlarged to, by a whole factor.
    """
    factor = max(1, tile_size // images[0].width)
    tiles = [image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST) for image in images]
    tiles = [ImageOps.expand(tile, border=2, fill="gray") for tile in tiles]
    rows = math.ceil(len(tiles) / columns)
    tiles += [Image.new(tiles[0].mode, tiles[0].size)] * (rows * columns - len(tiles))
    return make_image_grid(tiles, rows=rows, cols=columns)
