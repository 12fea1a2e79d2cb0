"""Where images come from: the embedded digits, local folders in three layouts, and datasets of the Hub."""

import csv
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from .digits import read_digits
from .images import ImageDataset

if TYPE_CHECKING:
    import datasets

CSV_FILES = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}
SPLIT_FOLDERS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


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
            - a folder with `train.csv`, `val.csv`, `test.csv` (columns filename, label) beside `images/`, the layout
              of miniImageNet (splits train, validation, test);
            - a folder of images. Sub-folders train, val or validation, test are splits, without them all is "train";
              the folders inside are the classes, if there is more than one. Metadata files are not read;
            - else the id of a dataset on the Hub.
        resolution (`int`): height and width of the images.
        channels (`int`): 3 for RGB, 1 for gray.
        split (`str`): the split, by the name it has in the dataset.
        image_column (`str`, *optional*): the column of images; needed where there are several.
        label_column (`str`, *optional*): the column of classes. The default is the only ClassLabel column, if there is
            exactly one. Integers or strings become consecutive class ids in their sorted order, counted in this split.

    Returns:
        `ImageDataset`: items `{"images": uint8 tensor (channels, resolution, resolution) in 0..255, "labels": int64
        scalar tensor}`; "labels" is missing where there are none.

    Raises:
        ValueError: a bad argument, a missing folder, split or column, an empty split, missing labels, or broken images
            (all are counted and the first ones named).
        ConnectionError: the Hub can't be reached.
    """
    if not isinstance(dataset, str) or not dataset:
        raise ValueError(f"dataset is {dataset!r}; give 'digits', a folder or the id of a dataset")
    if isinstance(resolution, bool) or not isinstance(resolution, int) or resolution < 1:
        raise ValueError(f"resolution is {resolution!r}; give a positive whole number of pixels")
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels!r}; choose 3 for RGB or 1 for gray")

    if dataset == "digits":
        if image_column is not None or label_column is not None:
            raise ValueError("'digits' has no columns to choose from; leave out image_column and label_column")
        records, labels, names = read_digits(split)
        return ImageDataset(
            records, name=dataset, resolution=resolution, channels=channels, labels=labels, class_names=names
        )

    folder = Path(dataset).expanduser()
    if folder.exists() or folder.is_absolute() or dataset.startswith((".", "~")):
        folder = folder.resolve()
        table, name = _read_folder(folder, split), folder.name
    else:
        table, name = _load_dataset(dataset, split), dataset
    if len(table) == 0:
        raise ValueError(f"split {split!r} of {dataset!r} is empty; choose another split or add images to it")

    column = _find_image_column(table, image_column)
    class_labels, class_names = _read_labels(table, label_column)
    return ImageDataset(
        _ImageColumn(table, column),
        name=name,
        resolution=resolution,
        channels=channels,
        labels=class_labels,
        class_names=class_names,
    )


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


def _load_dataset(dataset: str, split: str) -> "datasets.Dataset":
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        return load_dataset(dataset, split=split)
    # An unknown split, dataset or configuration, or a file that is no parquet. No connection stays a ConnectionError.
    except (ValueError, FileNotFoundError, DatasetGenerationError) as error:
        reason = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        raise ValueError(f"can't load split {split!r} of {dataset!r}: {reason}") from error


def _read_folder(folder: Path, split: str) -> "datasets.Dataset":
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "doesn't exist"
        raise ValueError(f"{str(folder)!r} {problem}; give a folder of images or parquet files, or a dataset's id")
    lists = {name: folder / file for name, file in CSV_FILES.items() if (folder / file).is_file()}
    if lists and (folder / "images").is_dir():
        return _read_csv(lists[_present(split, lists, folder)], folder / "images")
    if any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet")):
        return _load_dataset(str(folder), split)
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
    """
    Image.init()
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files: list[tuple[str, ...]] = []  # parts of the path inside the folder
    for parent, folders, names in os.walk(folder, followlinks=True):
        # Hidden files may end in .jpg without being images (macOS). In sorted order runs repeat on any file system.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(parent).relative_to(folder).parts
        files += [
            (*inside, name)
            for name in sorted(names)
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes
        ]
    if not files:
        raise ValueError(
            f"{str(folder)!r} holds no images; expected image files, parquet files (also in data/), "
            "or train.csv, val.csv, test.csv beside images/"
        )

    in_split = [len(parts) > 1 and parts[0].lower() in SPLIT_FOLDERS for parts in files]
    has_splits = any(in_split)
    if has_splits and not all(in_split):
        inner, outer = (os.path.join(*files[in_split.index(found)]) for found in (True, False))
        raise ValueError(
            f"{str(folder)!r} has images in splits, such as {inner!r}, and outside of them, such as {outer!r}; "
            "move or rename one of the two folders"
        )
    splits: dict[str, list[tuple[str, ...]]] = {}
    for parts in files:
        splits.setdefault(SPLIT_FOLDERS[parts[0].lower()] if has_splits else "train", []).append(parts)

    depth = 1 if has_splits else 0  # of the class folders
    # Over all splits, so that a class has the same id in each.
    names_of_classes = sorted({parts[depth] for parts in files if len(parts) > depth + 1})
    chosen = splits[_present(split, splits, folder)]
    paths = [str(folder.joinpath(*parts)) for parts in chosen]
    outside = [path for path, parts in zip(paths, chosen, strict=True) if len(parts) == depth + 1]
    if len(names_of_classes) < 2 or len(outside) == len(paths):
        return _table_of_files(paths)
    if outside:
        raise ValueError(
            f"{len(outside)} of {len(paths)} images lie outside the class folders ({', '.join(names_of_classes[:3])}, "
            f"...), such as {outside[0]!r}; move them into one or remove them"
        )
    return _table_of_files(paths, [parts[depth] for parts in chosen], names_of_classes)


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


def _columns(table: "datasets.Dataset") -> str:
    return ", ".join(f"{name} ({_kind(feature)})" for name, feature in table.features.items())


def _kind(feature: Any) -> str:
    return getattr(feature, "dtype", "") if type(feature).__name__ == "Value" else type(feature).__name__


def _find_image_column(table: "datasets.Dataset", image_column: str | None) -> str:
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


def _read_labels(table: "datasets.Dataset", label_column: str | None) -> tuple[Tensor | None, list[str] | None]:
    from datasets import ClassLabel

    if label_column is None:
        found = [name for name, feature in table.features.items() if isinstance(feature, ClassLabel)]
        if len(found) != 1:
            return None, None
        column = found[0]
    elif label_column in table.features:
        column = label_column
    else:
        raise ValueError(f"there is no label_column {label_column!r}; the columns are {_columns(table)}")

    feature = table.features[column]
    named = isinstance(feature, ClassLabel)
    if not named and not _kind(feature).startswith(("int", "uint", "string", "large_string")):
        raise ValueError(
            f"label_column {column!r} has type {_kind(feature)}; pass a column of classes, integers or strings: "
            f"{_columns(table)}"
        )
    values = table.select_columns([column])[:][column]
    missing = sum(value is None or (named and value < 0) for value in values)
    if missing == len(values) and label_column is None:
        return None, None  # a test split whose labels are kept back, -1 throughout
    if missing:
        raise ValueError(f"{missing} of {len(values)} rows have no label in {column!r}; complete or remove them")
    if named:
        return torch.tensor(values), list(feature.names)
    classes = sorted(set(values))
    ids = {value: number for number, value in enumerate(classes)}
    return torch.tensor([ids[value] for value in values]), [str(value) for value in classes]
