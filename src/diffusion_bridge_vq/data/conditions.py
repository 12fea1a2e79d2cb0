"""Images that a model draws from: a column of the data set, or what is made of each image itself."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F

from .pixels import to_bytes, to_pixels

_COLUMN, _LOW_RESOLUTION = "column:", "low-resolution:"
# Of red, green and blue in 2^-16, as in Pillow's mode "L" (ITU-R 601).
_LUMA = (19595, 38470, 7471)


@dataclass(frozen=True)
class ImageCondition:
    """
    What a model draws from, besides noise and classes. Made by [`ImageCondition.parse`].

    Args:
        name (`str`): "gray", "low-resolution:SIDE" or "column:NAME".
        channels (`int`): of the condition, 1 or 3.
        side (`int`): height and width of the condition, in pixels.
    """

    name: str
    channels: int
    side: int

    @classmethod
    def parse(cls, name: str, channels: int, resolution: int) -> Self:
        """
        Args:
            name (`str`): "gray", the image without its color; "low-resolution:8", its means over squares, 8 x 8; or
                "column:NAME", another image of the same size, from a column of the data set.
            channels (`int`), resolution (`int`): of the images that are drawn.

        Raises:
            ValueError: another name, or one that doesn't fit the images.
        """
        if not isinstance(name, str) or not re.fullmatch(r"gray|low-resolution:[1-9]\d{0,4}|column:.+", name):
            raise ValueError(f"`condition` must be gray, low-resolution:SIDE or column:NAME, got {name!r}.")
        if name.startswith(_COLUMN):
            return cls(name, channels, resolution)
        if name == "gray":
            if channels == 1:
                raise ValueError("`condition` 'gray' of gray images is the image itself: take another one.")
            return cls(name, 1, resolution)
        side = int(name.removeprefix(_LOW_RESOLUTION))
        if side >= resolution or resolution % side:
            raise ValueError(
                f"`condition` {name!r}: the side must be less than that of the images, {resolution}, and divide it."
            )
        return cls(name, channels, side)

    @property
    def column(self) -> str | None:
        """The column of the data set; None if it is made of the images."""
        return self.name.removeprefix(_COLUMN) if self.name.startswith(_COLUMN) else None

    def derive(self, images: torch.Tensor) -> torch.Tensor:
        """
        The condition of images, rounded to 8 bits: (B, C, H, W) in [-1, 1] -> (B, channels, side, side).

        Raises:
            ValueError: it comes from a column.
        """
        return to_pixels(self._of_bytes(to_bytes(images)))

    def of_items(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """
        The condition of each item of a data set, of its column or made of the image: uint8 (B, channels, side, side).

        Args:
            batch (`Mapping[str, torch.Tensor]`): "images", uint8 (B, C, H, W), or "conditions" of the column.
        """
        return self._of_bytes(batch["images"]) if self.column is None else batch["conditions"]

    def _of_bytes(self, images: torch.Tensor) -> torch.Tensor:
        if self.column is not None:
            raise ValueError(f"`condition` {self.name!r} comes from the data set: the batch must have it.")
        if self.name == "gray":
            weights = torch.tensor(_LUMA, device=images.device).reshape(1, 3, 1, 1)
            return (((images.int() * weights).sum(dim=1, keepdim=True) + 2**15) >> 16).byte()
        means = F.avg_pool2d(images.float(), images.shape[-1] // self.side)  # exact sums, in any order
        return means.round().byte()
