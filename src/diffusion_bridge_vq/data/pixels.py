"""Forms of pixels: images of any mode -> 8 bits, and uint8 <-> [-1, 1]."""

import numpy as np
import torch
from PIL import Image, ImageOps


def to_eight_bits(image: Image.Image, channels: int) -> Image.Image:
    """
    An image of any mode as the models see it: upright (EXIF), transparent pixels white, 16-bit gray scaled to 8 bits.

    Args:
        channels (`int`): 1 for mode "L", 3 for "RGB".

    Raises:
        ValueError: 32-bit pixels, which have no known range.
        Exception: whatever Pillow raises for a file that it can't read.
    """
    image.load()
    # Pillow holds 16-bit gray as "I;16", or as "I" from PGM. Its own conversion to "L" clips or drops the low byte.
    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if image.mode in ("I", "F") and not wide:
        raise ValueError(f"32-bit pixels (mode {image.mode}) have no known range; save it with 8 or 16 bits")
    image = ImageOps.exif_transpose(image)
    if wide:
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """uint8 in 0..255 -> float32 in [-1, 1]."""
    return images.float().div(127.5).sub(1)


def to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """About [-1, 1] -> uint8 in 0..255, the nearest."""
    return pixels.add(1).mul(127.5).round().clamp(0, 255).byte()
