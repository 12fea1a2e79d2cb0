"""Where images come from: the embedded digits, local folders in three layouts, and datasets of the Hub."""

import csv
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .digits import read_digits
from .images import ImageDataset

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

Table: TypeAlias = "datasets.Dataset | datasets.IterableDataset"

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


def load_images(
    dataset: str,
    *,
    resolution: int,
    channels: int = 3,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageDataset:
    """
    Load one split of an image dataset, as squares of one size.

    Images are turned upright (EXIF), converted to RGB or gray (transparency over white), scaled with bicubic
    interpolation so that the short side is `resolution`, and cropped to their centre.

    Args:
        dataset (`str`): one of

            - "digits": 1797 handwritten digits that come with the package (splits train, test);
            - a folder of parquet files, as a dataset of the Hub has them (`train-00000-of-00001.parquet`, here or in
              `data/`). `datasets` copies them to its cache, and again when a file has changed;
            - a folder of tar shards as webdataset has them (`train-0000.tar`, here or in `data/`), with members
              such as `0001.jpg` and `0001.cls` or `0001.json`: columns jpg, cls, json. Copied to the cache, too;
            - a folder with `train.csv`, `val.csv`, `test.csv` (columns filename, label) beside `images/`, the layout
              of miniImageNet (splits train, validation, test);
            - a folder of images. Sub-folders train, val or validation, test are splits, without them all is "train";
              the folders inside are the classes, if there is more than one. Metadata files are not read. It is listed
              anew each time, into a temporary file;
            - else the id of a dataset on the Hub.
        resolution (`int`): height and width of the images.
        channels (`int`): 3 for RGB, 1 for gray.
        split (`str`): the split, by the name it has in the dataset.
        image_column (`str`, *optional*): the column of images; needed where there are several.
        label_column (`str`, *optional*): the column of classes. The default is the only ClassLabel column, if there is
            exactly one. Integers or strings become consecutive class ids in their sorted order, counted in this split.
            "json.label" is the field label of the column json.

    Returns:
        `ImageDataset`: items `{"images": uint8 tensor (channels, resolution, resolution) in 0..255, "labels": int64
        scalar tensor}`; "labels" is missing where there are none.

    Raises:
        ValueError: a bad argument, a missing folder, split or column, an empty split, missing labels, or broken images
            (all are counted and the first ones named).
        ConnectionError: the Hub can't be reached.
    """
    check_arguments(dataset, resolution, channels)
    if dataset == "digits":
        if image_column is not None or label_column is not None:
            raise ValueError("'digits' has no columns to choose from; leave out image_column and label_column")
        records, labels, names = read_digits(split)
        return ImageDataset(
            records, name=dataset, resolution=resolution, channels=channels, labels=labels, class_names=names
        )

    folder = local_folder(dataset)
    if folder is not None:
        table, name = _read_folder(folder, split), folder.name
    else:
        table, name = load_table(dataset, split), dataset
    if len(table) == 0:
        raise ValueError(f"split {split!r} of {dataset!r} is empty; choose another split or add images to it")

    column = find_image_column(table, image_column)
    class_labels, class_names = _read_labels(table, label_column)
    return ImageDataset(
        _ImageColumn(table, column),
        name=name,
        resolution=resolution,
        channels=channels,
        labels=class_labels,
        class_names=class_names,
    )


def check_arguments(dataset: str, resolution: int, channels: int) -> None:
    """Raise ValueError where these can't be right for any dataset."""
    if not isinstance(dataset, str) or not dataset:
        raise ValueError(f"dataset is {dataset!r}; give 'digits', a folder or the id of a dataset")
    if isinstance(resolution, bool) or not isinstance(resolution, int) or resolution < 1:
        raise ValueError(f"resolution is {resolution!r}; give a positive whole number of pixels")
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels!r}; choose 3 for RGB or 1 for gray")


def local_folder(dataset: str) -> Path | None:
    """The folder, absolute, that `dataset` means; None for the id of a dataset on the Hub."""
    folder = Path(dataset).expanduser()
    local = folder.exists() or folder.is_absolute() or dataset.startswith((".", "~"))
    return folder.resolve() if local else None


def find_shards(folder: Path) -> list[Path]:
    """
    The parquet files of a folder, or else its tar shards, here and in `data/`; [] if it is for another reading. Tar
    files beside images, or beside other folders than `data`, are what was unpacked there.
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
                if suffix in found:
                    found[suffix].append(Path(entry.path))
                elif suffix.lower() in _image_suffixes() or (entry.is_dir() and Path(entry.path) != folder / "data"):
                    unpacked = True
    return sorted(found[".parquet"]) or ([] if unpacked else sorted(found[".tar"]))


class _ImageColumn:
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


def load_table(dataset: str, split: str, **options: Any) -> Any:
    """What `datasets.load_dataset` gives for one split, with ValueError for all that is wrong with the dataset."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        return load_dataset(dataset, split=split, **options)
    # An unknown split, dataset or configuration, or a file that is no parquet or tar. No connection stays a
    # ConnectionError.
    except (ValueError, FileNotFoundError, tarfile.TarError, DatasetGenerationError) as error:
        reason = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        raise ValueError(f"can't load split {split!r} of {dataset!r}: {reason}") from error


def check_folder(folder: Path) -> None:
    """Raise ValueError unless there is such a folder."""
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "doesn't exist"
        raise ValueError(f"{str(folder)!r} {problem}; give a folder of images or parquet files, or a dataset's id")


def _read_folder(folder: Path, split: str) -> "datasets.Dataset":
    check_folder(folder)
    lists = {name: folder / file for name, file in CSV_FILES.items() if (folder / file).is_file()}
    if lists and (folder / "images").is_dir():
        return _read_csv(lists[_present(split, lists, folder)], folder / "images")
    if find_shards(folder):
        return load_table(str(folder), split)
    return _read_image_folder(folder, split)


def _present(split: str, splits: Iterable[str], folder: Path) -> str:
    if split not in splits:
        raise ValueError(f"{str(folder)!r} has no split {split!r}; choose one of {', '.join(splits)}")
    return split


def _read_csv(file: Path, images: Path) -> "datasets.Dataset":
    with file.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        rows = list(reader)
    if not {"filename", "label"} <= set(reader.fieldnames or ()):
        raise ValueError(f"{str(file)!r} has the columns {reader.fieldnames}; expected filename and label")
    for number, row in enumerate(rows, start=1):
        if not row["filename"] or not row["label"]:
            raise ValueError(f"row {number} of {str(file)!r} lacks a filename or a label; complete or remove it")
    return _table_of_files(
        [str(images / row["filename"]) for row in rows],
        [row["label"] for row in rows],
        sorted({row["label"] for row in rows}),
    )


def _read_image_folder(folder: Path, split: str) -> "datasets.Dataset":
    """
    The same reading of a folder as the `imagefolder` of `datasets`, but that file names never make a split: there, one
    `cat/test_1.png` among a thousand others would make a split "test" and silently drop the rest.

    The paths go to a temporary Arrow file, deleted when Python ends, that is mapped into memory.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature
    from datasets.arrow_writer import ArrowWriter
    from datasets.fingerprint import get_temporary_cache_files_directory

    first: dict[bool, str] = {}  # the first image in a split, and outside of all
    splits: dict[str, None] = {}  # in the order of the folders
    classes: dict[str, int] = {}  # over all splits, so that a class has the same id in each
    runs: list[tuple[int, int]] = []  # class (-1: none) and number of the images of each folder
    outside = ""  # the first image of the split that has no class
    handle, file = tempfile.mkstemp(suffix=".arrow", dir=get_temporary_cache_files_directory())
    os.close(handle)
    with ArrowWriter(path=file, features=Features({"image": ImageFeature()})) as writer:
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
            "or train.csv, val.csv, test.csv beside images/"
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


@cache
def _image_suffixes() -> set[str]:
    Image.init()
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def _walk(folder: Path, inside: tuple[str, ...] = ()) -> "Iterator[tuple[tuple[str, ...], pa.ChunkedArray]]":
    """
    The folders with images in them, the parts of their paths inside `folder`, and the sorted names of the images.

    In sorted order, a folder before those in it, runs repeat on any file system. Links are followed; what can't be
    opened is left out, as in `os.walk`. Hidden files may end in .jpg without being images (macOS).
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    suffixes = _image_suffixes()
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

    try:
        entries = os.scandir(folder.joinpath(*inside))
    except OSError:
        return
    with entries:
        for entry in entries:
            if entry.name.startswith("."):
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
        yield from _walk(folder, (*inside, name))


def _table_of_files(
    paths: list[str], labels: list[str] | None = None, names: list[str] | None = None
) -> "datasets.Dataset":
    from datasets import ClassLabel, Dataset, Features, Image

    columns: dict[str, Any] = {"image": paths}
    features = Features({"image": Image()})
    if labels is not None:
        columns["label"] = labels
        features["label"] = ClassLabel(names=names)
    return Dataset.from_dict(columns, features=features)


def _columns(table: Table) -> str:
    return ", ".join(f"{name} ({_kind(feature)})" for name, feature in table.features.items())


def _kind(feature: Any) -> str:
    return getattr(feature, "dtype", "") if type(feature).__name__ == "Value" else type(feature).__name__


def find_image_column(table: Table, image_column: str | None) -> str:
    """The name of the only column of images, or of the one that was asked for."""
    from datasets import Image

    found = [name for name, feature in table.features.items() if isinstance(feature, Image)]
    if image_column is not None:
        if image_column not in found:
            raise ValueError(f"image_column {image_column!r} holds no images; the columns are {_columns(table)}")
        return image_column
    if not found:
        raise ValueError(
            f"no column holds images: the columns are {_columns(table)}; pass as image_column one of type Image"
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


def _read_labels(table: "datasets.Dataset", label_column: str | None) -> tuple[Tensor | None, list[str] | None]:
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import ClassLabel

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
    if missing:
        column = ".".join(path)
        raise ValueError(f"{missing} of {len(values)} rows have no label in {column!r}; complete or remove them")
    if named:
        names = list(feature.names)
    else:
        classes = sorted(pc.unique(values).to_pylist())
        values = pc.index_in(values, value_set=pa.array(classes, values.type))
        names = [str(value) for value in classes]
    return torch.from_numpy(values.to_numpy().astype(np.int64)), names
