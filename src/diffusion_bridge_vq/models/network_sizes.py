"""What the config of a prior's network says of its latents and its classes."""

from collections.abc import Sequence
from typing import Any


def latent_sides(sample_size: int | Sequence[int]) -> tuple[int, int]:
    """`sample_size` of a config -> height and width of the latents."""
    return (sample_size, sample_size) if isinstance(sample_size, int) else (sample_size[0], sample_size[1])


def count_classes(network: Any) -> int | None:
    """The classes of a U-Net or a PixelCNN, without the null class, which is the last; None if it has none."""
    num_embeds = network.config.num_class_embeds
    return None if num_embeds is None else num_embeds - 1
