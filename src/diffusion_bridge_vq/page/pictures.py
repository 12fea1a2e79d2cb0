"""Pictures on their way between the page and the model: PNG files as data URLs."""

import base64
import binascii
import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..data.decoding import decode_image, image_size, reason

MAX_FILE_BYTES = 20 * 1024**2


def to_data_url(image: Image.Image, settings: dict[str, Any] | None = None) -> str:
    """A PNG of the image's own size; `settings` are written into the file as its text "settings"."""
    text = PngInfo()
    if settings:
        text.add_text("settings", json.dumps(settings))
    buffer = BytesIO()
    image.save(buffer, "PNG", pnginfo=text)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def from_data_url(url: Any, side: int, channels: int) -> tuple[Image.Image, tuple[int, int]]:
    """
    An image file, converted as in training (upright, scaled, center-cropped), and the size that the file has.

    Raises:
        ValueError: no data URL, a file that is too large or can't be read, or an image smaller than the model's.
    """
    record = {"bytes": file_of_data_url(url), "path": None}
    with naming_unreadable_files():
        size = image_size(record)
        pixels = decode_image(record, side, channels) if min(size) >= side else None
    if pixels is None:
        raise ValueError(
            f"The picture has {size[0]} x {size[1]} pixels, fewer than the model's {side} x {side}: take a larger one."
        )
    return Image.fromarray(np.ascontiguousarray(pixels[0] if channels == 1 else pixels.transpose(1, 2, 0))), size


def file_of_data_url(url: Any) -> bytes:
    """
    What a data URL holds.

    Raises:
        ValueError: no data URL, or a file that is too large.
    """
    start, _, body = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not start.startswith("data:") or not start.endswith(";base64"):
        raise ValueError("The picture must be a data URL: 'data:image/png;base64,' and the file in base64.")
    if len(body) * 3 // 4 > MAX_FILE_BYTES:
        raise ValueError(f"The picture's file is larger than {MAX_FILE_BYTES // 1024**2} MB: choose a smaller one.")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise ValueError("The picture's data URL isn't base64.") from error


@contextmanager
def naming_unreadable_files() -> Iterator[None]:
    """
    Raises:
        ValueError: a picture that can't be decoded.
    """
    try:
        yield
    except Exception as error:  # Pillow raises many for damaged files
        raise ValueError(f"This file can't be read as a picture: {reason(error)}.") from error
