"""A source of noise for each image, so that an image depends neither on its batch nor on the process that draws it."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import SupportsIndex

import torch

Generators = torch.Generator | list[torch.Generator] | None

_SEEDS = 2**32  # torch's generator of the CPU looks at 32 bits of its seed


def generators_for(seed: int, numbers: Iterable[int]) -> list[torch.Generator]:
    """
    One generator of the CPU for each image of a set; pipelines take such a list, on any device.

    Images of one set have different seeds, one after the other. A hash of `seed` and number would give two of 50,000
    images the same noise in one of four sets.

    Args:
        seed (`int`): of the set.
        numbers (`Iterable[int]`): of the images, 0 to 2^32 - 1.

    Raises:
        TypeError: something else than whole numbers.
    """
    if not isinstance(numbers, Iterable) or isinstance(numbers, (str, torch.Tensor)):
        raise TypeError(f"`numbers` must be a list or range of whole numbers, got {numbers!r}.")
    numbers = list(numbers)
    for number in (seed, *numbers):
        if not isinstance(number, SupportsIndex) or isinstance(number, bool):
            raise TypeError(f"`seed` and `numbers` must be whole numbers, got {number!r}.")
    first = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "big")
    return [torch.Generator().manual_seed((first + int(number)) % _SEEDS) for number in numbers]


def split_generators(generator: Generators, count: int, batch_size: int) -> Iterator[Generators]:
    """What draws each batch of `count` images: its part of a list, or the same generator each time."""
    for start in range(0, count, batch_size):
        yield generator[start : start + batch_size] if isinstance(generator, list) else generator
