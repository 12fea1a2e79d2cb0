"""Parquet files: splits, the column of images, and the column of labels."""

import os

import datasets
import pytest
import torch
from gray_images import GREY, flat, values

from diffusion_bridge_vq.data import load_images

NAMES = datasets.ClassLabel(names=["cat", "dog"])


def write_parquet(path, gray, labels=None, label_feature=None, image_names=("image",), **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [flat(value) for value in gray] for name in image_names}
    features = {name: datasets.Image() for name in image_names}
    if labels is not None:
        columns["label"], features["label"] = labels, label_feature
    for name, column in more.items():
        columns[name], features[name] = column, datasets.Value("float32")
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(path)


@pytest.mark.parametrize("inside", ["", "data"])
def test_parquet_folder(tmp_path, inside):
    folder = tmp_path / "pets"
    write_parquet(folder / inside / "train-00000-of-00002.parquet", [10, 20], [1, 0], NAMES)
    write_parquet(folder / inside / "train-00001-of-00002.parquet", [30], [1], NAMES)
    write_parquet(folder / inside / "validation-00000-of-00001.parquet", [40], [0], NAMES)
    (folder / "LICENSE").write_text("free")
    train = load_images(str(folder), **GREY)
    assert values(train) == [10, 20, 30]
    assert train.labels.tolist() == [1, 0, 1] and train.labels.dtype == torch.int64
    assert (train.class_names, train.num_classes, train.name) == (["cat", "dog"], 2, "pets")
    assert values(load_images(str(folder), split="validation", **GREY)) == [40]
    with pytest.raises(ValueError, match=r"split 'test' of .*pets.*train.*validation"):
        load_images(str(folder), split="test", **GREY)


def test_a_rewritten_parquet_file_is_read_anew(tmp_path):
    file = tmp_path / "train.parquet"
    write_parquet(file, [10, 20])
    assert values(load_images(str(tmp_path), **GREY)) == [10, 20]
    before = file.stat()
    write_parquet(file, [30, 40])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    assert values(load_images(str(tmp_path), **GREY)) == [30, 40]


def test_a_file_that_is_no_parquet(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"can't load split 'train' .*[Pp]arquet"):
        load_images(str(tmp_path), **GREY)


def test_broken_rows_of_parquet_are_named(tmp_path):
    broken = {"bytes": b"nothing", "path": "b.png"}
    table = datasets.Dataset.from_dict(
        {"image": [flat(1), broken, None, broken]}, features=datasets.Features({"image": datasets.Image()})
    )
    (tmp_path / "pets").mkdir()
    table.to_parquet(tmp_path / "pets" / "train.parquet")
    with pytest.raises(ValueError, match=r"3 of 4 .*row 1 of pets, b\.png .*row 2 of pets \(no image data\)"):
        load_images(str(tmp_path / "pets"), **GREY)


def test_image_column(tmp_path):
    two = tmp_path / "two"
    write_parquet(two / "train.parquet", [1, 2], image_names=("left", "right"), score=[0.5, 0.25])
    with pytest.raises(ValueError, match="several columns hold images: left, right; pass one of them as image_column"):
        load_images(str(two), **GREY)
    assert values(load_images(str(two), image_column="right", **GREY)) == [1, 2]
    for wrong in ("score", "middle"):
        with pytest.raises(
            ValueError, match=rf"'{wrong}' holds no images; .*left \(Image\), right \(Image\), score \(float32\)"
        ):
            load_images(str(two), image_column=wrong, **GREY)
    none = tmp_path / "none"
    write_parquet(none / "train.parquet", [], image_names=(), score=[0.5])
    with pytest.raises(ValueError, match=r"no column holds images: .*score \(float32\).*image_column"):
        load_images(str(none), **GREY)


@pytest.mark.parametrize(
    ("kind", "labels", "ids", "names"),
    [
        ("string", ["pear", "apple", "pear"], [1, 0, 1], ["apple", "pear"]),
        ("int32", [30, -5, 4], [2, 0, 1], ["-5", "4", "30"]),
    ],
)
def test_labels_that_are_no_classes_yet(tmp_path, kind, labels, ids, names):
    write_parquet(tmp_path / "train.parquet", [1, 2, 3], labels, datasets.Value(kind))
    assert load_images(str(tmp_path), **GREY).labels is None
    dataset = load_images(str(tmp_path), label_column="label", **GREY)
    assert dataset.labels.tolist() == ids and dataset.class_names == names


def test_label_column_mistakes(tmp_path):
    write_parquet(tmp_path / "train.parquet", [1, 2], [0.5, 1.5], datasets.Value("float32"))
    with pytest.raises(ValueError, match=r"no label_column 'class'; .*image \(Image\), label \(float32\)"):
        load_images(str(tmp_path), label_column="class", **GREY)
    with pytest.raises(ValueError, match="'label' has type float32"):
        load_images(str(tmp_path), label_column="label", **GREY)
    with pytest.raises(ValueError, match="'image' has type Image"):
        load_images(str(tmp_path), label_column="image", **GREY)


def test_missing_labels(tmp_path):
    write_parquet(tmp_path / "some" / "train.parquet", [1, 2, 3], [0, -1, None], NAMES)
    with pytest.raises(ValueError, match="2 of 3 rows have no label in 'label'"):
        load_images(str(tmp_path / "some"), **GREY)
    write_parquet(tmp_path / "all" / "train.parquet", [1, 2], [-1, -1], NAMES)  # labels kept back, as in a contest
    assert load_images(str(tmp_path / "all"), **GREY).labels is None
    with pytest.raises(ValueError, match="2 of 2 rows"):
        load_images(str(tmp_path / "all"), label_column="label", **GREY)


def test_two_class_columns_are_no_labels_until_one_is_chosen(tmp_path, monkeypatch):
    table = datasets.Dataset.from_dict(
        {"image": [flat(1), flat(2)], "fine": [1, 0], "coarse": [0, 1]},
        features=datasets.Features({"image": datasets.Image(), "fine": NAMES, "coarse": NAMES}),
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda dataset, split: table)
    assert load_images("some/set", **GREY).labels is None
    assert load_images("some/set", label_column="fine", **GREY).labels.tolist() == [1, 0]
