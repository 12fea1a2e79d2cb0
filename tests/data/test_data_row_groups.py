"""Shares of streamed parquet files: disjoint, complete, equally long, and read by whom they belong to."""

import io
from collections import Counter

import datasets
import pytest
from gray_images import GREY, flat, values
from torch.utils.data import DataLoader

from diffusion_bridge_vq.data import row_groups, stream_images

SIZES = (7, 13, 1, 22)  # rows of the files, in row groups of at most 5
TOTAL = sum(SIZES)


def encoded(value):
    buffer = io.BytesIO()
    flat(value).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gray")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    start = 0
    for number, size in enumerate(SIZES):
        rows = range(start, start + size)
        columns = {"image": [{"bytes": encoded(v), "path": None} for v in rows], "label": [v % 2 for v in rows]}
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(folder / f"train-{number}.parquet", batch_size=5)
        start += size
    return folder


def share(folder, index, count, **options):
    streamed = stream_images(str(folder), **GREY, **options)
    assert streamed.share(index, count)
    return streamed


@pytest.mark.parametrize("count", [1, 2, 3, 5, TOTAL])
def test_shares_are_disjoint_and_equally_long(folder, count):
    left_out = set()
    for epoch in range(3):
        shares = []
        for index in range(count):
            streamed = share(folder, index, count)
            streamed.set_epoch(epoch)
            items = list(streamed)
            assert all(item["labels"] == int(item["images"].unique()) % 2 for item in items)
            shares.append(values(items))
        assert {len(part) for part in shares} == {TOTAL // count}
        seen = Counter(value for part in shares for value in part)
        assert max(seen.values()) == 1 and len(seen) == TOTAL // count * count
        left_out |= set(range(TOTAL)) - set(seen)
    assert len(left_out) > TOTAL % count or TOTAL % count == 0  # others in each epoch


def test_an_order_follows_from_seed_and_epoch(folder):
    orders = []
    for seed in (0, 1):
        for epoch in (0, 1):
            streamed = share(folder, 1, 2, seed=seed)
            streamed.set_epoch(epoch)
            orders.append(values(streamed))
            streamed.set_epoch(epoch + 5)
            list(streamed)
            streamed.set_epoch(epoch)
            assert values(streamed) == orders[-1]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize(("workers", "batch_size"), [(1, 4), (2, 4), (3, 2)])
def test_workers_divide_the_share(folder, workers, batch_size):
    """Each process has as many batches, without a word from another."""
    seen, lengths = Counter(), set()
    for index in range(2):
        loader = DataLoader(share(folder, index, 2), batch_size=batch_size, num_workers=workers, drop_last=True)
        batches = list(loader)
        lengths.add(len(batches))
        seen.update(value for batch in batches for value in batch["images"][:, 0, 0, 0].tolist())
    slots = 2 * workers
    assert lengths == {TOTAL // slots // batch_size * workers} and max(seen.values()) == 1


def test_only_the_own_row_groups_are_read(folder, monkeypatch):
    """Two shares overlap in one row group at most."""
    read, original = [], row_groups.RowGroups._read

    def spy(self, file, group):
        read.append((file, group))
        return original(self, file, group)

    monkeypatch.setattr(row_groups.RowGroups, "_read", spy)
    whole = len(row_groups.RowGroups([str(f) for f in sorted(folder.glob("*.parquet"))], ["image"]).units)
    counts = []
    for index in range(3):
        list(share(folder, index, 3))
        counts.append(len(read) - sum(counts))
    assert len(set(read)) == whole == 11 and sum(counts) <= whole + 2


def test_files_stay_together_where_there_are_many(folder, monkeypatch):
    monkeypatch.setattr("diffusion_bridge_vq.data.streaming.FEW_SHARDS", 4)
    found = values(share(folder, 0, 1, buffer_size=1))
    starts = [sum(SIZES[:number]) for number in range(len(SIZES))]
    blocks = [found.index(start) for start in starts]
    for start, block, size in zip(starts, blocks, SIZES, strict=True):
        assert found[block : block + size] == list(range(start, start + size))


def test_the_buffer_loses_nothing():
    for buffer_size in (1, 3, 50):
        assert sorted(row_groups.shuffled(iter(range(20)), buffer_size, [0])) == list(range(20))
    assert list(row_groups.shuffled(iter(range(20)), 1, [0])) == list(range(20))
    assert list(row_groups.shuffled(iter(range(20)), 9, [0])) != list(range(20))


def test_a_file_that_is_gone_is_named(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "set")
    streamed = share(tmp_path / "set", 0, 2, buffer_size=1)
    for file in (tmp_path / "set").glob("*.parquet"):
        file.unlink()
    with pytest.raises(OSError, match=r"set can't be read on: .*train-\d\.parquet"):
        list(streamed)
