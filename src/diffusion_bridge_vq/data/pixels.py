"""Forms of pixels: images of any mode -> 8 bits, and uint8 <-> [-1, 1]."""

import re
from typing import Literal

import numpy as np
import torch
from PIL import ExifTags, Image

# The values of the orientation tag that mean something; 1 is upright.
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_eight_bits(image: Image.Image, channels: int, background: Literal["white", "black"] = "white") -> Image.Image:
    """
    An image of any mode as the models see it: upright (EXIF), transparent pixels white, 16-bit gray scaled to 8 bits.

    Args:
        channels (`int`): 1 for mode "L", 3 for "RGB".
        background (`str`, *optional*, defaults to `"white"`): what transparent pixels become.

    Raises:
        ValueError: 32-bit pixels, which have no known range.
        Exception: whatever Pillow raises for a file that it can't read.
    """
    # How the pixels are stored in the file. Pillow forgets it when it has loaded them.
    tiles = getattr(image, "tile", None)
    stored = tiles[0][3] if tiles and isinstance(tiles[0][3], str) else ""
    image.load()
    # Pillow holds 16-bit gray as "I;16", or as "I" from PGM. Its own conversion to "L" clips or drops the low byte.
    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if image.mode in ("I", "F") and not wide:
        raise ValueError(f"32-bit pixels (mode {image.mode}) have no known range; save it with 8 or 16 bits")
    image = _turn_upright(image)
    if wide:
        return _scale_16_bits(image, background).convert("L" if channels == 1 else "RGB")
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else _with_scaled_transparency(image, stored)
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba)
    if image.mode == "LAB":  # which Pillow converts to RGB only
        image = image.convert("RGB")
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF data say nothing about the pixels
        return image
    if orientation not in _TRANSPOSITIONS:
        return image
    # Not `ImageOps.exif_transpose`: it fails where other EXIF tags can't be written again.
    kept = {name: value for name, value in image.info.items() if not re.search("exif|xmp", str(name))}
    turned = image.transpose(_TRANSPOSITIONS[orientation])
    turned.info = kept
    return turned


def _scale_16_bits(image: Image.Image, background: str) -> Image.Image:
    """16-bit gray -> mode "L", a transparent value -> the background."""
    values = np.asarray(image).astype(np.uint32)
    tags = getattr(image, "tag_v2", {})  # of TIFF
    peak = 4095 if tags.get(ExifTags.Base.BitsPerSample) == (12,) else 65535
    gray = ((values * 255 + peak // 2) // peak).astype(np.uint8)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # 0 is white
        gray = 255 - gray
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255 if background == "white" else 0
    return Image.fromarray(gray)


def _with_scaled_transparency(image: Image.Image, stored: str) -> Image.Image:
    """
    Where Pillow scales the pixels of a PNG file to 8 bits, but not its transparent color: gray of 2 or 4 bits, and RGB
    of 16 bits, whose low bytes are dropped.
    """
    color = image.info.get("transparency")
    if stored in ("L;2", "L;4") and isinstance(color, int):
        color *= {"L;2": 85, "L;4": 17}[stored]
    elif stored == "RGB;16B" and isinstance(color, tuple):
        color = tuple(value >> 8 for value in color)
    else:
        return image
    image = image.copy()
    image.info["transparency"] = color
    return image


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """uint8 in 0..255 -> float32 in [-1, 1]."""
    return images.float().div(127.5).sub(1)


def to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """About [-1, 1] -> uint8 in 0..255, the nearest."""
    return pixels.add(1).mul(127.5).round().clamp(0, 255).byte()
