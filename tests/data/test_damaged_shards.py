"""Parquet files and tar shards that are damaged, contradict each other or have no rows, loaded and streamed."""

import tarfile

import datasets
import pyarrow.parquet as pq
import pytest
from gray_images import GREY, values
from shard_files import encoded, sample, write_parquet, write_tar

from diffusion_bridge_vq.data import load_images, stream_images


@pytest.mark.parametrize("source", [load_images, stream_images])
def test_damaged_shards_are_named(tmp_path, source, parquet, tars):
    """Before anything is read."""
    (parquet / "train-1.parquet").write_bytes((parquet / "train-1.parquet").read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"train-1\.parquet' isn't a parquet file, or is cut off"):
        source(str(parquet), **GREY)
    (parquet / "train-1.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train-1\.parquet' isn't a parquet file, or is cut off"):
        source(str(parquet), **GREY)
    whole = (tars / "train-0001.tar").read_bytes()
    for size in (3 * 1024 + 512 + 1, 3 * 2 * 1024):  # inside of a member, and between two
        (tars / "train-0001.tar").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"train-0001\.tar' is cut off: it has no end mark"):
            source(str(tars), **GREY)
    (tars / "train-0001.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train-0001\.tar' isn't a tar file, or has no content"):
        source(str(tars), **GREY)


def read_all(source, folder):
    return values(source(str(folder), **GREY))


def read_share(source, folder):
    images = source(str(folder), **GREY)
    assert images.share(0, 1)
    return values(images)


def read_classes(source, folder):
    """Numbers, which are read before anything else."""
    return source(str(folder), label_column="label", **GREY)


@pytest.mark.parametrize(
    ("source", "read"),
    [(load_images, read_all), (stream_images, read_all), (stream_images, read_share), (stream_images, read_classes)],
)
def test_a_damaged_page_names_its_file(parquet, source, read):
    """What pyarrow says of it names no file."""
    file = parquet / "train-1.parquet"
    if read is read_classes:
        for one in parquet.iterdir():
            write_parquet(one, [{"bytes": encoded(5), "path": None}] * 3, [1, 2, 3], datasets.Value("int64"))
    columns = pq.read_metadata(file).row_group(0)
    column = columns.column(columns.num_columns - 1 if read is read_classes else 0)
    place = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(file.read_bytes())
    content[place : place + 20] = bytes(20)  # the header of its first page
    file.write_bytes(content)
    with pytest.raises((ValueError, OSError), match=r"can't .*train-1\.parquet"):
        read(source, parquet)


@pytest.mark.parametrize("source", [load_images, stream_images])
def test_shards_that_contradict_each_other(tmp_path, source):
    row = [{"bytes": encoded(1), "path": None}]
    write_parquet(tmp_path / "train-0.parquet", row, [0], datasets.ClassLabel(names=["cat", "dog"]))
    write_parquet(tmp_path / "train-1.parquet", row, [0], datasets.ClassLabel(names=["dog", "cat"]))
    with pytest.raises(ValueError, match=r"column 'label' of .*train-1\.parquet' are dog, cat, but cat, dog"):
        source(str(tmp_path), **GREY)
    table = pq.read_table(tmp_path / "train-0.parquet")
    pq.write_table(table.append_column("image", table.column("image")), tmp_path / "train-1.parquet")
    with pytest.raises(ValueError, match=r"train-1\.parquet' has several columns named image"):
        source(str(tmp_path), **GREY)


@pytest.mark.parametrize("source", [load_images, stream_images])
def test_shards_without_rows(tmp_path, source):
    for number, rows in enumerate(([], [{"bytes": encoded(5), "path": None}], [])):
        write_parquet(tmp_path / "some" / f"train-{number}.parquet", rows, [0] * len(rows))
    write_parquet(tmp_path / "none" / "train.parquet", [], [])
    write_tar(tmp_path / "tars" / "train-0.tar", sample("a", 5))
    write_tar(tmp_path / "tars" / "train-1.tar", [])
    assert values(source(str(tmp_path / "some"), **GREY)) == values(source(str(tmp_path / "tars"), **GREY)) == [5]
    with pytest.raises(ValueError, match=r"split 'train' of .*none.* is empty; choose another"):
        source(str(tmp_path / "none"), **GREY)


@pytest.mark.parametrize("source", [load_images, stream_images])
def test_a_row_group_without_rows(parquet, source):
    """As pyarrow and pandas write a table of none; `datasets` reads in batches of as many."""
    pq.write_table(pq.read_schema(parquet / "train-0.parquet").empty_table(), parquet / "train-1.parquet")
    with pytest.raises(ValueError, match=r"train-1\.parquet' begins with a row group of no rows; remove the file"):
        source(str(parquet), **GREY)


@pytest.mark.parametrize("source", [load_images, stream_images])
def test_members_of_a_tar_file_may_be_in_folders(tmp_path, source):
    members = [(f"{name}/{member}", data) for name in ("a", "b") for member, data in sample("é", ord(name))]
    write_tar(tmp_path / "train.tar", members)
    with tarfile.open(tmp_path / "train.tar", "a") as archive:
        folder = tarfile.TarInfo("c")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    assert sorted(values(source(str(tmp_path), label_column="cls", **GREY))) == [97, 98]


def test_names_in_cls_members_are_named(tmp_path):
    """The error was that of Python's int."""
    members = [(f"000{i}.{kind}", content) for i in (0, 1) for kind, content in (("png", encoded(i)), ("cls", b"cat"))]
    write_tar(tmp_path / "train-0.tar", members)
    with pytest.raises(ValueError, match=r"a member \.cls must hold the number of a class, such as 3, not a name"):
        load_images(str(tmp_path), **GREY)
