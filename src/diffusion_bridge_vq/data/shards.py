"""Shards of a data set: parquet files and tar files, found in a folder and checked before anything is read."""

import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .decoding import image_suffixes

if TYPE_CHECKING:
    import pyarrow as pa

# A tar file ends in two blocks of zeros.
END_OF_TAR = b"\0" * 1024


def find_shards(folder: Path) -> list[Path]:
    """
    The parquet files of a folder, or else its tar shards, here and in `data/`; [] if it is for another reading. Tar
    files next to images, or next to other folders than `data`, are what was unpacked there.
    """
    found: dict[str, list[Path]] = {".parquet": [], ".tar": []}
    unpacked = False
    for place in (folder, folder / "data"):
        if not place.is_dir():
            continue
        with os.scandir(place) as entries:  # `glob` would make a list of 10 million images
            for entry in entries:
                suffix = os.path.splitext(entry.name)[1]
                if entry.name.startswith("."):
                    continue
                if suffix in found and entry.is_file():
                    found[suffix].append(Path(entry.path))
                elif suffix.lower() in image_suffixes() or (entry.is_dir() and Path(entry.path) != folder / "data"):
                    unpacked = True
    return sorted(found[".parquet"]) or ([] if unpacked else sorted(found[".tar"]))


def check_shards(shards: list[Path]) -> None:
    """
    Look at the end of each shard, where one that was cut off shows.

    Raises:
        ValueError: a shard is damaged or cut off, has two columns of one name, or its classes have other names than
            those of another shard. It is named.
    """
    with ThreadPoolExecutor() as pool:
        described = list(pool.map(_check_tar if shards and shards[0].suffix == ".tar" else _check_parquet, shards))
    classes: dict[str, tuple[Path, list[str]]] = {}
    for shard, found in zip(shards, described, strict=True):
        for column, names in found.items():
            first, others = classes.setdefault(column, (shard, names))
            if names != others:
                raise ValueError(
                    f"the classes in column {column!r} of {str(shard)!r} are {_few(names)}, but {_few(others)} in "
                    f"{str(first)!r}; write all files with the same classes in the same order"
                )


def parquet_rows(shard: Any) -> list[int]:
    """The number of rows of each row group of a parquet file: a path, an open file, or its metadata."""
    import pyarrow.parquet as pq

    metadata = shard if isinstance(shard, pq.FileMetaData) else pq.read_metadata(shard)
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _check_parquet(shard: Path) -> dict[str, list[str]]:
    """The names of the classes of each ClassLabel column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(shard) as file:
            schema, rows = file.schema_arrow, parquet_rows(file.metadata)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{str(shard)!r} isn't a parquet file, or is cut off: {_first_line(error)}") from error
    if rows and not rows[0]:  # `datasets` would read in batches of as many
        raise ValueError(f"{str(shard)!r} begins with a row group of no rows; remove the file or write it again")
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise ValueError(f"{str(shard)!r} has several columns named {', '.join(twice)}; rename or remove one")
    return _class_names(schema)


def _class_names(schema: "pa.Schema") -> dict[str, list[str]]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        columns = {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, AttributeError, ValueError):  # written by another library
        return {}
    return {name: f["names"] for name, f in columns.items() if f.get("_type") == "ClassLabel" and "names" in f}


def _check_tar(shard: Path) -> dict[str, list[str]]:
    with shard.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(END_OF_TAR)))
        end = file.read()
    try:
        with tarfile.open(shard):
            pass
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{str(shard)!r} isn't a tar file, or has no content; remove it or write it again") from error
    if end != END_OF_TAR:
        raise ValueError(f"{str(shard)!r} is cut off: it has no end mark; copy or write it again")
    return {}


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
