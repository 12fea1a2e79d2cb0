"""Tar shards here, whose samples are counted, so that any range of them is read alone."""

import itertools
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import datasets

_SAMPLE = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # webdataset's: what comes before the first dot of a name


class TarShards:
    """
    The samples of tar shards, which can be put into another order.

    Args:
        files (`list[str]`): paths.
        stream (`datasets.IterableDataset`): their samples; its shards are these files.
    """

    def __init__(self, files: list[str], stream: "datasets.IterableDataset") -> None:
        self._files, self._stream = files, stream
        with ThreadPoolExecutor() as pool:
            self._sizes = list(pool.map(count_samples, files))
        self.num_rows, self.num_parts = sum(self._sizes), len(files)

    def share(self, index: int, count: int, seed: list[int]) -> Iterator[dict[str, Any]]:
        """
        One of `count` equal shares of all samples, with the shards in a random order. Less than `count` samples are in
        none. No other shard is opened than those that overlap the share.

        Raises:
            ValueError: a shard has fewer samples than it had.
        """
        size = self.num_rows // count
        start, stop, position = index * size, (index + 1) * size, 0
        for shard in np.random.default_rng(seed).permutation(len(self._files)):
            rows = self._sizes[shard]
            first, last = max(start - position, 0), min(stop - position, rows)
            if first < last:
                samples = iter(self._stream.shard(num_shards=len(self._files), index=int(shard)))
                found = 0
                for row in itertools.islice(samples, first, last):
                    found += 1
                    yield row
                if found < last - first:
                    raise ValueError(f"{self._files[shard]!r} has fewer samples than the {rows} that it had at first")
            position += rows


def count_samples(file: str) -> int:
    """How many samples a tar shard has, by its headers alone."""
    count, before = 0, None
    with tarfile.open(file) as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # else all headers stay in memory
            name = member.name.rpartition("/")[2]
            found = _SAMPLE.fullmatch(member.name) if member.isreg() and not name.startswith((".", "__")) else None
            if found is not None and found[1] != before:
                count, before = count + 1, found[1]
    return count
