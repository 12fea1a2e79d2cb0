"""Images read from beginning to end, from shards here or on the Hub, for sets too large to be copied or listed."""

import inspect
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from tarfile import TarError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from .decoding import BrokenImageError, Record, decode_image, reason
from .folders import local_folder
from .images import decode_ahead, short_hash
from .row_groups import RowGroups, shuffled
from .shards import find_shards
from .sources import check_arguments
from .tables import FEW_SHARDS, find_image_column, find_label_column, first_line, in_file, read_classes, stream_table
from .tar_shards import Exchange, TarShards, count_samples, count_samples_together

if TYPE_CHECKING:
    import datasets


def stream_images(
    dataset: str,
    *,
    resolution: int,
    channels: int = 3,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    seed: int = 0,
    buffer_size: int = 2048,
    condition_column: str | None = None,
) -> "StreamedImages":
    """
    Stream one split of an image dataset, as squares of one size made as `load_images` does. Nothing is copied.

    Args:
        dataset (`str`): a folder of parquet files or tar shards, or the id of a dataset on the Hub, as `load_images`
            takes it.
        resolution (`int`): as for `load_images`.
        channels (`int`, *optional*, defaults to 3): as for `load_images`.
        split (`str`, *optional*, defaults to `"train"`): as for `load_images`.
        image_column (`str`, *optional*): as for `load_images`.
        label_column (`str`, *optional*): the column of classes; the default is the only ClassLabel column, if there is
            exactly one whose first row has a label. Integers or strings of parquet files become class ids as in
            `load_images`; that column is read once for it. Integers of tar shards, such as "cls" or "json.label", are
            class ids without names; strings are refused there.
        seed (`int`, *optional*, defaults to 0): of the order.
        buffer_size (`int`, *optional*, defaults to 2048): images, still encoded, among which the next is drawn; each
            worker has as many in memory.
        condition_column (`str`, *optional*): as for `load_images`. Of tar shards, "edges.png" is that of the members
            such as `0001.edges.png`.

    Raises:
        ValueError: a bad argument, a missing folder, split or column, or no image at all.
        OSError: the Hub can't be reached, or a file can't be read.
    """
    from datasets import ClassLabel

    check_arguments(dataset, resolution, channels)
    if isinstance(buffer_size, bool) or not isinstance(buffer_size, int) or buffer_size < 1:
        raise ValueError(f"buffer_size is {buffer_size!r}; give a positive number of images")
    folder = None if dataset == "digits" else local_folder(dataset)
    if dataset == "digits" or (folder is not None and not find_shards(folder)):
        raise ValueError(
            f"{dataset!r} can't be streamed; give a folder of parquet files or tar shards (also in data/) or the id "
            "of a dataset on the Hub, or load it without streaming"
        )
    stream, described, files = stream_table(dataset if folder is None else str(folder), split)
    if condition_column is not None:
        find_image_column(stream, condition_column, "condition_column")
    if label_column is not None and "," in label_column and label_column not in stream.features:
        raise ValueError(
            f"label_column {label_column!r}: a stream has one column of labels; write the joined texts into one, or "
            "load it without streaming"
        )
    column = find_image_column(stream, image_column, besides=condition_column)
    label, feature = find_label_column(stream, label_column)
    classes: list[Any] | None = None
    if isinstance(feature, ClassLabel):
        classes = list(range(len(feature.names)))
    elif label and all(file.endswith(".parquet") for file in files):
        classes = read_classes(files, label)
    elif label and "string" in feature.dtype:
        raise ValueError(
            f"label_column {label_column!r} holds strings, whose class ids aren't known before all are read; pass a "
            "column of classes or integers, or load it without streaming"
        )
    return StreamedImages(
        stream,
        name=dataset if folder is None else folder.name,
        resolution=resolution,
        channels=channels,
        image_column=column,
        label=label,
        label_required=label_column is not None,
        classes=classes,
        class_names=list(feature.names) if isinstance(feature, ClassLabel) else classes and [str(c) for c in classes],
        seed=seed,
        buffer_size=buffer_size,
        files=described,
        shards=files,
        condition_column=condition_column,
    )


class StreamedImages(IterableDataset[dict[str, Tensor]]):
    """
    Square images of one size from a stream. Made by `stream_images`.

    Items are those of `ImageDataset`. They are decoded where they are iterated, in the workers of a DataLoader if it
    has some: workers share the shards among themselves, and those without one idle. With `drop_last` each worker
    leaves out its own last images that fill no batch.

    The order of an epoch depends on the seed, the epoch and the number of workers, and on nothing else: shards come in
    a random order, one after the other, and images are drawn from a buffer. So the middle of an epoch is reached again
    by `set_epoch` and skipping what came before, with as many workers. All that is skipped is read and decoded once
    more, and that takes as long as loading it did.

    Args:
        stream (`datasets.IterableDataset`): the rows.
        name (`str`): what to call the dataset in messages.
        resolution (`int`), channels (`int`), seed (`int`), buffer_size (`int`): as for `stream_images`.
        image_column (`str`): the column of images.
        label (`list[str]`): the column of labels and the names of the fields inside; none if empty.
        label_required (`bool`): whether a first row without label is an error rather than a set without labels.
        classes (`list`, *optional*): the labels that stand for the classes 0, 1, ...; without them labels are class
            ids.
        class_names (`list[str]`, *optional*): a name for each class, in the order of the labels.
        files (`list`): what is known of the dataset's files, for the fingerprint.
        shards (`list[str]`, *optional*, defaults to `()`): the files of the split.
        condition_column (`str`, *optional*): another column of images.

    Raises:
        ValueError: there is no image. On iteration: an image can't be decoded, or lacks its label; it is named.
        OSError: here or on iteration, images can't be read after all attempts that `datasets` makes.
    """

    def __init__(
        self,
        stream: "datasets.IterableDataset",
        *,
        name: str,
        resolution: int,
        channels: int,
        image_column: str,
        label: list[str],
        label_required: bool,
        classes: list[Any] | None,
        class_names: list[str] | None,
        seed: int,
        buffer_size: int,
        files: list[Any],
        shards: Sequence[str] = (),
        condition_column: str | None = None,
    ) -> None:
        self.name = name
        self._shards, self._seed, self._buffer_size = list(shards), seed, buffer_size
        self._shared: tuple[RowGroups | TarShards, int, int] | None = None
        self.image_shape = (channels, resolution, resolution)
        self._image_column, self._condition_column = image_column, condition_column
        self._image_columns = [image_column, *([condition_column] if condition_column else [])]
        # The tar file, of webdataset shards.
        self._url_column = "__url__" if "__url__" in stream.features else None
        described = [files, self.image_shape, stream.features.to_dict()]
        columns = [*self._image_columns, *label[:1], *([self._url_column] if self._url_column else [])]
        self._columns = list(dict.fromkeys(columns))
        stream = stream.select_columns(self._columns)
        _, first = next(self._rows(stream), (0, None))
        if first is None:
            raise ValueError(f"split {str(stream.split)!r} of {name!r} is empty; choose another or add images to it")
        # A split whose labels are kept back has None or -1 throughout.
        value = _field(first, label)
        self._label = label if label_required or (label and value is not None and value != -1) else []
        self._ids = None if classes is None else {value: number for number, value in enumerate(classes)}
        self.class_names = class_names if self._label else None
        image = first[image_column] or {}
        #: 16 hexadecimal digits that tell one set from another: over the columns, the classes, the first image, and
        #: names and sizes of all files, on the Hub with the hashes of their content.
        described += [self._label, self.class_names, *self._image_columns[1:]]
        self.fingerprint = short_hash(json.dumps(described).encode(), image.get("bytes") or b"")
        # Newer ones read ten shards at once, with a row group of each in memory, and sleep 5 s at the end of an epoch.
        one_by_one = "max_buffer_input_shards" in inspect.signature(stream.shuffle).parameters
        options: dict[str, Any] = {"max_buffer_input_shards": 1} if one_by_one else {}
        self._unshuffled = stream
        self._stream = stream.shuffle(seed=seed, buffer_size=buffer_size, **options)

    @property
    def num_classes(self) -> int | None:
        """The number of classes; None without labels, or where they are bare integers."""
        return None if self.class_names is None else len(self.class_names)

    @property
    def has_labels(self) -> bool:
        return bool(self._label)

    @property
    def has_conditions(self) -> bool:
        return self._condition_column is not None

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self._stream.set_epoch(epoch)

    @property
    def counts_on_the_hub(self) -> bool:
        """Whether [`~StreamedImages.share`] reads each file of the Hub once, to count its images."""
        tars = bool(self._shards) and all(file.endswith(".tar") for file in self._shards)
        return tars and not all(map(os.path.isfile, self._shards))

    def share(self, index: int, count: int, exchange: Exchange = lambda found: [found]) -> int:
        """
        From now on iterate one of `count` equal shares alone, and read nothing else. Workers of a DataLoader divide it
        further. Less than one image for each worker of each process is left out, others in each epoch.

        Args:
            index (`int`): which share.
            count (`int`): shares, one for each process.
            exchange (`Callable`, *optional*, defaults to that of a single process): takes an object of this process
                and returns those of all. For tar files on the Hub: each is read once, by one process, to count its
                images.

        Returns:
            `int`: how many parts are divided, row groups or files; with fewer parts than readers some read through
                what others use. 0 if nothing can be shared: image files don't say how many images they hold.

        Raises:
            OSError: this process or another can't read a tar file on the Hub.
        """
        parts: RowGroups | TarShards
        if self._shards and all(file.endswith(".parquet") for file in self._shards):
            parts = RowGroups(self._shards, self._columns, whole_files=len(self._shards) >= FEW_SHARDS)
        elif self._shards and all(file.endswith(".tar") for file in self._shards):
            sizes = (
                count_samples_together(self._shards, index, count, exchange)
                if self.counts_on_the_hub
                else count_samples(self._shards)
            )
            parts = TarShards(self._shards, self._unshuffled, sizes)
        else:
            return 0
        self._shared = (parts, index, count)
        return parts.num_parts

    def head(self, count: int) -> list[dict[str, Tensor]]:
        """The first `count` items as they are stored, fewer of a shorter stream, without filling the buffer."""
        return list(itertools.islice(self._items(self._unshuffled), count))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self._items(self._stream if self._shared is None else self._rows_of_share())

    def _rows_of_share(self) -> Iterator[dict[str, Any]]:
        assert self._shared is not None
        parts, index, count = self._shared
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        place, seed = index * workers + worker, [self._seed, self._stream.epoch]
        return shuffled(parts.share(place, count * workers, seed), self._buffer_size, [*seed, place])

    def _rows(self, stream: Iterable[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        from huggingface_hub.errors import HTTPError
        from pyarrow import ArrowException

        number = 0
        try:
            for row in stream:
                for column in self._image_columns:
                    record: Record | None = row[column]
                    if isinstance(record, bytes):  # a column of another library, as it is in the file
                        record = row[column] = {"bytes": record, "path": None}
                    if record is not None and record["bytes"] is None and "://" in (record["path"] or ""):
                        record["bytes"] = _read(record["path"])
                yield number, row
                number += 1
        except (HTTPError, OSError, ArrowException, TarError) as error:
            raise OSError(
                f"{self._stop(number, error)}. When it can be read again, `resume` takes a run on from its last "
                "checkpoint, with the same images."
            ) from error
        except ValueError as error:  # such as a shard with other columns
            raise ValueError(self._stop(number, error)) from error

    def _stop(self, number: int, error: Exception) -> str:
        reason = f"{first_line(error)}{in_file(error)}"
        return f"{self.name} can't be read on: {reason} ({number} images read before it by this process)"

    def count_parts(self, most: int = 256) -> int:
        """Into how many parts `read_part` divides the stream: a part has one or several of its shards."""
        return min(most, self._unshuffled.num_shards)

    def read_part(self, part: int, parts: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Key and item of each image of one of `parts` parts, as stored; decoded ahead by a pool of threads."""
        rows = self._rows(self._unshuffled.shard(num_shards=parts, index=part))
        for number, item in enumerate(decode_ahead(lambda numbered: self._item(*numbered), rows)):
            yield f"{part:05}-{number:08}", item

    def _items(self, stream: Iterable[dict[str, Any]]) -> Iterator[dict[str, Tensor]]:
        for number, row in self._rows(stream):
            yield self._item(number, row)

    def _item(self, number: int, row: dict[str, Any]) -> dict[str, Tensor]:
        item = {"images": self._decode(row, number, self._image_column)}
        if self._condition_column is not None:
            item["conditions"] = self._decode(row, number, self._condition_column)
        if self._label:
            item["labels"] = torch.tensor(self._class_id(row, number))
        return item

    def _class_id(self, row: dict[str, Any], number: int) -> int:
        label = _field(row, self._label)
        known = label is not None and label >= 0 if self._ids is None else label in self._ids
        if not known:
            among = "" if self._ids is None else f", of {len(self._ids)} classes"
            raise ValueError(
                f"{self._describe(row, number)} has no label in {'.'.join(self._label)!r} but {label!r}{among}; "
                f"complete or remove it ({number} images read before it by this process)"
            )
        return label if self._ids is None else self._ids[label]

    def _decode(self, row: dict[str, Any], number: int, column: str) -> Tensor:
        channels, _, resolution = self.image_shape
        try:
            return torch.from_numpy(decode_image(row[column], resolution, channels).copy())  # writable
        except Exception as error:
            raise BrokenImageError(
                f"{self._describe(row, number, column)} can't be decoded ({reason(error)}). In a parquet file here, "
                "replace the image in its row, and `resume` takes the run on; any other change makes a new data set, "
                f"on which a new run can start with `init_from` ({number} images read before it by this process)"
            ) from error

    def _describe(self, row: dict[str, Any], number: int, column: str | None = None) -> str:
        record = row[column or self._image_column] or {}
        url = row[self._url_column] if self._url_column else None
        condition = f"column {column}" if column is not None and column == self._condition_column else None
        known = [str(part) for part in (condition, record.get("path"), url) if part]
        return ", ".join([f"image {number} of epoch {self._stream.epoch} of {self.name}", *known])


def _field(row: dict[str, Any], path: list[str]) -> Any:
    value: Any = row
    for name in path:
        value = None if value is None else value[name]
    return value


def _read(url: str) -> bytes:
    """A file of a dataset on the Hub that is a folder of images or an archive of them."""
    import fsspec

    with fsspec.open(url, "rb") as file:
        return file.read()
