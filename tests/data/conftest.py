"""What all tests of data use: a cache of their own, and small shards."""

import pytest
from shard_files import SIZES, encoded, sample, write_parquet, write_tar


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test sees another's cache, or the user's, or the Hub."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def parquet(tmp_path):
    """Three files; every image has a gray value of its own, 0..41, and its parity as label."""
    start = 0
    for number, size in enumerate(SIZES):
        rows = range(start, start + size)
        records = [{"bytes": encoded(value), "path": None} for value in rows]
        write_parquet(tmp_path / "gray" / f"train-{number}.parquet", records, [v % 2 for v in rows], batch_size=5)
        start += size
    return tmp_path / "gray"


@pytest.fixture
def tars(tmp_path):
    for shard in range(2):
        members = [member for i in range(6) for member in sample(f"{shard}-{i}", 6 * shard + i)]
        write_tar(tmp_path / "shards" / f"train-{shard:04}.tar", members)
    return tmp_path / "shards"
