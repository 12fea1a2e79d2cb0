"""Streams against the rows that were written, and a resumed epoch against the whole one."""

import io
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from gray_images import GREY, values
from PIL import Image
from shard_files import SIZES, encoded, overwrite_labels, sample, write_parquet, write_tar
from torch.utils.data import DataLoader, IterableDataset

from diffusion_bridge_vq.data import BrokenImageError, load_images, stream_images


def test_the_head_is_what_is_stored_first(parquet):
    streamed = stream_images(str(parquet), **GREY)
    assert values(streamed.head(9)) == list(range(9))
    assert len(streamed.head(100)) == sum(SIZES)
    assert values(streamed) != list(range(sum(SIZES)))


def test_every_row_comes_once_an_epoch_with_its_label(parquet):
    streamed = stream_images(str(parquet), **GREY)
    assert isinstance(streamed, IterableDataset) and streamed.name == "gray"
    assert streamed.num_classes == 3 and streamed.class_names == ["even", "odd", "never"]
    orders = []
    for epoch in range(3):
        streamed.set_epoch(epoch)
        items = list(streamed)
        assert sorted(values(items)) == list(range(sum(SIZES)))
        assert all(item["labels"] == int(item["images"].unique()) % 2 for item in items)
        orders.append(values(items))
    item = items[0]
    assert item["images"].dtype == torch.uint8 and item["images"].shape == (1, 2, 2)
    assert item["labels"].dtype == torch.int64 and item["labels"].shape == ()
    assert len({tuple(order) for order in [*orders, list(range(42))]}) == 4
    # what came before neither changes an epoch's order nor is needed for it
    torch.manual_seed(7)
    np.random.seed(7)
    again = stream_images(str(parquet), **GREY)
    for epoch in (2, 0, 1):
        again.set_epoch(epoch)
        assert values(again) == orders[epoch]
    assert values(stream_images(str(parquet), seed=1, **GREY)) not in orders


def test_pixels_are_those_of_the_loaded_set(tmp_path):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (9, 5, 3), dtype=np.uint8) for _ in range(5)]
    write_parquet(tmp_path / "rgb" / "train.parquet", [Image.fromarray(array) for array in pixels], [0, 1, 2, 0, 1])
    loaded = load_images(str(tmp_path / "rgb"), resolution=4)
    expected = {item["images"].numpy().tobytes(): int(item["labels"]) for item in loaded}
    found = {
        item["images"].numpy().tobytes(): int(item["labels"])
        for item in stream_images(str(tmp_path / "rgb"), resolution=4)
    }
    assert len(expected) == 5 and found == expected


def test_the_buffer_mixes_as_far_as_it_reaches(tmp_path):
    write_parquet(tmp_path / "long" / "train.parquet", [{"bytes": encoded(v), "path": None} for v in range(256)])
    near = values(stream_images(str(tmp_path / "long"), buffer_size=1, **GREY))
    far = values(stream_images(str(tmp_path / "long"), buffer_size=256, **GREY))
    assert near == list(range(256))
    # the mean distance of two places drawn at random is a third of the length
    assert abs(np.mean(np.abs(np.array(far) - np.arange(256))) - 256 / 3) < 15


def batches_of(folder, workers, batch_size=4, **options):
    """A loader as the training loop prepares it."""
    accelerator = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=0, non_blocking=True)
    )
    streamed = stream_images(str(folder), buffer_size=8, **GREY, **options)
    loader = DataLoader(streamed, batch_size=batch_size, drop_last=True, num_workers=workers)
    return accelerator, accelerator.prepare(loader)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["parquet", "tars"])
def test_a_resumed_epoch_goes_on_as_the_whole_one(kind, workers, request):
    folder = request.getfixturevalue(kind)
    options = {"label_column": "cls"} if kind == "tars" else {}
    batch_size = 2 if kind == "tars" else 4
    _, loader = batches_of(folder, workers, batch_size, **options)
    whole = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        whole.append(list(loader))
        seen = Counter(v for batch in whole[-1] for v in batch["images"][:, 0, 0, 0].tolist())
        total = 12 if kind == "tars" else sum(SIZES)
        assert max(seen.values()) == 1 and total - (workers or 1) * (batch_size - 1) <= len(seen) <= total
    assert not torch.equal(whole[0][0]["images"], whole[1][0]["images"])

    for epoch, done in ((0, 2), (1, 1), (1, len(whole[1]) - 1)):
        torch.manual_seed(epoch + done)  # nothing of this shows in the order
        accelerator, loader = batches_of(folder, workers, batch_size, **options)
        loader.set_epoch(epoch)
        rest = list(accelerator.skip_first_batches(loader, done))
        assert len(rest) == len(whole[epoch]) - done > 0
        for one, other in zip(rest, whole[epoch][done:], strict=True):
            assert torch.equal(one["images"], other["images"]) and torch.equal(one["labels"], other["labels"])


def test_workers_of_a_single_file_share_its_row_groups(tmp_path):
    write_parquet(
        tmp_path / "one" / "train.parquet", [{"bytes": encoded(v), "path": None} for v in range(40)], batch_size=10
    )
    streamed = stream_images(str(tmp_path / "one"), **GREY)
    if not hasattr(datasets.IterableDataset, "reshard"):
        pytest.skip("this version of datasets can't divide files")
    batches = [batch["images"][:, 0, 0, 0].tolist() for batch in DataLoader(streamed, batch_size=5, num_workers=2)]
    assert sorted(value for batch in batches for value in batch) == list(range(40))
    # batches come from the workers in turn, and each has two of the four groups for itself
    groups = [{value // 10 for batch in batches[worker::2] for value in batch} for worker in (0, 1)]
    assert len(groups[0]) == len(groups[1]) == 2 and not groups[0] & groups[1]


def test_tar_shards(tars):
    loaded = load_images(str(tars), **GREY)
    assert values(loaded) == list(range(12)) and loaded.labels is None and loaded.name == "shards"
    labeled = load_images(str(tars), label_column="cls", **GREY)
    assert labeled.labels.tolist() == [v % 3 for v in range(12)] and labeled.class_names == ["0", "1", "2"]
    described = load_images(str(tars), label_column="json.label", **GREY)
    assert described.labels.tolist() == list(range(12)) and described.class_names[:2] == ["0", "5"]
    assert load_images(str(tars), label_column="json.name", **GREY).class_names == ["n0", "n1", "n2"]

    assert all("labels" not in item for item in stream_images(str(tars), **GREY))
    for column, label in (("cls", lambda v: v % 3), ("json.label", lambda v: 5 * v)):
        streamed = stream_images(str(tars), label_column=column, **GREY)
        assert streamed.num_classes is None and streamed.class_names is None
        assert {(int(i["images"].unique()), int(i["labels"])) for i in streamed} == {(v, label(v)) for v in range(12)}


def test_tar_shards_in_data_and_other_kinds_of_images(tmp_path):
    for kind, name in (("JPEG", "jpg"), ("WEBP", "webp")):
        folder = tmp_path / name
        buffer = io.BytesIO()
        Image.new("L", (2, 2), 99).convert("RGB").save(buffer, kind, quality=100)
        write_tar(folder / "data" / "validation-0.tar", [(f"a{i}.{name}", buffer.getvalue()) for i in range(3)])
        for source in (load_images, stream_images):
            found = [item["images"] for item in source(str(folder), split="validation", **GREY)]
            assert len(found) == 3 and all((image.int() - 99).abs().max() <= 2 for image in found)


def test_an_archive_beside_what_was_unpacked_is_no_shard(tmp_path):
    for inside in ("images/cat", ""):
        folder = tmp_path / f"set{len(inside)}"
        (folder / inside).mkdir(parents=True)
        (folder / inside / "a.png").write_bytes(encoded(3))
        write_tar(folder / "all.tar", [("b.png", encoded(4))])
        assert values(load_images(str(folder), **GREY)) == [3]
        with pytest.raises(ValueError, match="can't be streamed; give a folder of parquet files or tar shards"):
            stream_images(str(folder), **GREY)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_images_are_named(tmp_path, workers):
    write_tar(
        tmp_path / "set" / "train.tar",
        [("a.png", encoded(1)), ("b.png", encoded(2)), ("c.png", b"no image"), ("d.png", encoded(4))],
    )
    streamed = stream_images(str(tmp_path / "set"), buffer_size=1, **GREY)  # in their own order
    streamed.set_epoch(3)
    with pytest.raises(
        ValueError,
        match=r"image 2 of epoch 3 of set, c\.png, .*train\.tar can't be decoded \(not an image.*"
        r"\(2 images read before it by this process\)",
    ):
        list(DataLoader(streamed, batch_size=4, num_workers=workers))


def test_a_row_without_image_or_label_is_named(tmp_path):
    rows = [{"bytes": encoded(v), "path": f"{v}.png"} for v in range(3)]
    write_parquet(tmp_path / "labels" / "train.parquet", rows, [0, 1, -1])
    with pytest.raises(ValueError, match=r"image 2 of epoch 0 of labels, 2\.png has no label in 'label' but -1"):
        list(stream_images(str(tmp_path / "labels"), buffer_size=1, **GREY))
    write_parquet(tmp_path / "images" / "train.parquet", [rows[0], None, rows[2]])
    with pytest.raises(ValueError, match=r"image 1 of epoch 0 of images can't be decoded \(no image data\)"):
        list(stream_images(str(tmp_path / "images"), buffer_size=1, **GREY))


def test_labels_kept_back_are_none(tmp_path):
    write_parquet(tmp_path / "test.parquet", [{"bytes": encoded(v), "path": None} for v in range(2)], [-1, -1])
    streamed = stream_images(str(tmp_path), split="test", **GREY)
    assert streamed.num_classes is None and all(set(item) == {"images"} for item in streamed)
    asked = stream_images(str(tmp_path), split="test", label_column="label", **GREY)
    with pytest.raises(ValueError, match="has no label in 'label'"):
        list(asked)


@pytest.mark.parametrize(
    ("kind", "labels", "names"),
    [
        ("string", ["pear", "apple", "pear", "fig"], ["apple", "fig", "pear"]),
        ("int32", [30, -5, 4, 30], ["-5", "4", "30"]),
    ],
)
def test_integers_and_strings_get_the_ids_of_the_loaded_set(tmp_path, kind, labels, names):
    for part in (slice(0, 2), slice(2, 4)):
        rows = [{"bytes": encoded(value), "path": None} for value in range(4)[part]]
        write_parquet(tmp_path / f"train-{part.start}.parquet", rows, labels[part], datasets.Value(kind))
    streamed, loaded = (source(str(tmp_path), label_column="label", **GREY) for source in (stream_images, load_images))
    assert streamed.class_names == loaded.class_names == names and streamed.num_classes == 3
    expected = {(int(item["images"].unique()), int(item["labels"])) for item in loaded}
    assert {(int(item["images"].unique()), int(item["labels"])) for item in streamed} == expected
    assert expected == {(value, names.index(str(label))) for value, label in enumerate(labels)}


def test_a_label_without_class_is_named(tmp_path):
    rows = [{"bytes": encoded(value), "path": None} for value in range(3)]
    write_parquet(tmp_path / "train.parquet", rows, [0, 1, 2])
    overwrite_labels(tmp_path / "train.parquet", [0, 1, 3])
    with pytest.raises(ValueError, match="'label' has the label 3, but names for 3 classes only, 0 to 2"):
        load_images(str(tmp_path), **GREY)
    with pytest.raises(ValueError, match=r"image 2 of .*no label in 'label' but 3, of 3 classes"):
        list(stream_images(str(tmp_path), buffer_size=1, **GREY))


def test_a_replaced_image_keeps_the_fingerprint(tmp_path):
    """The advice for a broken image works: with the image replaced in its row, a run resumes."""
    rows = [{"bytes": encoded(value), "path": None} for value in range(5)]
    write_parquet(tmp_path / "train.parquet", [*rows[:3], {"bytes": b"broken", "path": None}, rows[4]])
    broken = stream_images(str(tmp_path), **GREY)
    with pytest.raises(BrokenImageError, match="replace the image in its row"):
        list(broken)
    write_parquet(tmp_path / "train.parquet", rows)
    repaired = stream_images(str(tmp_path), **GREY)
    assert repaired.fingerprint == broken.fingerprint and sorted(values(repaired)) == list(range(5))


def two_columns(path, images, conditions):
    features = datasets.Features({"image": datasets.Image(), "edges": datasets.Image()})
    rows = {"image": images, "edges": conditions}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def test_a_column_comes_with_its_image(tmp_path):
    """From parquet files and from tar shards, for one reader and for each of several processes."""
    records = [{"bytes": encoded(value), "path": f"{value}.png"} for value in range(24)]
    two_columns(tmp_path / "parquet" / "train.parquet", records[:12], records[12:])
    members = [
        (f"{v:02}.{kind}", encoded(v + 12 * (kind != "png"))) for v in range(12) for kind in ("edges.png", "png")
    ]
    write_tar(tmp_path / "tar" / "train.tar", members)
    for kind, columns in (("parquet", ("image", "edges")), ("tar", ("png", "edges.png"))):
        options = {"image_column": columns[0], "condition_column": columns[1], **GREY}
        streamed = stream_images(str(tmp_path / kind), **options)
        alone = stream_images(str(tmp_path / kind), image_column=columns[0], **GREY)
        assert streamed.fingerprint != alone.fingerprint
        loaded = load_images(str(tmp_path / kind), **options)
        for items in (streamed, loaded):
            assert all(torch.equal(item["images"] + 12, item["conditions"]) for item in items)
            assert sorted(values(items)) == list(range(12))
        seen = []
        for process in range(2):
            streamed.share(process, 2)
            items = list(streamed)
            assert all(torch.equal(item["images"] + 12, item["conditions"]) for item in items)
            seen += values(items)
        assert sorted(seen) == list(range(12))
    with pytest.raises(ValueError, match="condition_column 'lines' holds no images; the columns are"):
        stream_images(str(tmp_path / "parquet"), condition_column="lines", **GREY)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_broken_image_is_named_with_its_column(tmp_path, processes):
    records = [{"bytes": encoded(value), "path": f"{value}.png"} for value in range(4)]
    two_columns(
        tmp_path / "set" / "train.parquet", records, [*records[:2], {"bytes": b"x", "path": "e.png"}, records[3]]
    )
    streamed = stream_images(str(tmp_path / "set"), condition_column="edges", buffer_size=1, **GREY)
    if processes > 1:
        streamed.share(1, processes)  # its first image is the third
    number = 2 if processes == 1 else 0
    with pytest.raises(BrokenImageError, match=rf"image {number} of epoch 0 of set, column edges, e\.png can't be"):
        list(streamed)
    two_columns(tmp_path / "gone" / "train.parquet", [None, *records[1:]], records)
    with pytest.raises(BrokenImageError, match=r"image 0 of epoch 0 of gone can't be decoded \(no image data\)"):
        list(stream_images(str(tmp_path / "gone"), condition_column="edges", buffer_size=1, **GREY))


def test_columns_that_are_not_there(tmp_path, parquet):
    with pytest.raises(ValueError, match=r"image_column 'left' holds no images; .*image \(Image\)"):
        stream_images(str(parquet), image_column="left", **GREY)
    with pytest.raises(ValueError, match=r"no label_column 'class'; .*label \(ClassLabel\)"):
        stream_images(str(parquet), label_column="class", **GREY)
    with pytest.raises(ValueError, match="'label,other': a stream has one column of labels; write the joined texts"):
        stream_images(str(parquet), label_column="label,other", **GREY)
    write_tar(tmp_path / "text" / "train.tar", sample("a", 1))
    with pytest.raises(ValueError, match=r"'json\.name' holds strings, whose class ids aren't known before all are"):
        stream_images(str(tmp_path / "text"), label_column="json.name", **GREY)


def test_what_cannot_be_streamed(tmp_path, parquet):
    for nothing, message in (
        ("digits", "'digits' can't be streamed"),
        (str(tmp_path), "can't be streamed; give a folder of parquet"),
        ("./gone", "doesn't exist"),
        ("", "dataset is ''"),
    ):
        with pytest.raises(ValueError, match=message):
            stream_images(nothing, **GREY)
    with pytest.raises(ValueError, match=r"can't load split 'dev' of .*train"):
        stream_images(str(parquet), split="dev", **GREY)
    with pytest.raises(ValueError, match="buffer_size is 0"):
        stream_images(str(parquet), buffer_size=0, **GREY)
    write_parquet(tmp_path / "empty" / "train.parquet", [])
    with pytest.raises(ValueError, match="split 'train' of 'empty' is empty"):
        stream_images(str(tmp_path / "empty"), **GREY)
    for name, content in (("none", b"\0" * 10240), ("broken", b"no tar")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.tar").write_bytes(content)
        for source in (load_images, stream_images):
            with pytest.raises(ValueError, match=rf"can't load split 'train' of .*{name}"):
                source(str(tmp_path / name), **GREY)


def test_a_file_that_is_gone_is_named(parquet):
    streamed = stream_images(str(parquet), buffer_size=1, **GREY)
    (parquet / "train-1.parquet").unlink()
    found = []
    with pytest.raises(OSError, match=r"gray can't be read on: .*train-1\.parquet.*`resume`") as caught:
        found.extend(values([item]) for item in streamed)
    assert f"({len(found)} images read before it" in str(caught.value) and len(found) < sum(SIZES)


def test_fingerprint(parquet):
    def fingerprint(**options):
        return stream_images(str(parquet), **({**GREY, **options})).fingerprint

    first = fingerprint()
    assert first == fingerprint() == fingerprint(seed=3, buffer_size=9) and len(first) == 16 and int(first, 16) >= 0
    found = {first, fingerprint(resolution=3), fingerprint(channels=3), fingerprint(label_column="label")}
    assert len(found) == 3  # naming the column that is chosen anyway changes nothing
    for change in (
        lambda: write_parquet(parquet / "train-3.parquet", [{"bytes": encoded(1), "path": None}], [0]),  # a new file
        lambda: write_parquet(
            parquet / "train-1.parquet", [{"bytes": encoded(1), "path": None}], [0]
        ),  # a shorter one
        lambda: write_parquet(parquet / "train-0.parquet", [{"bytes": encoded(9), "path": None}], [1]),
    ):
        change()
        changed = fingerprint()
        assert changed not in found
        found.add(changed)
