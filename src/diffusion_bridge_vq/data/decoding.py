"""Image files and encoded bytes, decoded to square uint8 arrays: the end that all sources of images share."""

import os
import stat
import struct
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from .pixels import to_eight_bits

# {"bytes": the encoded image or None, "path": the file or None}, as `datasets.Image(decode=False)` gives it. The path
# is read only where there are no bytes; otherwise it is just a name.
Record: TypeAlias = dict[str, Any]
Result = TypeVar("Result")

# Longer images are cropped to this ratio of the sides before they are scaled: the rest would only take memory.
MAX_ASPECT = 4
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class BrokenImageError(ValueError):
    """An image can't be decoded. The message says which one, and why."""  # only that comes through from a worker


def decode_image(record: Record | None, resolution: int, channels: int) -> np.ndarray:
    """
    Decode one image, turn it upright (EXIF), scale its short side to `resolution` and crop its center. The first frame
    of an animation is taken.

    Returns:
        `np.ndarray`: (C, resolution, resolution), uint8 in 0..255. Transparent pixels become white, 16-bit gray is
        scaled to 8 bits.

    Raises:
        Exception: whatever Pillow raises for a file that it can't read; ValueError where there is no image, or where
            its 32-bit pixels have no known range.
    """
    # Before resizing: palettes and bilevel images can't be interpolated.
    image = _read(record, lambda file: to_eight_bits(file, channels))
    width, height = image.size
    short = min(width, height)
    if max(width, height) > MAX_ASPECT * short:
        new_width, new_height = min(width, MAX_ASPECT * short), min(height, MAX_ASPECT * short)
        left, top = (width - new_width) // 2, (height - new_height) // 2
        image = image.crop((left, top, left + new_width, top + new_height))
        width, height = image.size
    if short != resolution:
        width, height = round(width * resolution / short), round(height * resolution / short)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - resolution) // 2, (height - resolution) // 2
    # Not torch from here: its calls release the interpreter lock, and on small images threads would contend for it.
    pixels = np.asarray(image)[top : top + resolution, left : left + resolution]  # H W, or H W C
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def image_size(record: Record | None) -> tuple[int, int]:
    """
    Two sides of an image, in pixels: width and height, or the other way round where `decode_image` turns it.

    Raises:
        Exception: as `decode_image`.
    """
    return _read(record, lambda file: file.size)


@cache
def image_suffixes() -> set[str]:
    """Those of the files that Pillow can open, in lower case."""
    Image.init()
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def reason(error: Exception) -> str:
    """Why an image can't be decoded, for a message."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow knows"  # its own message gives the address of a BytesIO
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _read(record: Record | None, read: Callable[[Image.Image], Result]) -> Result:
    """What `read` makes of the opened image."""
    if record is None or (record["bytes"] is None and record["path"] is None):
        raise ValueError("no image data")
    try:
        return _open(record["bytes"], record["path"], read)
    except ValueError as error:
        if "text" not in str(error).lower():
            raise
        # Pillow refuses PNG files with long texts or color profiles, which aren't looked at here.
        data = Path(record["path"]).read_bytes() if record["bytes"] is None else record["bytes"]
        return _open(_without_text(data), None, read)


def _open(data: bytes | None, path: str | None, read: Callable[[Image.Image], Result]) -> Result:
    if data is None and not stat.S_ISREG(os.stat(path or "").st_mode):  # opening a named pipe would wait for ever
        raise ValueError("not a regular file")
    with Image.open((path or "") if data is None else BytesIO(data)) as file:
        return read(file)


def _without_text(data: bytes) -> bytes:
    """A PNG file without its texts and color profile."""
    if not data.startswith(PNG_SIGNATURE):
        return data
    kept, start = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + length + 12  # with the length, the kind and a checksum
        if kind not in (b"iCCP", b"tEXt", b"zTXt", b"iTXt"):
            kept.append(data[start:end])
        start = end
    return b"".join(kept)
