"""The map-style data set that all sources of `load_images` end in: decoded in memory, or on access."""

import hashlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from .decoding import BrokenImageError, Record, decode_image, reason

# Up to this size a decoded set is held in memory; a larger one is decoded on access.
IN_MEMORY_BYTES = 2 * 1024**3
# A set in which every image is broken must not fill the terminal.
MAX_NAMED = 10
# Images per task of the thread pool: enough to hide its overhead, few enough for a smooth bar.
CHUNK = 64
# Images whose content is in a fingerprint.
FINGERPRINTED = 32


class Records(Protocol):
    """Images not yet decoded. An index gives a `Record`, or None where there is no image; a slice gives a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


def short_hash(*parts: bytes) -> str:
    """16 hexadecimal digits over `parts` and where each one ends."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def decode_ahead(decode: Callable[[Any], Any], inputs: Iterable[Any]) -> Iterator[Any]:
    """`map(decode, inputs)` by a pool of threads, at most two chunks ahead."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting: deque[list[Future[Any]]] = deque()
        iterator = iter(inputs)
        try:
            while chunk := list(itertools.islice(iterator, CHUNK)):
                waiting.append([pool.submit(decode, item) for item in chunk])
                if len(waiting) > 2:
                    yield from (future.result() for future in waiting.popleft())
            for futures in waiting:
                yield from (future.result() for future in futures)
        finally:
            for futures in waiting:
                for future in futures:
                    future.cancel()


class Batch(Sequence[dict[str, Tensor]]):
    """Items that are held as one tensor per name: a list of items to all, and a batch at no cost to `collate`."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors["images"])

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):  # ends an iteration; no negative indices, no slices
            raise IndexError(index)
        return {name: tensor[index] for name, tensor in self.tensors.items()}


class ImageDataset(Dataset[dict[str, Tensor]]):
    """
    Square images of one size, with class labels where the source has them. Made by `load_images`.

    Item `i` is `{"images": uint8 tensor (C, H, W) in 0..255, "labels": int64 scalar tensor}`; "labels" is missing
    where there are none, and "conditions", like "images", is there if they are. Up to `IN_MEMORY_BYTES` of pixels are
    decoded at once, here, by a pool of threads; a larger set is decoded on access. A DataLoader with
    `collate_fn=ImageDataset.collate` takes batches as they are fetched, by one index operation in memory; with its
    default, items are stacked again.

    Args:
        records (`Records`): the images, not yet decoded.
        name (`str`): what to call the dataset in messages.
        resolution (`int`): H and W.
        channels (`int`, *optional*, defaults to 3): 3 for RGB, 1 for gray.
        labels (`torch.Tensor`, *optional*): (N,) int64 in 0..num_classes-1.
        class_names (`list[str]`, *optional*): a name for each class, in the order of the labels.
        in_memory (`bool`, *optional*, defaults to `True`): decode at once what fits; otherwise all on access.
        conditions (`ImageDataset`, *optional*): another image for each of them, see [`ImageCondition`].

    Raises:
        BrokenImageError: a ValueError: there are broken images. In memory all of them are counted, and the first ones
            named, when the dataset is made; on access the broken one is named.
    """

    def __init__(
        self,
        records: Records,
        *,
        name: str,
        resolution: int,
        channels: int = 3,
        labels: Tensor | None = None,
        class_names: list[str] | None = None,
        in_memory: bool = True,
        conditions: "ImageDataset | None" = None,
    ) -> None:
        self.name = name
        self.conditions = conditions
        self.labels = labels
        self.class_names = class_names
        self.image_shape = (channels, resolution, resolution)
        self._size = len(records)
        self._records: Records | None = records
        self._images: Tensor | None = None  # N C H W
        self._broken: set[int] = set()
        if in_memory and self._size * channels * resolution**2 <= IN_MEMORY_BYTES:
            self._images = self._decode_all(records)
            self._records = None  # so that workers needn't get them

    @property
    def num_classes(self) -> int | None:
        """The number of classes; None without labels."""
        return None if self.class_names is None else len(self.class_names)

    @property
    def has_labels(self) -> bool:
        return self.labels is not None

    @property
    def has_conditions(self) -> bool:
        return self.conditions is not None

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The items at `indices`, fetched together: what a DataLoader, or a Subset, calls for a batch."""
        rows = torch.as_tensor(indices)
        if self._images is None:
            images = torch.stack([self._decode(index) for index in indices])
        else:
            images = self._images[rows]
        tensors = {"images": images}
        if self.labels is not None:
            tensors["labels"] = self.labels[rows]
        if self.conditions is not None:
            tensors["conditions"] = self.conditions.__getitems__(indices).tensors["images"]
        return Batch(tensors)

    @staticmethod
    def collate(batch: Batch) -> dict[str, Tensor]:
        """The batch (B, C, H, W), (B,) of a DataLoader whose dataset is an `ImageDataset` or a Subset of one."""
        return batch.tensors

    def count_parts(self, most: int = 256) -> int:
        """Into how many parts `read_part` divides the set, from its size alone: of about 1,000 images, if they can."""
        return min(self._size, max(16, min(most, self._size // 1000)))

    def read_part(self, part: int, parts: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Key and item of each image of one of `parts` parts, in their order; decoded ahead by a pool of threads."""
        indices = range(part * self._size // parts, (part + 1) * self._size // parts)
        for index, item in zip(indices, decode_ahead(self.__getitem__, indices), strict=True):
            yield f"{index:09}", item

    @property
    def fingerprint(self) -> str:
        """
        16 hexadecimal digits that tell one set from another: over size and shape, all labels, class names, and the
        pixels of `FINGERPRINTED` images from all over the set. A change to another image of a larger set isn't seen.
        """
        count = min(FINGERPRINTED, self._size)
        indices = torch.linspace(0, self._size - 1, count, dtype=torch.float64).long()
        labels = [] if self.labels is None else [self.labels.numpy().tobytes()]
        names = "\n".join(self.class_names or ())
        found = self.__getitems__(indices.tolist()).tensors
        pixels = [found[name].numpy().tobytes() for name in ("images", "conditions") if name in found]
        return short_hash(repr((self._size, self.image_shape)).encode(), names.encode(), *labels, *pixels)

    def _decode(self, index: int) -> Tensor:
        assert self._records is not None
        record = self._records[index]
        try:
            return torch.from_numpy(decode_image(record, self.image_shape[-1], self.image_shape[0]).copy())  # writable
        except Exception as error:
            self._broken.add(index)
            raise BrokenImageError(
                f"{self._describe(record, index)} can't be decoded ({reason(error)}). Replace it under the same name, "
                "and `resume` takes the run on; without it, the data set would be another one (broken images met by "
                f"this process so far: {len(self._broken)})"
            ) from error

    def _decode_all(self, records: Records) -> Tensor:
        images = torch.empty((self._size, *self.image_shape), dtype=torch.uint8)
        pixels = images.numpy()  # the same memory

        def fill(start: int) -> tuple[int, list[str]]:
            """Decode one chunk in place; its size, and what is broken in it."""
            broken = []
            chunk = records[start : start + CHUNK]
            for index, record in enumerate(chunk, start):
                try:
                    pixels[index] = decode_image(record, self.image_shape[-1], self.image_shape[0])
                except Exception as error:
                    broken.append(f"{self._describe(record, index)} ({reason(error)})")
            return len(chunk), broken

        broken: list[str] = []
        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,
            tqdm(total=self._size, desc=f"decoding {self.name}", unit="image", delay=1, disable=None) as bar,
        ):
            for done, broken_here in pool.map(fill, range(0, self._size, CHUNK)):
                bar.update(done)
                broken += broken_here
        if broken:
            more = f"; and {len(broken) - MAX_NAMED} more" if len(broken) > MAX_NAMED else ""
            raise BrokenImageError(
                f"{len(broken)} of {self._size} images can't be decoded: {'; '.join(broken[:MAX_NAMED])}{more}. "
                "Remove or replace them; a run that is to be resumed needs them replaced under their names."
            )
        return images

    def _describe(self, record: Record | None, index: int) -> str:
        if record is not None and record["bytes"] is None and record["path"] is not None:
            return record["path"]
        name = f"row {index} of {self.name}"
        return name if record is None or record["path"] is None else f"{name}, {record['path']}"
