"""
The format of encoded images on disk: parquet shards of latents or codes, with a JSON file that says what they are.

`datasets.load_dataset(folder)` reads such a folder, too: its README.md names the shards.
"""

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from .conditions import ImageCondition
from .images import short_hash
from .paths import suggest_path
from .shards import check_shards

MANIFEST_NAME = "encoding.json"
METADATA_KEY = b"diffusion_bridge_vq"
CONDITION = "condition"
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
        condition (`str`, *optional*): the name of an [`ImageCondition`], which a column "condition" holds, uint8.
        words (`list[str]`, *optional*): the classes of the model, where these are words and `class_names` are texts.
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
    condition: str | None = None
    words: list[str] | None = None
    rows: list[int] | None = None
    shape: list[int] | None = None
    dtype: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """All that determines the rows: not the name of the data, which differs where a folder was moved."""
        found = ("version", "rows", "shape", "dtype")
        settings = {name: value for name, value in self.to_json().items() if name not in found}
        return settings | {"data": {name: value for name, value in self.data.items() if name != "name"}}

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over the settings."""
        return short_hash(json.dumps(self.settings, sort_keys=True).encode())

    @property
    def condition_shape(self) -> list[int] | None:
        """Of the condition of one image, (c, s, s); None without one."""
        if self.condition is None:
            return None
        condition = ImageCondition.parse(self.condition, self.data["channels"], self.data["resolution"])
        return [condition.channels, condition.side, condition.side]

    def to_json(self) -> dict[str, Any]:
        """The content of `encoding.json`; without condition and words it is that of versions that knew none."""
        fields = dataclasses.asdict(self)
        added = ("condition", "words")
        return {name: value for name, value in fields.items() if name not in added or value is not None}

    def shard(self, folder: Path, part: int) -> Path:
        return folder / SHARD.format(part=part, parts=self.parts)

    def write(self, folder: Path) -> None:
        """`encoding.json` and the README, whole or not at all."""
        (folder / "data").mkdir(parents=True, exist_ok=True)
        for name, text in ((MANIFEST_NAME, json.dumps(self.to_json(), indent=1)), ("README.md", README)):
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
            raise ValueError(
                f"{str(folder)!r} holds no encoded images: {file.name} can't be read: {error}. "
                f"{suggest_path(folder, MANIFEST_NAME)}".rstrip()
            ) from error
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{str(file)!r} doesn't describe encoded images: {error}") from error
        if not valid:
            raise ValueError(f"{str(file)!r} doesn't describe encoded images")
        return read

    def _is_sound(self) -> bool:
        """Whether a file that anybody can have written has values of the right kinds."""
        numbers = [self.parts, *(self.rows or []), *(side - 1 for side in self.shape or [])]
        whole = all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers)
        kinds = isinstance(self.mirrored, bool) and isinstance(self.labels, bool) and isinstance(self.normalizer, dict)
        column = isinstance(self.what, str) and self.what not in ("key", "mirrored", "label", CONDITION)
        named = isinstance(self.data.get("name"), str) if isinstance(self.data, dict) else False
        classes = all(
            names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names))
            for names in (self.class_names, self.words)
        )
        texts = self.words is None or bool(
            self.words and len(set(self.words)) == len(self.words) and self.class_names and self.labels
        )
        complete = self.rows is None or (
            len(self.rows) == self.parts and bool(self.shape) and np.dtype(self.dtype).kind in "fiu"
        )
        sized = named and all(type(self.data.get(n)) is int and self.data[n] > 0 for n in ("channels", "resolution"))
        drawn = self.condition is None or (sized and self.condition_shape is not None)  # or a ValueError
        return whole and self.parts >= 1 and named and classes and texts and kinds and column and complete and drawn

    def difference(self, other: "Encoding") -> str | None:
        """What the first setting is in which two encodings differ, or None."""
        mine, others = self.settings, other.settings
        for name in mine | others:
            value, found = mine.get(name), others.get(name)
            if value != found and isinstance(value, dict) and isinstance(found, dict):
                keys = [key for key in value | found if value.get(key) != found.get(key)]
                value, found = ({key: one.get(key) for key in keys} for one in (value, found))
            if value != found:
                return _describe_difference(name, found, value)
        return None

    def features(self, values: np.ndarray) -> Any:
        """Of `datasets`, for rows `values` (B, ...)."""
        from datasets import ClassLabel, Features, List, Value

        columns: dict[str, Any] = {"key": Value("string")}
        if self.mirrored:
            columns["mirrored"] = Value("bool")
        if self.labels:
            # every shard repeats these names, and of texts there may be thousands: those are in `encoding.json` alone
            named = self.class_names is not None and self.words is None
            columns["label"] = ClassLabel(names=self.class_names) if named else Value("int64")
        columns[self.what] = List(Value(str(values.dtype)), length=math.prod(values.shape[1:]))
        if self.condition_shape is not None:
            columns[CONDITION] = List(Value("uint8"), length=math.prod(self.condition_shape))
        return Features(columns)


def _describe_difference(name: str, found: Any, value: Any) -> str:
    """Of lists, which may have thousands of entries, the first entry that differs."""
    if isinstance(found, list) and isinstance(value, list):
        if len(found) != len(value):
            return f"{len(found)} {name}, not {len(value)}"
        number = next(i for i, (one, other) in enumerate(zip(found, value, strict=True)) if one != other)
        return f"{name}[{number}] {found[number]!r}, not {value[number]!r}"
    return f"{name} {found!r}, not {value!r}"


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
        batches: columns "key" (list of str), `encoding.what` (array (B, ...) of the type to write), and if the
            encoding has them "mirrored" (list of bool), "label" (list of int) and "condition" (uint8 array
            (B, c, s, s)).

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
    count = 0
    waiting: list[pa.RecordBatch] = []
    try:
        with pq.ParquetWriter(partial, schema, compression="none") as writer:
            for batch in itertools.chain([first], iterator):
                arrays = [_as_column(batch[field.name], field.type) for field in schema]
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


def _as_column(values: Any, kind: Any) -> Any:
    """Of pyarrow and type `kind`: an array (B, ...) becomes flat rows."""
    import pyarrow as pa

    if not isinstance(values, np.ndarray):
        return pa.array(values, kind)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, kind.list_size).cast(kind)


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
    try:
        metadata = pq.read_metadata(file)
        own = dict(json.loads(metadata.metadata[METADATA_KEY]))
        shard = Shard(metadata.num_rows, own["shape"], own["dtype"])
        columns = encoding.features(np.empty((0, *shard.shape), shard.dtype)).arrow_schema.remove_metadata()
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{str(file)!r} isn't a shard of encoded images; remove it, and encode again") from error
    if own.get("encoding") != encoding.fingerprint or own.get("part") != part:
        raise ValueError(
            f"{str(file)!r} is part {own.get('part')} of the encoding {own.get('encoding')}, expected part {part} of "
            f"{encoding.fingerprint}; remove it, and encode again: what is complete stays"
        )
    found = metadata.schema.to_arrow_schema().remove_metadata()
    if found != columns:
        raise ValueError(
            f"{str(file)!r} has the columns {_describe_columns(found)}, expected {_describe_columns(columns)}; remove "
            "it, and encode again: what is complete stays"
        )
    return shard


def _describe_columns(schema: Any) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
