"""Parquet files, here or on the Hub, as row groups of known size: any range of their rows is read alone."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .shards import parquet_rows

# Files that are open at a time to read how many rows they have.
MAX_OPEN = 16


class RowGroups:
    """
    The rows of parquet files, whose row groups can be put into another order.

    Args:
        files (`list[str]`): paths or addresses.
        columns (`list[str]`): what is read of each row.
        whole_files (`bool`, *optional*, defaults to `False`): keep the row groups of a file together.
    """

    def __init__(self, files: list[str], columns: list[str], whole_files: bool = False) -> None:
        self.columns = columns
        with ThreadPoolExecutor(MAX_OPEN) as pool:
            sizes = list(pool.map(_count_rows, files))
        self.units: list[list[tuple[str, int, int]]] = []  # file, row group and rows of what stays together
        for file, groups in zip(files, sizes, strict=True):
            unit = [(file, group, rows) for group, rows in enumerate(groups) if rows]
            self.units += [unit] if whole_files else [[one] for one in unit]
        self.num_rows, self.num_parts = sum(map(sum, sizes)), len(self.units)

    def share(self, index: int, count: int, seed: list[int]) -> Iterator[dict[str, Any]]:
        """
        One of `count` equal shares of all rows, with the units in a random order. Less than `count` rows are in none.
        No other row group is read than those that overlap the share.
        """
        size = self.num_rows // count
        order = np.random.default_rng(seed).permutation(len(self.units))
        groups = [group for unit in order for group in self.units[unit]]
        start, stop, position = index * size, (index + 1) * size, 0
        for file, group, rows in groups:
            first, last = max(start - position, 0), min(stop - position, rows)
            if first < last:
                yield from self._read(file, group)[first:last]
            position += rows

    def _read(self, file: str, group: int) -> list[dict[str, Any]]:
        import pyarrow.parquet as pq
        from fsspec.core import url_to_fs

        system, path = url_to_fs(file)
        with system.open(path, "rb") as opened:
            rows: list[dict[str, Any]] = pq.ParquetFile(opened).read_row_group(group, columns=self.columns).to_pylist()
        return rows


def _count_rows(file: str) -> list[int]:
    from fsspec.core import url_to_fs

    system, path = url_to_fs(file)
    with system.open(path, "rb") as opened:
        return parquet_rows(opened)


def shuffled(rows: Iterator[Any], buffer_size: int, seed: list[int]) -> Iterator[Any]:
    """The rows, each drawn from a buffer of as many that came before."""
    rng = np.random.default_rng(seed)
    buffer: list[Any] = []
    for row in rows:
        if len(buffer) < buffer_size:
            buffer.append(row)
            continue
        place = int(rng.integers(buffer_size))
        buffer[place], row = row, buffer[place]
        yield row
    rng.shuffle(buffer)
    yield from buffer
