"""Encoded images as a data set: latents or codes from a folder of shards."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .encoded_shards import CONDITION, MANIFEST_NAME, Encoding, read_shard
from .images import IN_MEMORY_BYTES
from .paths import looks_local


def find_encoded(folder: Path) -> Path:
    """
    A folder of encoded images here, or the copy of one on the Hub, "user/name", that is downloaded to its cache.

    Raises:
        ValueError: there is neither.
        OSError: the Hub can't be reached.
    """
    if looks_local(folder) or len(folder.parts) != 2:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    patterns = [MANIFEST_NAME, "data/*.parquet"]
    try:
        return Path(snapshot_download(str(folder), repo_type="dataset", allow_patterns=patterns))
    except HfHubHTTPError as error:
        raise ValueError(
            f"There is no folder {str(folder)!r}, nor can you read a data set of that name on the Hub: {error}"
        ) from error


class EncodedImages(Dataset[dict[str, Tensor]]):
    """
    Latents or codes of images, from a folder that `encode_images` wrote.

    Item `i` is `{"latents": float32 (d, h, w)}` or `{"codes": int64 (h, w)}`, with "labels" where there are any, and
    "conditions", uint8 (c, s, s), if they are there and asked for: all images in their order, then all mirror images.
    Up to `IN_MEMORY_BYTES` are read at once; a larger set is copied by `datasets` to its cache, which is mapped into
    memory.

    Args:
        folder (`Path`): the folder.
        with_condition (`bool`, *optional*, defaults to `False`): read what a model draws from, too.

    Raises:
        ValueError: the folder isn't complete, or a shard is missing, damaged or one of another encoding, or values
            aren't finite.
    """

    def __init__(self, folder: Path, with_condition: bool = False) -> None:
        self.encoding = encoding = Encoding.read(folder)
        if encoding.rows is None:
            raise ValueError(f"{str(folder)!r} isn't complete; encode with the same command again, which goes on")
        assert encoding.shape is not None and encoding.dtype is not None
        self.shape = encoding.shape
        shards = []
        for part, expected in enumerate(encoding.rows):
            found, file = read_shard(encoding, folder, part), encoding.shard(folder, part)
            rows = 0 if found is None else found.rows
            if rows != expected or (found and (found.shape, found.dtype) != (encoding.shape, encoding.dtype)):
                problem = "is missing" if found is None else f"has {rows} rows, expected {expected}"
                raise ValueError(f"{str(file)!r} {problem}; encode again: what is complete stays")
            shards += [] if found is None else [file]
        extra = sorted({*map(str, folder.glob("data/*.parquet"))} - {*map(str, shards)})
        if extra:
            raise ValueError(f"{extra[0]!r} is none of the {encoding.parts} shards of {str(folder)!r}; remove it")
        self.name: str = encoding.data["name"]
        self.class_names, self.words = encoding.class_names, encoding.words
        self.num_rows = sum(encoding.rows)
        # name on disk -> shape of a row, and type
        self._columns: dict[str, tuple[list[int], str]] = {encoding.what: (encoding.shape, encoding.dtype)}
        if encoding.labels:
            self._columns["label"] = ([], "int64")
        if with_condition and encoding.condition_shape is not None:
            self._columns[CONDITION] = (encoding.condition_shape, "uint8")
        row_bytes = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self._columns.values())
        self._tensors: dict[str, Tensor] | None = None
        self._table: Any = None
        if self.num_rows * row_bytes <= IN_MEMORY_BYTES:
            self._tensors = self._read(shards)
            self._check(self._tensors)
        else:
            from datasets import load_dataset

            files = [str(shard) for shard in shards]
            self._table = load_dataset(
                "parquet", data_files=files, split="train", columns=list(self._columns)
            ).with_format("arrow")

    def _read(self, shards: list[Path]) -> dict[str, Tensor]:
        """All rows of all columns."""
        import pyarrow.parquet as pq

        arrays = {name: np.empty((self.num_rows, *shape), dtype) for name, (shape, dtype) in self._columns.items()}
        start = 0
        for shard in shards:
            table = pq.read_table(shard, columns=list(self._columns))
            rows = slice(start, start + len(table))
            for name, array in arrays.items():
                array[rows] = self._array(table, name)
            start = rows.stop
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _array(self, table: Any, name: str) -> np.ndarray:
        shape, _ = self._columns[name]
        column = table.column(name)
        if shape:
            column = column.combine_chunks().flatten()
        return column.to_numpy().reshape(len(table), *shape)

    def _check(self, columns: dict[str, Tensor]) -> None:
        values = columns[self.encoding.what]
        if values.is_floating_point() and not bool(values.isfinite().all()):
            raise ValueError(f"the latents of {self.name} aren't all finite numbers; encode the images again")
        if "label" in columns and self.class_names is not None and len(values):
            labels, least = columns["label"], -1 if self.words is None else 0  # -1 is none, as in `datasets`
            if labels.min() < least or labels.max() >= len(self.class_names):
                raise ValueError(
                    f"the labels of {self.name} must lie in {least}..{len(self.class_names) - 1}, got "
                    f"{labels.min()}..{labels.max()}; encode the images again"
                )

    @property
    def num_classes(self) -> int | None:
        """The number of classes; None without labels, or where they are bare integers."""
        return None if self.class_names is None else len(self.class_names)

    @property
    def in_memory(self) -> bool:
        return self._tensors is not None

    @property
    def num_images(self) -> int:
        """Without mirror images."""
        return self.num_rows // 2 if self.encoding.mirrored else self.num_rows

    @property
    def image_labels(self) -> Tensor | None:
        """The class of each image, (num_images,) int64; None without labels."""
        if "label" not in self._columns:
            return None
        step = 2 if self.encoding.mirrored else 1  # a mirror image follows its image
        if self._tensors is not None:
            return self._tensors["label"][::step]
        return torch.from_numpy(self._array(self._table.select_columns("label")[:], "label")[::step].copy())

    @property
    def fingerprint(self) -> str:
        return self.encoding.fingerprint

    def rows_of(self, images: Sequence[int], mirrored: bool = False) -> list[int]:
        """The indices of items of some images, and then of their mirror images if asked for."""
        return [*images, *(self.num_images + image for image in images)] if mirrored else list(images)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[0] for name, tensor in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """A whole batch by one index operation each."""
        rows = torch.as_tensor(indices)
        if self.encoding.mirrored:  # image and mirror image are neighbors on disk
            rows = torch.where(rows < self.num_images, 2 * rows, 2 * (rows - self.num_images) + 1)
        if self._tensors is not None:
            found = {name: tensor[rows] for name, tensor in self._tensors.items()}
        else:
            table = self._table[rows.tolist()]
            found = {name: torch.from_numpy(self._array(table, name).copy()) for name in self._columns}
            self._check(found)
        values = found[self.encoding.what]
        batch = {self.encoding.what: values.float() if values.is_floating_point() else values.long()}
        if "label" in found:
            batch["labels"] = found["label"].long()
        if CONDITION in found:
            batch["conditions"] = found[CONDITION]
        return batch

    @staticmethod
    def collate(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch of a DataLoader whose dataset is an `EncodedImages` or a Subset of one."""
        return batch
