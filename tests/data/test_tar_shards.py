"""Tar shards that are shared by their numbers of samples, and the numbers themselves."""

import io
import tarfile
from collections import Counter

import pytest
from shard_files import encoded, sample, write_tar

from diffusion_bridge_vq.data import stream_images, tar_shards
from diffusion_bridge_vq.data.tar_shards import TarShards, count_samples, count_samples_together

SIZES = (5, 11, 0, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """18 samples of three files each; one shard has none."""
    folder, value = tmp_path_factory.mktemp("tars"), 0
    for number, size in enumerate(SIZES):
        members = []
        for _ in range(size):
            members += sample(f"part.{number}/{value:03}" if number else f"{value:03}", value)
            value += 1
        write_tar(folder / f"train-{number}.tar", [*members, ("._hidden.png", b"0")])
    return folder


def shared(folder) -> TarShards:
    stream = stream_images(str(folder), resolution=8, channels=1)
    assert stream.share(0, 1) == len(SIZES)
    return stream._shared[0]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_shares_are_disjoint_and_equally_long(folder, count):
    shards = shared(folder)
    for epoch in range(2):
        shares = [[row["png"]["bytes"] for row in shards.share(i, count, [0, epoch])] for i in range(count)]
        assert {len(share) for share in shares} == {18 // count}
        seen = Counter(image for share in shares for image in share)
        assert max(seen.values()) == 1 and set(seen) <= {encoded(value) for value in range(18)}
    orders = [[row["png"]["bytes"] for row in shards.share(0, 1, [0, epoch])] for epoch in range(4)]
    assert any(order != orders[0] for order in orders)


def test_samples_are_counted_as_datasets_reads_them(folder):
    assert count_samples([str(folder / f"train-{number}.tar") for number in range(4)]) == list(SIZES)


def test_names_of_every_kind(tmp_path):
    """Folders with dots, several dots, none, hidden files, a folder's own entry, a key that comes again later."""
    names = [
        "a.png",
        "a.cls",
        "b.seg.png",
        "b.cls",
        "a.png",
        "noending",
        "__meta.json",
        ".b.json",
        "x.y/c.png",
        "d/c.png",
    ]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("folder.d"), None)
        folder = tarfile.TarInfo("real.folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"123"))
    from datasets.packaged_modules.webdataset.webdataset import WebDataset
    from datasets.utils.file_utils import ArchiveIterable

    iterator = ((name, io.BytesIO(b"1")) for name, _ in ArchiveIterable.from_urlpath(str(tmp_path / "a.tar")))
    expected = [example["__key__"] for example in WebDataset._get_pipeline_from_tar("a", iterator)]
    assert count_samples([str(tmp_path / "a.tar")]) == [len(expected)] == [6]


def test_a_shard_that_lost_samples_is_named(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "tars")
    shards = shared(tmp_path / "tars")
    write_tar(tmp_path / "tars" / "train-1.tar", sample("000", 0))
    with pytest.raises(ValueError, match=r"train-1\.tar' has fewer samples than the 11 that it had at first"):
        list(shards.share(0, 1, [0]))


def test_an_error_of_any_kind_is_passed_on(monkeypatch):
    """Else the other processes would wait."""

    def fail(file):
        raise RuntimeError(f"no network for {file}")

    monkeypatch.setattr(tar_shards, "_count_once", fail)
    passed_on = []
    with pytest.raises(OSError, match="samples of b can't be counted: no network for b"):
        count_samples_together(["a", "b"], 1, 2, lambda found: passed_on.append(found) or [[1], found])
    assert passed_on == [["the samples of b can't be counted: no network for b"]]


def test_counting_in_several_rounds(monkeypatch):
    """So that no process waits for all files of another: three processes, two files of each at a time."""
    monkeypatch.setattr(tar_shards, "_count_once", int)
    monkeypatch.setattr(tar_shards, "MAX_OPEN", 2)
    files = [str(number) for number in range(8)]
    rounds = [[[0, 3], [1, 4], [2, 5]], [[6], [7], []]]
    for rank in range(3):
        asked = []

        def exchange(found, asked=asked):
            asked.append(found)
            return rounds[len(asked) - 1]

        assert count_samples_together(files, rank, 3, exchange) == list(range(8))
        assert asked == [found[rank] for found in rounds]
