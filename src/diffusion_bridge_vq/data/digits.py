"""
The embedded digits: 1797 handwritten digits of 8 x 8 pixels, so that everything can be tried without a download.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998,
CC BY 4.0. `digits.safetensors` holds the `images` (1797, 8, 8), 0..16, and `labels` (1797,) of scikit-learn's
`load_digits`, in its order.
"""

from importlib.resources import files

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from .decoding import Record

NUM_TEST = 297


def read_digits(split: str) -> tuple[list[Record], Tensor, list[str]]:
    """
    The digits of one split, "train" (1500) or "test" (297), as records, labels (N,) int64 and class names.

    Raises:
        ValueError: there is no such split.
    """
    tensors = safetensors.torch.load((files(__package__) / "digits.safetensors").read_bytes())
    # The source goes from writer to writer, so a shuffle makes the splits alike. RandomState gives the same one in all
    # versions of numpy.
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(tensors["labels"])))
    splits = {"train": order[:-NUM_TEST], "test": order[-NUM_TEST:]}
    if split not in splits:
        raise ValueError(f"'digits' has no split {split!r}; choose one of {', '.join(splits)}")
    rows = splits[split]
    images = (tensors["images"][rows].int() * 255 + 8) // 16  # 0..16 -> 0..255, rounded
    # A binary PGM is a header and the bare pixels: the digits take the way of all other images.
    header = b"P5 8 8 255\n"
    records = [{"bytes": header + image.tobytes(), "path": None} for image in images.to(torch.uint8).numpy()]
    return records, tensors["labels"][rows].long(), [str(digit) for digit in range(10)]
