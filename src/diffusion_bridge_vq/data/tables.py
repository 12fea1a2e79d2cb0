"""Tables of `datasets`, in its cache or streamed: their files, their column of images, and their labels."""

import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from .paths import HUB_PREFIX, suggest_path
from .shards import check_shards, find_shards, parquet_rows

if TYPE_CHECKING:
    import datasets

Table: TypeAlias = "datasets.Dataset | datasets.IterableDataset"

# With fewer files, their row groups are the shards of a stream, so that workers can share them.
FEW_SHARDS = 16
# Files that are open at a time to read their labels.
MAX_OPEN = 16
# Modules whose functions read a parquet file that they call `file`. The errors of pyarrow don't name it.
_PARQUET_READERS = {"datasets.packaged_modules.parquet.parquet", f"{__package__}.row_groups", __name__}


def load_table(dataset: str, split: str) -> "datasets.Dataset":
    """
    One split of a dataset of the Hub, or of a folder of parquet files or tar shards, in the cache of `datasets`.

    Raises:
        ValueError: no such dataset or split, or a file that is no parquet or tar.
        ConnectionError: the Hub can't be reached.
    """
    from datasets import load_dataset

    with _explained(dataset, split):
        check_shards(find_shards(Path(dataset)) if os.path.isdir(dataset) else [])
        return load_dataset(dataset.removeprefix(HUB_PREFIX), split=split)


def stream_table(dataset: str, split: str) -> "tuple[datasets.IterableDataset, list[Any], list[str]]":
    """
    One split as `load_table` takes it, not copied, with its images not decoded.

    Returns:
        The rows; for each file of the dataset its name and size, on the Hub the hash of its content, and for a local
        parquet file its numbers of rows instead; and the paths or addresses of the files of the split.

    Raises:
        ValueError, ConnectionError: as `load_table`.
    """
    from datasets import load_dataset_builder

    with _explained(dataset, split):
        check_shards(find_shards(Path(dataset)) if os.path.isdir(dataset) else [])
        builder = load_dataset_builder(dataset.removeprefix(HUB_PREFIX))
        stream = builder.as_streaming_dataset(split=split)
        if stream.features is None:
            raise ValueError("it doesn't say which columns it has; load it without streaming")
        stream = stream.decode(False)  # as in `ImageColumn`; a cast isn't enough for image files of the Hub
        of_splits = {str(name): list(files) for name, files in builder.config.data_files.items()}
        described = _describe_files([file for files in of_splits.values() for file in files])
        if stream.num_shards < FEW_SHARDS and hasattr(stream, "reshard"):  # not in older ones
            stream = stream.reshard()
    return stream, described, of_splits.get(split, [])


def _describe_files(files: list[str]) -> list[Any]:
    from fsspec.core import url_to_fs
    from huggingface_hub import HfFileSystem

    listed: dict[str, dict[str, Any]] = {}
    described = []
    for system, path in map(url_to_fs, files):
        folder, _, name = path.rpartition("/")
        if isinstance(system, HfFileSystem) and path not in listed:  # its `info` looks through the folder each time
            listed |= {entry["name"]: entry for entry in cast(list[Any], system.ls(folder, detail=True))}
        info = listed.get(path) or system.info(path)
        if os.path.isfile(path) and name.endswith(".parquet"):
            # The order of the images follows from these: a broken image can be replaced, and a run resumed.
            described.append((name, parquet_rows(path), None))
        else:
            described.append((name, info["size"], info.get("blob_id")))
    return described


@contextmanager
def _explained(dataset: str, split: str) -> Iterator[None]:
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except (HTTPError, ConnectionError) as error:
        raise ConnectionError(
            f"{dataset!r} can't be read from the Hub: {first_line(error)}. Try again when it answers. If you mean a "
            f"folder: there is none of this name. {suggest_path(dataset)}".rstrip()
        ) from error
    except (ValueError, FileNotFoundError, tarfile.TarError, DatasetGenerationError) as error:
        reason = str(error)
        if isinstance(error, DatasetGenerationError) and error.__cause__:
            reason = f"{first_line(error.__cause__)}{in_file(error.__cause__)}"
        if "corresponds to no data" in reason:
            reason = "it is empty; choose another split or add images to it"
        if "Must pass at least one table" in reason:
            reason = "its first tar file holds no files; remove it"
        if "invalid literal for int()" in reason:
            reason = f"a member .cls must hold the number of a class, such as 3, not a name ({reason})"
        if "WebDataset format" in reason:
            reason += " Give each sample the same kinds of files, such as 0001.jpg and 0001.cls."
        if isinstance(error, DatasetNotFoundError) and not dataset.startswith(HUB_PREFIX):
            reason += f" There is no folder of this name either. {suggest_path(dataset)}"
        raise ValueError(f"can't load split {split!r} of {dataset!r}: {reason.rstrip()}") from error


def first_line(error: BaseException) -> str:
    """Of the message of an error, or of what caused it: an HTTP status with its address, or a broken connection."""
    return (str(error.__cause__ or error) or type(error).__name__).splitlines()[0]


def in_file(error: BaseException) -> str:
    """ " (in FILE)", the parquet file that was read when the error came up, where its message doesn't say so."""
    trace, file = error.__traceback__, ""
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") in _PARQUET_READERS:
            file = str(trace.tb_frame.f_locals.get("file", file))
        trace = trace.tb_next
    return f" (in {file})" if file and os.path.basename(file) not in first_line(error) else ""


class ImageColumn:
    """The images of a table as records; the other columns stay unread."""

    def __init__(self, table: "datasets.Dataset", column: str) -> None:
        from datasets import Image

        # `datasets` would decode to images; we decode ourselves, so that a broken one can be named.
        self._table = table.select_columns([column]).cast_column(column, Image(decode=False))
        self._column = column

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: Any, /) -> Any:
        return self._table[index][self._column]


def _columns(table: Table) -> str:
    return ", ".join(f"{name} ({_kind(feature)})" for name, feature in table.features.items())


def _kind(feature: Any) -> str:
    return getattr(feature, "dtype", "") if type(feature).__name__ == "Value" else type(feature).__name__


def find_image_column(
    table: Table, image_column: str | None, option: str = "image_column", besides: str | None = None
) -> str:
    """The name of the only column of images besides one, or of the column that was asked for by an option."""
    from datasets import Image

    found = [name for name, feature in table.features.items() if isinstance(feature, Image)]
    if image_column is not None:
        if image_column not in found:
            raise ValueError(f"{option} {image_column!r} holds no images; the columns are {_columns(table)}")
        if image_column == besides:
            raise ValueError(f"image_column and condition_column are both {besides!r}: take another column")
        return image_column
    found = [name for name in found if name != besides]
    if not found:
        other = "other " if besides else ""
        raise ValueError(
            f"no {other}column holds images: the columns are {_columns(table)}; pass as image_column one of type Image"
        )
    if len(found) > 1:
        raise ValueError(f"several columns hold images: {', '.join(found)}; pass one of them as image_column")
    return found[0]


def find_label_column(table: Table, label_column: str | None) -> tuple[list[str], Any]:
    """
    The column of classes, integers or strings as its name and the names of the fields inside, and its feature; by
    default the only ClassLabel column, or ([], None).
    """
    from datasets import ClassLabel

    if label_column is None:
        found = [name for name, feature in table.features.items() if isinstance(feature, ClassLabel)]
        return (found, table.features[found[0]]) if len(found) == 1 else ([], None)
    if not isinstance(label_column, str):
        raise TypeError(f"label_column must be the name of a column, got {label_column!r}")
    path = [label_column] if label_column in table.features else label_column.split(".")
    feature: Any = table.features
    for name in path:
        if not isinstance(feature, dict) or name not in feature:
            raise ValueError(f"there is no label_column {label_column!r}; the columns are {_columns(table)}")
        feature = feature[name]
    if not isinstance(feature, ClassLabel) and not _kind(feature).startswith(
        ("int", "uint", "string", "large_string")
    ):
        raise ValueError(
            f"label_column {label_column!r} has type {_kind(feature)}; pass a column of classes, integers or strings: "
            f"{_columns(table)}"
        )
    return path, feature


def read_labels(table: "datasets.Dataset", label_column: str | None) -> tuple[Tensor | None, list[str] | None]:
    """The class of each row, (N,) int64, and the names of the classes; None without labels."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import ClassLabel

    if label_column is not None and "," in label_column and label_column not in table.features:
        return _join_labels(table, [name.strip() for name in label_column.split(",")])
    path, feature = find_label_column(table, label_column)
    if not path:
        return None, None
    values = table.select_columns(path[:1]).with_format("arrow")[:][path[0]]  # not Python's objects: 10 million rows
    if len(path) > 1:
        values = pc.struct_field(values, path[1:])
    named = isinstance(feature, ClassLabel)
    missing = values.null_count + ((pc.sum(pc.less(values, 0)).as_py() or 0) if named else 0)
    if missing == len(values) and label_column is None:
        return None, None  # a test split whose labels are kept back, -1 throughout
    column = ".".join(path)
    if missing:
        raise ValueError(f"{missing} of {len(values)} rows have no label in {column!r}; complete or remove them")
    if named:
        names = list(feature.names)
        largest = pc.max(values).as_py()
        if largest >= len(names):
            raise ValueError(
                f"column {column!r} has the label {largest}, but names for {len(names)} classes only, 0 to "
                f"{len(names) - 1}; correct the labels or the names"
            )
    else:
        classes = sorted(pc.unique(values).to_pylist())
        values = pc.index_in(values, value_set=pa.array(classes, values.type))
        names = [str(value) for value in classes]
    return torch.from_numpy(values.to_numpy().astype(np.int64)), names


def _join_labels(table: "datasets.Dataset", columns: list[str]) -> tuple[Tensor, list[str]]:
    """The texts of several columns as one class: "purple heart" and "noto" -> "purple heart, noto"."""
    read = [read_labels(table, column) for column in columns]
    numbers = torch.stack([labels for labels, _ in read if labels is not None], dim=1)
    rows, labels = numbers.unique(dim=0, return_inverse=True)
    names = [names for _, names in read if names is not None]
    return labels, [", ".join(own[i] for own, i in zip(names, row, strict=True)) for row in rows.tolist()]


def read_classes(files: list[str], path: list[str]) -> list[Any]:
    """
    The sorted values of a label column of parquet files, here or on the Hub. Only that column is read.

    Args:
        files (`list[str]`): paths or addresses.
        path (`list[str]`): the column and the names of the fields inside.

    Raises:
        OSError: a file can't be read; it is named.
    """
    import pyarrow.parquet as pq
    from fsspec.core import url_to_fs
    from pyarrow import ArrowException

    def classes_in(file: str) -> set[Any]:
        system, name = url_to_fs(file)
        with system.open(name, "rb") as opened:
            column = pq.ParquetFile(opened).read(columns=[".".join(path)]).column(0)
        return set(_unique(column, path[1:]))

    try:
        with ThreadPoolExecutor(MAX_OPEN) as pool:
            found = set().union(*pool.map(classes_in, files))
    except (ArrowException, OSError) as error:
        raise OSError(f"the classes can't be read: {first_line(error)}{in_file(error)}") from error
    return sorted(value for value in found if value is not None)


def _unique(column: Any, path: list[str]) -> list[Any]:
    import pyarrow.compute as pc

    return pc.unique(pc.struct_field(column, path) if path else column).to_pylist()
