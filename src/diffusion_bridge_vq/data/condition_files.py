"""Files of pictures that a model draws from. Apart from `conditions`, which the code on the Hub carries."""

import torch

from .conditions import ImageCondition
from .decoding import Record, decode_image, image_size
from .pixels import to_pixels


def read_condition(condition: ImageCondition, record: Record, channels: int, resolution: int) -> torch.Tensor:
    """
    A picture of any size, scaled and cropped as for training -> what is drawn from it: (c, s, s) in [0, 1]. One that
    is smaller than the images is a low resolution itself, and isn't enlarged first.

    Args:
        condition ([`ImageCondition`]): its channels c and its side s.
        record (`Record`): the picture's file.
        channels (`int`), resolution (`int`): of the images that are drawn.

    Raises:
        Exception: see `decode_image`.
    """
    if condition.side < resolution <= min(image_size(record)):
        pixels = torch.from_numpy(decode_image(record, resolution, channels).copy())
        images = condition.derive(to_pixels(pixels[None]))
    else:
        images = to_pixels(torch.from_numpy(decode_image(record, condition.side, condition.channels).copy())[None])
    return images[0].add(1).div(2).clamp(0, 1)
