"""Local folders: images listed in Arrow's memory, and CSV lists next to images."""

import csv
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .decoding import image_suffixes
from .paths import HUB_PREFIX, looks_local, suggest_path
from .shards import find_shards

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

CSV_FILES = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}
SPLIT_FOLDERS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
# File names that are Python strings at a time; the others are in Arrow's memory or on disk.
NAMES_AT_A_TIME = 10_000


def local_folder(dataset: str) -> Path | None:
    """
    The folder, absolute, that `dataset` means; None for the id of a dataset on the Hub.

    Raises:
        ValueError: there is no such folder.
    """
    if not looks_local(dataset):
        return None
    folder = Path(os.path.abspath(os.path.expanduser(dataset)))
    if not os.path.isdir(folder):
        problem = "is a file" if os.path.exists(folder) else "doesn't exist"
        on_hub = f" If you mean the one on the Hub: {HUB_PREFIX}{dataset}." if dataset.count("/") == 1 else ""
        raise ValueError(
            f"{str(folder)!r} {problem}; give a folder of images or parquet files, or a dataset's id. "
            f"{suggest_path(dataset)}{on_hub}".rstrip()
        )
    return folder.resolve()


def read_folder(folder: Path, split: str) -> "datasets.Dataset | None":
    """
    The image files of one split as column `image`, and their classes, if there are any, as column `label`.

    Returns:
        None for a folder of parquet files or tar shards.

    Raises:
        ValueError: no such split, no images, or images in the wrong places.
    """
    lists = {name: folder / file for name, file in CSV_FILES.items() if os.path.lexists(folder / file)}
    for file in lists.values():  # such as a link to a disk that isn't there: its labels would be left out
        if not file.is_file():
            raise ValueError(f"{str(file)!r} isn't a regular file, or a link to nothing; replace or remove it")
    if all((folder / name).is_file() for name in ("config.json", "metrics.jsonl")):
        raise ValueError(f"{str(folder)!r} is the folder of a run, whose pictures are grids; give that of the images")
    if lists and (folder / "images").is_dir():
        return _read_csv(lists[_present(split, lists, folder)], folder / "images")
    return None if find_shards(folder) else _read_image_folder(folder, split)


def _present(split: str, splits: Iterable[str], folder: Path) -> str:
    if split not in splits:
        raise ValueError(f"{str(folder)!r} has no split {split!r}; choose one of {', '.join(splits)}")
    return split


def _read_csv(file: Path, images: Path) -> "datasets.Dataset":
    from datasets import ClassLabel, Dataset, Features, Image

    labels: dict[str, str] = {}  # file name -> label
    columns: dict[str, list[str]] = {"image": [], "label": []}
    for number, (filename, label) in enumerate(_csv_rows(file), start=1):
        if not filename or not label:
            raise ValueError(f"row {number} of {str(file)!r} lacks a filename or a label; complete or remove it")
        if labels.setdefault(filename, label) != label:
            raise ValueError(
                f"row {number} of {str(file)!r} labels {filename!r} as {label!r}, but a row before it as "
                f"{labels[filename]!r}; remove one of them"
            )
        columns["image"].append(str(images / filename))
        columns["label"].append(label)
    _check_files(file, columns["image"])
    features = Features({"image": Image(), "label": ClassLabel(names=sorted(set(columns["label"])))})
    return Dataset.from_dict(columns, features=features)


def _csv_rows(file: Path) -> Iterator[tuple[str, str]]:
    """The file name and the label of each row."""
    expected = "expected filename and label, separated by a comma, in the first line"
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines, strict=True)
            header = next(reader, None)
            if header is None:
                raise ValueError(f"{str(file)!r} is empty; {expected}")
            if sorted(name for name in header if name in ("filename", "label")) != ["filename", "label"]:
                raise ValueError(f"{str(file)!r} has the columns {header}; {expected}")
            places = header.index("filename"), header.index("label")
            number = 0
            for row in reader:
                if not row:  # an empty line
                    continue
                number += 1
                if len(row) > len(header):
                    raise ValueError(
                        f"row {number} of {str(file)!r} has {len(row)} values for {len(header)} columns: {row}; put "
                        "values with a comma in quotes"
                    )
                row += [""] * (len(header) - len(row))
                yield row[places[0]], row[places[1]]
    except UnicodeDecodeError as error:
        read = file.read_bytes().decode("utf-8", errors="replace")
        line = read[: read.index("\ufffd")].count("\n") + 1
        raise ValueError(f"{str(file)!r} isn't in UTF-8 (line {line}); save it in that encoding") from error
    except csv.Error as error:
        raise ValueError(f"{str(file)!r} can't be read as CSV: {error}; {expected}") from error
    except OSError as error:
        raise ValueError(f"{str(file)!r} can't be read: {error.strerror}") from error


def _check_files(file: Path, images: list[str]) -> None:
    missing = [image for image in images if not os.path.isfile(image)]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(images)} files that {str(file)!r} names aren't there, such as {missing[0]} "
            "(No such file or directory); add them or remove their rows"
        )


def _read_image_folder(folder: Path, split: str) -> "datasets.Dataset":
    """
    The same reading of a folder as the `imagefolder` of `datasets`, but that file names never make a split: there, one
    `cat/test_1.png` among a thousand others would make a split "test" and silently drop the rest.

    The paths go to a temporary Arrow file, deleted when Python ends, that is mapped into memory.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import ClassLabel, Dataset, Features, Image
    from datasets.arrow_writer import ArrowWriter
    from datasets.fingerprint import get_temporary_cache_files_directory

    first: dict[bool, str] = {}  # the first image in a split, and outside of all
    splits: dict[str, None] = {}  # in the order of the folders
    classes: dict[str, int] = {}  # over all splits, so that a class has the same id in each
    runs: list[tuple[int, int]] = []  # class (-1: none) and number of the images of each folder
    outside = ""  # the first image of the split that has no class
    handle, file = tempfile.mkstemp(suffix=".arrow", dir=get_temporary_cache_files_directory())
    os.close(handle)
    with ArrowWriter(path=file, features=Features({"image": Image()})) as writer:
        waiting: list[pa.Array] = []  # paths not yet written
        count = 0
        for inside, names in _walk(folder):
            in_split = bool(inside) and inside[0].lower() in SPLIT_FOLDERS
            first.setdefault(in_split, os.path.join(*inside, names[0].as_py()))
            if len(first) == 2:
                raise ValueError(
                    f"{str(folder)!r} has images in splits, such as {first[True]!r}, and outside of them, such as "
                    f"{first[False]!r}; move or rename one of the two folders"
                )
            found = SPLIT_FOLDERS[inside[0].lower()] if in_split else "train"
            splits[found] = None
            depth = 1 if in_split else 0  # of the class folders
            number = classes.setdefault(inside[depth], len(classes)) if len(inside) > depth else -1
            if found != split:
                continue
            runs.append((number, len(names)))
            parent = str(folder.joinpath(*inside))
            if number < 0 and not outside:
                outside = os.path.join(parent, names[0].as_py())
            for start in range(0, len(names), NAMES_AT_A_TIME):
                part = names.slice(start, NAMES_AT_A_TIME)
                waiting += pc.binary_join_element_wise(os.path.join(parent, ""), part.cast(pa.string()), "").chunks
                count += len(part)
                if count >= NAMES_AT_A_TIME:
                    writer.write_table(pa.table({"image": pa.chunked_array(waiting)}), NAMES_AT_A_TIME)
                    waiting, count = [], 0
        if waiting:
            writer.write_table(pa.table({"image": pa.chunked_array(waiting)}), NAMES_AT_A_TIME)
    if not first:
        raise ValueError(
            f"{str(folder)!r} holds no images; expected image files, parquet files or tar shards (also in data/), "
            "or train.csv, val.csv, test.csv next to images/"
        )
    _present(split, splits, folder)

    table = Dataset.from_file(file)
    count = sum(images for number, images in runs if number < 0)
    if len(classes) < 2 or count == len(table):
        return table
    in_order = sorted(classes)
    if count:
        raise ValueError(
            f"{count} of {len(table)} images lie outside the class folders ({', '.join(in_order[:3])}, "
            f"...), such as {outside!r}; move them into one or remove them"
        )
    ids = {classes[name]: id_ for id_, name in enumerate(in_order)}
    labels = np.repeat([ids[number] for number, _ in runs], [images for _, images in runs])
    return table.add_column("label", labels, feature=ClassLabel(names=in_order))


def _walk(
    folder: Path, inside: tuple[str, ...] = (), above: tuple[tuple[int, int], ...] = ()
) -> "Iterator[tuple[tuple[str, ...], pa.ChunkedArray]]":
    """
    The folders with images in them, the parts of their paths inside `folder`, and the sorted names of the images.

    In sorted order, a folder before those in it, runs repeat on any file system. Links are followed, but not one that
    leads back to a folder that it is in (`above`). Hidden files may end in .jpg without being images (macOS).

    Raises:
        ValueError: a folder can't be read, or file names aren't UTF-8.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    suffixes = image_suffixes()
    folders: list[str] = []
    names: list[str] = []
    chunks: list[pa.Array] = []

    def pack() -> None:
        try:
            chunks.append(pa.array(names, pa.large_string()))
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{str(folder.joinpath(*inside))!r} has file names that aren't UTF-8; rename {error.object!r}"
            ) from error
        names.clear()

    here = folder.joinpath(*inside)
    try:
        status = os.stat(here)
        entries = os.scandir(here)
    except OSError as error:
        raise ValueError(
            f"{str(here)!r} can't be read ({error.strerror}); make it readable or move it elsewhere"
        ) from error
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        entries.close()
        return
    with entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "lost+found":  # which Linux has at the root of a disk
                continue
            try:
                is_folder = entry.is_dir()
            except OSError:  # such as a circle of links
                is_folder = False
            if is_folder:
                folders.append(entry.name)
            elif os.path.splitext(entry.name)[1].lower() in suffixes:
                names.append(entry.name)
                if len(names) == NAMES_AT_A_TIME:
                    pack()
    pack()
    found = pa.chunked_array(chunks)
    if len(found):
        # Arrow sorts bytes of UTF-8, which is the order of Python's strings.
        yield inside, found.take(pc.sort_indices(found))
    del found
    chunks.clear()
    for name in sorted(folders):
        yield from _walk(folder, (*inside, name), (*above, identity))
