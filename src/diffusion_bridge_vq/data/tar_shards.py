"""Tar shards, here or on the Hub, whose samples are counted, so that any range of them is read alone."""

import contextlib
import itertools
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .images import short_hash
from .row_groups import MAX_OPEN
from .tables import first_line

if TYPE_CHECKING:
    import datasets

# Takes what this process found and returns what each process found.
Exchange = Callable[[Any], list[Any]]
_SAMPLE = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # webdataset's: what comes before the first dot of a name


class TarShards:
    """
    The samples of tar shards, which can be put into another order.

    Args:
        files (`list[str]`): paths or addresses.
        stream (`datasets.IterableDataset`): their samples; its shards are these files.
        sizes (`list[int]`): how many samples each has.
    """

    def __init__(self, files: list[str], stream: "datasets.IterableDataset", sizes: list[int]) -> None:
        self._files, self._stream, self._sizes = files, stream, sizes
        self.num_rows, self.num_parts = sum(sizes), len(files)

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


def count_samples(files: list[str]) -> list[int]:
    """How many samples each tar shard here has, by its headers alone."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_count, files))


def count_samples_together(files: list[str], index: int, count: int, exchange: Exchange) -> list[int]:
    """
    How many samples each tar shard on the Hub has. To find the headers is to read what lies between them, so each of
    `count` processes reads its own shards, a few at a time, and `exchange` passes on what it found. The counts stay in
    the cache of `datasets`: an address has a commit in it.

    Raises:
        OSError: this process or another can't read a shard.
    """
    sizes, at_a_time = [0] * len(files), MAX_OPEN * count
    for start in range(0, len(files), at_a_time):  # so that no process waits for all files of another
        part = slice(start + index, start + at_a_time, count)
        with ThreadPoolExecutor(MAX_OPEN) as pool:
            found = list(pool.map(_try_to_count, files[part]))
        for rank, counts in enumerate(exchange(found)):
            failed = next((error for error in counts if isinstance(error, str)), None)
            if failed is not None:
                raise OSError(failed)
            sizes[start + rank : start + at_a_time : count] = counts
    return sizes


def _try_to_count(file: str) -> int | str:
    """The number, or the error of any kind: other processes wait for an answer."""
    try:
        return _count_once(file)
    except Exception as error:
        return f"the samples of {file} can't be counted: {first_line(error).rstrip(':')}"


def _count_once(file: str) -> int:
    from datasets import config

    cached = Path(config.HF_DATASETS_CACHE, "diffusion_bridge_vq", f"{short_hash(file.encode())}.txt")
    if cached.is_file() and re.fullmatch(r"\d{1,12}", text := cached.read_text(errors="replace")):
        return int(text)
    number = _count(file)
    with contextlib.suppress(OSError):  # then it is counted again
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(f".{os.getpid()}")
        partial.write_text(str(number))
        partial.replace(cached)
    return number


def _count(file: str) -> int:
    from fsspec.core import url_to_fs

    count, before = 0, None
    system, path = url_to_fs(file)
    with system.open(path, "rb") as opened, tarfile.open(fileobj=opened) as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # else all headers stay in memory
            name = member.name.rpartition("/")[2]
            found = _SAMPLE.fullmatch(member.name) if member.isreg() and not name.startswith((".", "__")) else None
            if found is not None and found[1] != before:
                count, before = count + 1, found[1]
    return count
