"""Outputs are checked before the work, so that no result is lost."""

import io
import math
import os
import tempfile
from pathlib import Path

from PIL import Image

_TILE = 64  # pixels; a few formats are for small pictures, or none below some size
_LARGEST_SIDE = 65_535
_MOST_PIXELS = {"GIF": 65_535, "ICO": 256, "JPEG": 65_500, "WEBP": 16_383}  # a side, by Pillow's name of the format


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
    Before the work: can a picture be written to `path`? Nothing stays behind.

    Raises:
        ValueError: a folder, a name without the ending of a picture or too long, a format that can't hold colors, or
            as in [`check_output_folder`].
    """
    format = Image.registered_extensions().get(path.suffix.lower())
    if os.path.isdir(path):  # False where the name is too long for a path
        raise ValueError(f"{path} is a folder: give the name of a picture in it, such as {path / 'samples.png'}.")
    if format not in Image.SAVE:
        raise ValueError(f"{path} needs the ending of a picture, such as {path.stem or 'samples'}.png.")
    try:
        Image.new("RGB", (_TILE, _TILE)).save(io.BytesIO(), format)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be written as {format} ({error}): take {path.stem}.png.") from error
    check_output_folder(path.parent)
    try:
        with tempfile.TemporaryDirectory() as inside:
            (Path(inside) / path.name).touch()
    except OSError as error:
        raise ValueError(f"Nothing can be written to {path}: {error.strerror}. Give another output.") from error


def check_grid(path: Path, images: int, side: int) -> None:
    """
    Before the work: can a square grid of so many images be written to `path`, and opened again?

    Args:
        path (`Path`): of the picture.
        images (`int`): their number.
        side (`int`): pixels of one, with the line around it.

    Raises:
        ValueError: the grid is larger than the format, or than what Pillow opens without a warning.
    """
    pixels = math.ceil(math.sqrt(images)) * side
    format = Image.registered_extensions()[path.suffix.lower()]
    most = min(_MOST_PIXELS.get(format, _LARGEST_SIDE), math.isqrt(Image.MAX_IMAGE_PIXELS or _LARGEST_SIDE**2))
    if pixels > most:
        raise ValueError(
            f"A grid of {images:,} images would have {pixels:,} pixels a side, and {format} takes {most:,} here: draw "
            "fewer, take a smaller --tile-size, or give --output-dir for a file per image."
        )
