"""
Image data: every source ends in square uint8 images, all of one size, with integer class labels where there are any.

- `load_images` reads the embedded digits, a local folder (parquet files, tar shards, images, or CSV lists next to an
  `images` folder) or a dataset of the Hub.
- `BrokenImageError` is raised for an image that can't be decoded.
- `ImageDataset` is the map-style torch dataset that it returns.
- `ImageCondition` is another image that a model draws from: a column, or made of each image.
- `stream_images` reads parquet files, tar shards or a dataset of the Hub from beginning to end, without a copy;
  `StreamedImages` is the iterable torch dataset that it returns.
"""

from .conditions import ImageCondition
from .decoding import BrokenImageError
from .images import ImageDataset
from .sources import load_images
from .streaming import StreamedImages, stream_images

__all__ = ["BrokenImageError", "ImageCondition", "ImageDataset", "StreamedImages", "load_images", "stream_images"]
