"""Images and masks as calls take them: PIL, numpy, torch or lists of these -> tensors."""

from typing import Any, Literal

import numpy as np
import torch
from diffusers.image_processor import PipelineImageInput
from PIL import Image

from ..data.pixels import to_eight_bits

Background = Literal["white", "black"]

_ROUNDED = {
    "alpha": "mask_image.getchannel('A').point(lambda v: 255 * (v > 127))",
    "pil": "mask_image.convert('L').point(lambda v: 255 * (v > 127))",
    "bytes": "mask_image > 127",
    "numbers": "mask_image > 0.5",
}


def read_images(images: PipelineImageInput, name: str, channels: int, height: int, width: int) -> torch.Tensor:
    """
    -> (B, C, H, W) float32 in [0, 1] on the CPU; transparent pixels are white, as in training.

    Raises:
        ValueError: no images, another size or number of channels, or values outside [0, 1].
    """
    return _read(images, name, channels, height, width, "white")


def read_masks(masks: PipelineImageInput, num_images: int, height: int, width: int) -> torch.Tensor:
    """
    -> (num_images, 1, H, W) bool on the CPU, True where hidden; transparent pixels are known.

    Raises:
        ValueError: no masks, another size or number, other values than black and white, or uint8 values of 0 and 1.
    """
    items = _list_images(masks)
    for item in items:
        _check_white(item)
    batch = _read(items, "mask_image", 1, height, width, "black")
    if not bool(((batch == 0) | (batch == 1)).all()):
        rounded = _ROUNDED[_kind(items[0])]
        raise ValueError(f"`mask_image` must be black (known) and white (hidden) only; round it first: `{rounded}`.")
    for item, mask in zip(items, batch, strict=False):
        if _is_transparent(item) and not bool(mask.any()):
            raise ValueError(
                "`mask_image` is transparent in part and white nowhere, so it hides nothing: draw what is hidden in "
                "white, or give a mask without transparency."
            )
    if len(batch) not in (1, num_images):
        raise ValueError(f"Got {len(batch)} masks for {num_images} images; give one per image or one for all.")
    return batch.expand(num_images, -1, -1, -1) > 0


def _read(
    images: PipelineImageInput, name: str, channels: int, height: int, width: int, background: Background
) -> torch.Tensor:
    items = [_to_tensor(item, channels, background) for item in _list_images(images)]
    if not items or any(item.numel() == 0 for item in items):
        raise ValueError(f"`{name}` is empty: give at least one.")
    for item in items:
        if item.shape[1:] != (channels, height, width):
            size = " x ".join(str(side) for side in item.shape[2:])
            raise ValueError(
                f"`{name}` must be {height} x {width} with {channels} channel(s), as the model takes it (it isn't "
                f"resized here), got {size} with {item.shape[1]}."
            )
    batch = torch.cat(items)
    if not bool(((batch >= 0) & (batch <= 1)).all()):
        raise ValueError(
            f"`{name}` must have values in [0, 1] or be uint8, got {batch.min():.3g} to {batch.max():.3g}."
        )
    return batch


def _list_images(images: Any) -> list[Any]:
    return list(images) if isinstance(images, (list, tuple)) else [images]


def _to_tensor(image: Any, channels: int, background: Background) -> torch.Tensor:
    """One image or a batch, in any of the accepted forms -> (n, C, H, W) float32; uint8 is divided by 255."""
    if isinstance(image, Image.Image):
        image = np.array(to_eight_bits(image, channels, background))
    if isinstance(image, np.ndarray) and 2 <= image.ndim <= 4 and image.dtype.kind in "buif":
        # a copy: tensors can't be read-only
        native = image.astype(image.dtype.newbyteorder("="))
        image = torch.from_numpy(native if image.ndim > 2 else native[..., None]).movedim(-1, -3)
    if not isinstance(image, torch.Tensor) or not 2 <= image.ndim <= 4 or image.is_complex():
        raise ValueError(
            "Images and masks must be PIL images, numpy arrays (H, W, C) or (B, H, W, C), tensors (C, H, W) or "
            f"(B, C, H, W), or a list of them, got {_describe(image)}."
        )
    values = image.detach().cpu().float() / (255 if image.dtype == torch.uint8 else 1)
    return values[(None,) * (4 - image.ndim)]  # (H, W) and (C, H, W) too -> (1, C, H, W)


def _describe(image: Any) -> str:
    shape = getattr(image, "shape", None)
    return type(image).__name__ if shape is None else f"{type(image).__name__} of shape {tuple(shape)}, {image.dtype}"


def _kind(mask: Any) -> str:
    if isinstance(mask, Image.Image):
        return "alpha" if _is_transparent(mask) and "A" in mask.getbands() else "pil"
    return "bytes" if mask.dtype in (torch.uint8, np.uint8) else "numbers"


def _is_transparent(mask: Any) -> bool:
    """Whether it is a picture with pixels that aren't opaque."""
    if not isinstance(mask, Image.Image) or not mask.has_transparency_data:
        return False
    return np.asarray(mask.convert("RGBA"))[..., 3].min() < 255


def _check_white(mask: Any) -> None:
    """Refuses 1 for white where white is the largest number that a pixel can hold."""
    if isinstance(mask, Image.Image):
        counts = mask.mode == "L" or mask.mode.startswith("I")
        values: Any = np.asarray(mask) if counts else None
        remedy = "mask_image.point(lambda v: 255 * v)"
        if mask.mode.startswith("I"):
            remedy = "Image.fromarray(255 * np.uint8(mask_image))"
    elif isinstance(mask, (np.ndarray, torch.Tensor)) and mask.dtype in (torch.uint8, np.uint8):
        values, remedy = mask, "255 * mask_image"
    else:
        return
    if values is not None and 0 not in values.shape and values.max() == 1:
        raise ValueError(
            f"`mask_image` has the value 1, almost black, where white is the largest value of its type: give "
            f"`{remedy}`, or a bool mask."
        )
