"""
Encoded images on disk: parquet shards of latents or codes, with a JSON file that says what they are.

`datasets.load_dataset(folder)` reads such a folder, too: its README.md names the shards.
"""

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .images import IN_MEMORY_BYTES, short_hash
from .shards import check_shards

MANIFEST_NAME = "encoding.json"
METADATA_KEY = b"diffusion_bridge_vq"
SHARD = "data/train-{part:05}-of-{parts:05}.parquet"
# Rows of a row group: what is written, and held in memory, at a time.
ROWS_AT_A_TIME = 1024
README = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---

Images encoded by a VQ autoencoder; `encoding.json` says which one, and what the columns hold.
"""


@dataclass(frozen=True)
class Encoding:
    """
    What a folder of encoded images holds: the content of its `encoding.json`.

    Args:
        what (`str`): the column: "latents", z_e before quantization, "codes", or what an objective makes of images.
        precision (`str`): "float16" or "float32", of what isn't whole numbers.
        num_codes (`int`): of the autoencoder.
        mirrored (`bool`): whether the row of each image is followed by one of its mirror image.
        autoencoder (`str`): fingerprint of the weights of its encoder and codebook.
        normalizer (`dict`): "mean" and "variance" of each latent channel before normalization.
        data (`dict`): "name", "split", "fingerprint", "resolution" and "channels" of the images.
        class_names (`list[str]`, *optional*): a name for each class, in the order of the labels.
        labels (`bool`): whether there are labels.
        parts (`int`): the number of shards.
        version (`str`): of the package that encoded.
        rows (`list[int]`, *optional*): of each shard, once all are there.
        shape (`list[int]`, *optional*): of one image, (d, h, w) or (h, w), once all are there.
        dtype (`str`, *optional*): of the column, once all are there.
    """

    what: str
    precision: str
    num_codes: int
    mirrored: bool
    autoencoder: str
    normalizer: dict[str, list[float]]
    data: dict[str, Any]
    class_names: list[str] | None
    labels: bool
    parts: int
    version: str
    rows: list[int] | None = None
    shape: list[int] | None = None
    dtype: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """All that determines the rows: not the name of the data, which differs where a folder was moved."""
        found = ("version", "rows", "shape", "dtype")
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in found}
        return settings | {"data": {name: value for name, value in self.data.items() if name != "name"}}

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over the settings."""
        return short_hash(json.dumps(self.settings, sort_keys=True).encode())

    def shard(self, folder: Path, part: int) -> Path:
        return folder / SHARD.format(part=part, parts=self.parts)

    def write(self, folder: Path) -> None:
        """`encoding.json` and the README, whole or not at all."""
        (folder / "data").mkdir(parents=True, exist_ok=True)
        for name, text in ((MANIFEST_NAME, json.dumps(dataclasses.asdict(self), indent=1)), ("README.md", README)):
            partial = folder / f".{name}.partial"
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, folder / name)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """
        Raises:
            ValueError: there is no `encoding.json`, or it isn't one of this package.
        """
        file = folder / MANIFEST_NAME
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            read = cls(**content)
            valid = read._is_sound()
        except OSError as error:
            raise ValueError(f"{str(folder)!r} holds no encoded images: {file.name} can't be read: {error}") from error
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{str(file)!r} doesn't describe encoded images: {error}") from error
        if not valid:
            raise ValueError(f"{str(file)!r} doesn't describe encoded images")
        return read

    def _is_sound(self) -> bool:
        """Whether a file that anybody can have written has values of the right kinds."""
        numbers = [self.parts, *(self.rows or []), *(self.shape or [])]
        whole = all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers)
        named = isinstance(self.data.get("name"), str) if isinstance(self.data, dict) else False
        classes = self.class_names is None or all(isinstance(name, str) for name in self.class_names)
        complete = self.rows is None or (
            len(self.rows) == self.parts and bool(self.shape) and np.dtype(self.dtype).kind in "fiu"
        )
        return whole and self.parts >= 1 and named and classes and isinstance(self.what, str) and complete

    def difference(self, other: "Encoding") -> str | None:
        """What the first setting is in which two encodings differ, or None."""
        for name, value in self.settings.items():
            found = other.settings[name]
            if value != found and isinstance(value, dict) and isinstance(found, dict):
                keys = [key for key in value | found if value.get(key) != found.get(key)]
                value, found = ({key: one.get(key) for key in keys} for one in (value, found))
            if value != found:
                return f"{name} {found!r}, not {value!r}"
        return None

    def features(self, values: np.ndarray) -> Any:
        """Of `datasets`, for rows `values` (B, ...)."""
        from datasets import ClassLabel, Features, List, Value

        columns: dict[str, Any] = {"key": Value("string")}
        if self.mirrored:
            columns["mirrored"] = Value("bool")
        if self.labels:
            columns["label"] = Value("int64") if self.class_names is None else ClassLabel(names=self.class_names)
        return Features(columns | {self.what: List(Value(str(values.dtype)), length=math.prod(values.shape[1:]))})


def smallest_integer(num_codes: int) -> str:
    """The name of the smallest type for codes 0..num_codes-1 that numpy and torch share."""
    return "uint8" if num_codes <= 2**8 else "uint16" if num_codes <= 2**16 else "int32"


class Shard(NamedTuple):
    """What one shard says of itself."""

    rows: int
    shape: list[int]
    dtype: str


def write_shard(encoding: Encoding, folder: Path, part: int, batches: Iterable[dict[str, Any]]) -> int:
    """
    Write one shard, whole or not at all; none if there is no row.

    Args:
        batches: columns "key" (list of str), `encoding.what` (array (B, ...) of the type to write), "mirrored" (list
            of bool) and "label" (list of int) if the encoding has them.

    Returns:
        `int`: the number of its rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = encoding.shard(folder, part)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        return 0
    values = first[encoding.what]
    own = {"encoding": encoding.fingerprint, "part": part, "shape": values.shape[1:], "dtype": str(values.dtype)}
    schema = encoding.features(values).arrow_schema
    schema = schema.with_metadata({**schema.metadata, METADATA_KEY: json.dumps(own).encode()})
    count, width = 0, math.prod(values.shape[1:])
    waiting: list[pa.RecordBatch] = []
    try:
        with pq.ParquetWriter(partial, schema, compression="none") as writer:
            for batch in itertools.chain([first], iterator):
                flat = pa.array(np.ascontiguousarray(batch[encoding.what]).reshape(-1))
                columns = batch | {encoding.what: pa.FixedSizeListArray.from_arrays(flat, width)}
                arrays = [pa.array(columns[name], schema.field(name).type) for name in schema.names]
                waiting.append(pa.record_batch(arrays, schema=schema))
                count += len(batch["key"])
                if sum(map(len, waiting)) >= ROWS_AT_A_TIME:
                    writer.write_table(pa.Table.from_batches(waiting))
                    waiting = []
            if waiting:
                writer.write_table(pa.Table.from_batches(waiting))
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    return count


def read_shard(encoding: Encoding, folder: Path, part: int) -> Shard | None:
    """
    What the end of a shard says; None if there is no such file.

    Raises:
        ValueError: the file is damaged, or of another part or encoding.
    """
    import pyarrow.parquet as pq

    file = encoding.shard(folder, part)
    if not file.exists():
        return None
    check_shards([file])
    metadata = pq.read_metadata(file)
    own = json.loads((metadata.metadata or {}).get(METADATA_KEY, b"{}"))
    if own.get("encoding") != encoding.fingerprint or own.get("part") != part:
        raise ValueError(
            f"{str(file)!r} is part {own.get('part')} of the encoding {own.get('encoding')}, expected part {part} of "
            f"{encoding.fingerprint}; remove it, and encode again: what is complete stays"
        )
    return Shard(metadata.num_rows, own["shape"], own["dtype"])


def find_encoded(folder: Path) -> Path:
    """
    A folder of encoded images here, or the copy of one on the Hub, "user/name", that is downloaded to its cache.

    Raises:
        ValueError: there is neither.
        OSError: the Hub can't be reached.
    """
    if folder.exists() or folder.is_absolute() or len(folder.parts) != 2:
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

    Item `i` is `{"latents": float32 (d, h, w)}` or `{"codes": int64 (h, w)}`, with "labels" where there are any: all
    images in their order, then all mirror images. Up to `IN_MEMORY_BYTES` are read at once; a larger set is copied by
    `datasets` to its cache, which is mapped into memory.

    Args:
        folder (`Path`): the folder.

    Raises:
        ValueError: the folder isn't complete, or a shard is missing, damaged or one of another encoding, or values
            aren't finite.
    """

    def __init__(self, folder: Path) -> None:
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
        self.class_names = encoding.class_names
        self.num_rows = sum(encoding.rows)
        size = self.num_rows * math.prod(encoding.shape) * np.dtype(encoding.dtype).itemsize
        self._values: Tensor | None = None
        self._labels: Tensor | None = None
        self._table: Any = None
        columns = [encoding.what, *(["label"] if encoding.labels else [])]
        if size <= IN_MEMORY_BYTES:
            self._read(shards, columns)
        else:
            from datasets import load_dataset

            files = [str(shard) for shard in shards]
            self._table = load_dataset("parquet", data_files=files, split="train", columns=columns).with_format(
                "arrow"
            )

    def _read(self, shards: list[Path], columns: list[str]) -> None:
        import pyarrow.parquet as pq

        values = np.empty((self.num_rows, *self.shape), self.encoding.dtype)
        labels = np.empty(self.num_rows, np.int64) if self.encoding.labels else None
        start = 0
        for shard in shards:
            table = pq.read_table(shard, columns=columns)
            rows = slice(start, start + len(table))
            values[rows] = self._array(table)
            if labels is not None:
                labels[rows] = table.column("label").to_numpy()
            start = rows.stop
        self._values = torch.from_numpy(values)
        self._labels = None if labels is None else torch.from_numpy(labels)
        self._check(self._values)

    def _array(self, table: Any) -> np.ndarray:
        column = table.column(self.encoding.what).combine_chunks()
        return column.flatten().to_numpy().reshape(len(table), *self.shape)

    def _check(self, values: Tensor) -> None:
        if values.is_floating_point() and not bool(values.isfinite().all()):
            raise ValueError(f"the latents of {self.name} aren't all finite numbers; encode the images again")

    @property
    def num_classes(self) -> int | None:
        """The number of classes; None without labels, or where they are bare integers."""
        return None if self.class_names is None else len(self.class_names)

    @property
    def in_memory(self) -> bool:
        return self._values is not None

    @property
    def num_images(self) -> int:
        """Without mirror images."""
        return self.num_rows // 2 if self.encoding.mirrored else self.num_rows

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
        if self._values is not None:
            values = self._values[rows]
            labels = None if self._labels is None else self._labels[rows]
        else:
            table = self._table[rows.tolist()]
            values = torch.from_numpy(self._array(table).copy())
            labels = torch.from_numpy(table.column("label").to_numpy().copy()) if self.encoding.labels else None
            self._check(values)
        values = values.float() if values.is_floating_point() else values.long()
        return {self.encoding.what: values} | ({} if labels is None else {"labels": labels.long()})

    @staticmethod
    def collate(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch of a DataLoader whose dataset is an `EncodedImages` or a Subset of one."""
        return batch
