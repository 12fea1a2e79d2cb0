"""Folders of images in all their layouts, and CSV lists next to them."""

import csv
import os
import tracemalloc
from pathlib import Path

import datasets
import pytest
from gray_images import GREY, flat, values

import diffusion_bridge_vq.data.folders as folders_module
import diffusion_bridge_vq.data.images as images_module
from diffusion_bridge_vq.data import load_images


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    flat(value).save(path)


def test_class_folders(tmp_path):
    save(tmp_path / "dog" / "test_1.png", 1)  # the name of a file makes no split
    save(tmp_path / "dog" / "2.JPEG", 2)
    save(tmp_path / "cat" / "9.png", 3)
    save(tmp_path / "cat" / "nested" / "1.png", 4)
    (tmp_path / "dog" / "._2.jpg").write_bytes(b"hidden")
    save(tmp_path / ".hidden" / "1.png", 5)
    (tmp_path / "notes.txt").write_text("no image")
    dataset = load_images(str(tmp_path), **GREY)
    assert list(zip(values(dataset), dataset.labels.tolist(), strict=True)) == [(3, 0), (4, 0), (2, 1), (1, 1)]
    assert dataset.class_names == ["cat", "dog"] and dataset.name == tmp_path.name

    (tmp_path / "dog" / "2.JPEG").unlink()  # seen at once: there is no cache that could be stale
    assert values(load_images(str(tmp_path), **GREY)) == [3, 4, 1]


def test_class_ids_follow_the_sorted_names_even_of_numbers(tmp_path):
    for name, value in (("10", 1), ("2", 2), ("1", 3)):
        save(tmp_path / name / "a.png", value)
    dataset = load_images(str(tmp_path), **GREY)
    assert dataset.class_names == ["1", "10", "2"]
    assert dict(zip(values(dataset), dataset.labels.tolist(), strict=True)) == {3: 0, 1: 1, 2: 2}


def test_split_folders_share_their_classes(tmp_path):
    save(tmp_path / "train" / "cat" / "a.png", 1)
    save(tmp_path / "train" / "dog" / "a.png", 2)
    save(tmp_path / "val" / "dog" / "a.png", 3)
    save(tmp_path / "test" / "a.png", 4)
    save(tmp_path / "test" / "b.png", 5)
    train, validation, test = (
        load_images(str(tmp_path), split=split, **GREY) for split in ("train", "validation", "test")
    )
    assert values(train) == [1, 2] and train.labels.tolist() == [0, 1]
    assert values(validation) == [3] and validation.labels.tolist() == [1] and validation.num_classes == 2
    assert values(test) == [4, 5] and test.labels is None and test.class_names is None and test.num_classes is None
    assert set(test[0]) == {"images"}
    with pytest.raises(ValueError, match="no split 'dev'; choose one of test, train, validation"):
        load_images(str(tmp_path), split="dev", **GREY)


def test_flat_and_single_class_folders_have_no_labels(tmp_path):
    save(tmp_path / "a.png", 1)
    save(tmp_path / "b.png", 2)
    flat_set = load_images(str(tmp_path), **GREY)
    assert values(flat_set) == [1, 2] and flat_set.labels is None
    with pytest.raises(ValueError, match=r"no split 'test'; choose one of train"):
        load_images(str(tmp_path), split="test", **GREY)
    save(tmp_path / "only" / "images" / "c.png", 3)
    assert load_images(str(tmp_path / "only"), **GREY).labels is None


def test_a_folder_in_the_order_of_os_walk(tmp_path, monkeypatch):
    """Against a listing in Python; some names sort otherwise where case or bytes count less."""
    monkeypatch.setattr(folders_module, "NAMES_AT_A_TIME", 3)  # several arrays, and batches across folders
    names = ["b", "a", "B", "é", "z", "10", "9", "ß", "a b", "日", "\U0001f600", "_"]
    for number, name in enumerate(names):
        for inside in ("", f"f-{name}", f"f-{name}/deeper"):
            save(tmp_path / "set" / "only" / inside / f"{name}.png", number)
            save(tmp_path / "set" / "only" / inside / f"{name}.0.png", number)
    (tmp_path / "set" / "link").symlink_to(tmp_path / "set" / "only" / "f-a")
    expected = []
    for parent, folders, files in os.walk(tmp_path / "set", followlinks=True):
        folders.sort()
        expected += [os.path.join(parent, name) for name in sorted(files)]
    table = folders_module._read_image_folder(tmp_path / "set", "train")
    found = [row["path"] for row in table.cast_column("image", datasets.Image(decode=False))["image"]]
    assert len(expected) == 6 * len(names) + 4 and found == expected
    assert table["label"] == [int("/only/" in path) for path in expected]
    assert table.features["label"].names == ["link", "only"]
    dataset = load_images(str(tmp_path / "set"), **GREY)
    assert values(dataset)[:2] == [names.index("a")] * 2 and dataset.labels.tolist() == table["label"][:]


def test_names_that_are_no_text_are_refused(tmp_path):
    try:
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))).touch()
    except OSError:
        pytest.skip("this file system has text for names only")
    with pytest.raises(ValueError, match=r"has file names that aren't UTF-8; rename .*\.png"):
        load_images(str(tmp_path), **GREY)


@pytest.mark.parametrize("layout", ["flat", "classes"])
def test_a_large_folder_is_not_listed_in_python(tmp_path, layout, monkeypatch):
    monkeypatch.setattr(folders_module, "NAMES_AT_A_TIME", 500)
    monkeypatch.setattr(images_module, "IN_MEMORY_BYTES", 0)
    count, classes = 6000, 1 if layout == "flat" else 3
    for number in range(count):
        file = tmp_path / "set" / ("." if layout == "flat" else f"class{number % classes}") / f"picture{number:06}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    for name in ("a", "b"):
        save(tmp_path / "few" / name / "1.png", 1)
    load_images(str(tmp_path / "few"), **GREY)  # imports and caches
    tracemalloc.start()
    try:
        dataset = load_images(str(tmp_path / "set"), **GREY)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(dataset) == count and dataset.num_classes == (None if layout == "flat" else 3)
    # a name alone takes more than 60 bytes as a Python string; labels are 8 bytes, a few times
    labels = 0 if layout == "flat" else 8 * count
    assert kept < 100_000 + labels and peak < 200_000 + 4 * labels < 60 * count + labels


def test_a_relative_folder(tmp_path, monkeypatch):
    save(tmp_path / "here" / "a.png", 7)
    monkeypatch.chdir(tmp_path)
    assert values(load_images("here", **GREY)) == values(load_images("./here", **GREY)) == [7]
    monkeypatch.chdir(tmp_path / "here")
    assert load_images(".", **GREY).name == "here"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert values(load_images("~/here", **GREY)) == [7]


def test_ambiguous_folders_are_refused(tmp_path):
    save(tmp_path / "a" / "cat" / "1.png", 1)
    save(tmp_path / "a" / "dog" / "1.png", 1)
    save(tmp_path / "a" / "1.png", 1)
    with pytest.raises(ValueError, match=r"1 of 3 images lie outside the class folders .*1\.png"):
        load_images(str(tmp_path / "a"), **GREY)
    save(tmp_path / "b" / "train" / "1.png", 1)
    save(tmp_path / "b" / "plane" / "1.png", 1)
    with pytest.raises(ValueError, match=r"'train/1\.png', and outside of them, such as 'plane/1\.png'"):
        load_images(str(tmp_path / "b"), **GREY)


def test_broken_files_of_a_folder_are_named(tmp_path):
    save(tmp_path / "a.png", 1)
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of 2 images can't be decoded: .*b\.png \(not an image"):
        load_images(str(tmp_path), **GREY)


def write_csv(path, rows, header=("filename", "label"), encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as lines:
        csv.writer(lines).writerows([header, *rows])


def test_csv_lists(tmp_path):
    for i in range(6):
        save(tmp_path / "images" / f"n{i}.png", i)
    write_csv(tmp_path / "train.csv", [("n4.png", "n02"), ("n0.png", "n01"), ("n2.png", "n02")], encoding="utf-8-sig")
    write_csv(tmp_path / "val.csv", [("n5.png", "n09"), ("n1.png", "n03")])
    train = load_images(str(tmp_path), **GREY)
    assert values(train) == [4, 0, 2] and train.labels.tolist() == [1, 0, 1] and train.class_names == ["n01", "n02"]
    validation = load_images(str(tmp_path), split="validation", **GREY)
    assert values(validation) == [5, 1] and validation.labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match="no split 'test'; choose one of train, validation"):
        load_images(str(tmp_path), split="test", **GREY)

    write_csv(tmp_path / "test.csv", [("n0.png", "n01"), ("gone.png", "n01")])
    with pytest.raises(ValueError, match=r"1 of 2 .*gone\.png \(No such file"):
        load_images(str(tmp_path), split="test", **GREY)


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([("a.png", "x")], ("file", "label"), r"columns \['file', 'label'\]; expected filename and label"),
        ([("a.png", "x"), ("b.png", "")], ("filename", "label"), "row 2 of .* lacks a filename or a label"),
        ([("a.png", "x"), ("b.png",)], ("filename", "label"), "row 2 of .* lacks a filename or a label"),
        ([], ("filename", "label"), "split 'train' of .* is empty"),
    ],
)
def test_bad_csv_lists(tmp_path, rows, header, message):
    save(tmp_path / "images" / "a.png", 1)
    write_csv(tmp_path / "train.csv", rows, header)
    with pytest.raises(ValueError, match=message):
        load_images(str(tmp_path), **GREY)


def test_a_circle_of_links_shows_each_image_once(tmp_path):
    save(tmp_path / "cat" / "a.png", 1)
    save(tmp_path / "dog" / "b.png", 2)
    (tmp_path / "cat" / "back").symlink_to(tmp_path)
    (tmp_path / "dog" / "self").symlink_to(tmp_path / "dog")
    (tmp_path / "dog" / "itself").symlink_to(tmp_path / "dog" / "itself")
    dataset = load_images(str(tmp_path), **GREY)
    assert values(dataset) == [1, 2] and dataset.class_names == ["cat", "dog"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    """Leaving it out would train on fewer classes without a word."""
    save(tmp_path / "cat" / "a.png", 1)
    save(tmp_path / "dog" / "b.png", 2)
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(ValueError, match=r"dog' can't be read \(Permission denied\); make it readable"):
        load_images(str(tmp_path), **GREY)
    save(tmp_path / "lost+found" / "c.png", 3)
    monkeypatch.setattr(os, "scandir", scandir)
    assert values(load_images(str(tmp_path), **GREY)) == [1, 2]


def test_names_of_any_script(tmp_path):
    for name in ("é è", "日本", "\U0001f408", "it's [1]"):
        save(tmp_path / name / f"{name}.png", 1)
    assert load_images(str(tmp_path), **GREY).class_names == sorted(["é è", "日本", "\U0001f408", "it's [1]"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"train\.csv' is empty; expected filename and label"),
        (b"\n", r"train\.csv' has the columns \[\]; expected filename and label"),
        ("filename,label\na.png,café\n".encode("latin-1"), r"train\.csv' isn't in UTF-8 \(line 2\); save it in"),
        ("filename,label\na.png,x\n".encode("utf-16"), r"train\.csv' isn't in UTF-8 \(line 1\)"),
        (
            b"filename;label\na.png;x\n",
            r"columns \['filename;label'\]; expected filename and label",
        ),
        (b"filename,label,label\na.png,x,y\n", r"columns \['filename', 'label', 'label'\]; expected filename and"),
        (b"filename,label\na,b.png,x\n", r"row 1 of .*train\.csv' has 3 values for 2 columns: .*in quotes"),
        (b"filename,label\na.png,x\na.png,y\n", r"row 2 of .* labels 'a\.png' as 'y', but a row before it as 'x'"),
        (b'filename,label\n"a.png,x\n', r"train\.csv' can't be read as CSV: "),
        (
            b"filename,label\na.png,x\nb.png,x\n",
            r"1 of 2 files that .*train\.csv' names aren't there, .*b\.png",
        ),
        (b"filename,label\nimages,x\n", "1 of 1 files"),
    ],
)
def test_csv_files_are_named_with_what_is_wrong(tmp_path, content, message):
    save(tmp_path / "images" / "a.png", 1)
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_images(str(tmp_path), **GREY)


def test_a_list_that_is_no_file(tmp_path):
    """Its labels were left out without a word."""
    save(tmp_path / "images" / "a.png", 1)
    (tmp_path / "train.csv").symlink_to(tmp_path / "not-mounted" / "train.csv")
    with pytest.raises(ValueError, match=r"train\.csv' isn't a regular file, or a link to nothing"):
        load_images(str(tmp_path), **GREY)


def test_the_folder_of_a_run_is_no_data_set(tmp_path):
    """Its grids of pictures were taken for images."""
    save(tmp_path / "samples-000004.png", 1)
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="is the folder of a run, whose pictures are grids"):
        load_images(str(tmp_path), **GREY)


def test_a_path_that_looks_local_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    save(tmp_path / "data" / "toys" / "a.png", 7)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the Hub"))
    message = r"data/toyz' doesn't exist; .*Did you mean 'data/toys'\? If you mean .*: hf://datasets/data/toyz\."
    with pytest.raises(ValueError, match=message):
        load_images("data/toyz", **GREY)
    for text in ("data/toys/a/b", "x" * 5000 + "/", "~nobody/x"):
        with pytest.raises(ValueError, match=r"doesn't exist; give a folder"):
            load_images(text, **GREY)


def test_a_hub_prefix_names_a_dataset_of_the_hub(tmp_path, monkeypatch):
    save(tmp_path / "data" / "toys" / "a.png", 7)
    monkeypatch.chdir(tmp_path)
    asked = []
    table = datasets.Dataset.from_dict({"image": [flat(3)]}, features=datasets.Features({"image": datasets.Image()}))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: asked.append(name) or table)
    assert values(load_images("hf://datasets/data/toys", **GREY)) == [3] and asked == ["data/toys"]


def test_what_is_not_on_the_hub_either_gets_a_suggestion(tmp_path, monkeypatch):
    save(tmp_path / "data" / "toys" / "a.png", 7)
    monkeypatch.chdir(tmp_path)
    for error, kind in (
        (datasets.exceptions.DatasetNotFoundError("it doesn't exist on the Hub"), ValueError),
        (ConnectionError("no answer"), ConnectionError),
    ):
        monkeypatch.setattr(datasets, "load_dataset", lambda name, split, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(kind, match=r"'dat/toys'.*Did you mean 'data/toys'\?"):
            load_images("dat/toys", **GREY)


def test_bad_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for missing in (str(tmp_path / "gone"), "./gone", "../gone", "~/gone-from-home"):
        with pytest.raises(ValueError, match=r"gone.* doesn't exist; give a folder"):
            load_images(missing, **GREY)
    (tmp_path / "file.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"file\.png' is a file; give a folder"):
        load_images("file.png", **GREY)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty' holds no images; expected image files, parquet files"):
        load_images("empty", **GREY)
    for nothing in ("", None):
        with pytest.raises(ValueError, match=rf"dataset is {nothing!r}; give 'digits', a folder or the id"):
            load_images(nothing, **GREY)


def test_the_fingerprint_of_a_folder(tmp_path):
    def fingerprint():
        return load_images(str(tmp_path), **GREY).fingerprint

    for name in ("cat/a", "cat/b", "dog/a"):
        save(tmp_path / f"{name}.png", 5)
    found = [fingerprint()]
    assert fingerprint() == found[0]
    for change in (
        lambda: save(tmp_path / "cat" / "b.png", 6),
        lambda: save(tmp_path / "dog" / "c.png", 5),
        lambda: (tmp_path / "cat" / "b.png").rename(tmp_path / "dog" / "0.png"),  # the same images in the same order
        lambda: (tmp_path / "dog").rename(tmp_path / "hound"),
    ):
        change()
        found.append(fingerprint())
    assert len(set(found)) == 5
