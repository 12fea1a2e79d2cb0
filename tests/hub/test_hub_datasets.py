"""Datasets of a Hub over HTTP: loaded, streamed, streamed into a run that is killed, and with answers that fail."""

import io
import itertools
import os
import signal
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Features, Image
from PIL import Image as PILImage
from tiny_run import config, state
from torch.utils.data import DataLoader
from warm_processes import start

from diffusion_bridge_vq.data import load_images, stream_images
from diffusion_bridge_vq.training import E2EConfig, train

GREY = {"resolution": 8, "channels": 1}
SHARDS, ROWS = 6, 20  # and every image has a gray value of its own in its first pixel
NUMBERS = itertools.count()
FEATURES = Features({"image": Image(), "label": ClassLabel(names=["even", "odd"])})


def encoded(value):
    pixels = np.random.default_rng(value).integers(0, 256, (8, 8), dtype=np.uint8)
    pixels[0, 0] = value
    file = io.BytesIO()
    PILImage.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def shard(values):
    rows = [{"image": {"bytes": encoded(v), "path": f"{v}.png"}, "label": v % 2} for v in values]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema), file)
    return file.getvalue()


@pytest.fixture(scope="module")
def files():
    names = [f"data/train-{i:05}-of-{SHARDS:05}.parquet" for i in range(SHARDS)]
    train = {name: shard(range(i * ROWS, (i + 1) * ROWS)) for i, name in enumerate(names)}
    return {
        **train,
        "data/test-00000-of-00001.parquet": shard(range(200, 205)),
        "README.md": b"---\nlicense: mit\n---\n",
    }


@pytest.fixture
def gray(hub, files):
    """A dataset of its own for each test: what was downloaded once would come from the cache."""
    name = f"user/gray{next(NUMBERS)}"
    hub.add(name, files)
    return name


def values(items):
    return [int(item["images"][0, 0, 0]) for item in items]


def test_loaded_and_streamed(hub, files, gray, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    streamed, local = stream_images(gray, **GREY), stream_images(str(tmp_path), **GREY)
    assert streamed.name == gray and streamed.class_names == ["even", "odd"]
    orders = []
    for epoch in range(2):
        streamed.set_epoch(epoch)
        local.set_epoch(epoch)
        items = list(streamed)
        orders.append(values(items))
        assert orders[-1] == values(local) and sorted(orders[-1]) == list(range(SHARDS * ROWS))
        for item in items:
            value = int(item["images"][0, 0, 0])
            assert item["labels"] == value % 2
            np.testing.assert_array_equal(item["images"][0], PILImage.open(io.BytesIO(encoded(value))))
    assert orders[0] != orders[1]
    downloads = [request for request in hub.log if request.method == "GET" and request.path.endswith(".parquet")]
    assert downloads and {request.status for request in downloads} == {206}  # ranges: no file is copied

    loaded = load_images(gray, **GREY)
    assert values(loaded) == list(range(SHARDS * ROWS)) and loaded.class_names == ["even", "odd"]
    assert loaded.labels.tolist() == [v % 2 for v in range(SHARDS * ROWS)] and loaded.name == gray
    for source in (load_images, stream_images):
        assert sorted(values(source(gray, split="test", **GREY))) == list(range(200, 205))
        with pytest.raises(ValueError, match=rf"can't load split 'dev' of '{gray}'.*train"):
            source(gray, split="dev", **GREY)
        with pytest.raises(ValueError, match=r"can't load split 'train' of 'user/typo'.*doesn't exist on the Hub"):
            source("user/typo", **GREY)
    hub.fail("GET", "/api/datasets/", status=500, times=1000)
    assert values(load_images(gray, **GREY)) == values(loaded)  # the copy of before


def test_image_files_of_a_repository(hub):
    """They are opened one by one, by their address."""
    hub.add("user/pets", {f"train/{'dog' if v % 2 else 'cat'}/{v}.png": encoded(v) for v in range(6)})
    streamed = stream_images("user/pets", **GREY)
    assert streamed.class_names == ["cat", "dog"]
    assert sorted((value, int(item["labels"])) for item in streamed for value in values([item])) == [
        (v, v % 2) for v in range(6)
    ]
    hub.fail("GET", r"/5\.png$", status=500, times=1000)
    with pytest.raises(OSError, match=r"user/pets can't be read on: .*500 .*/5\.png"):
        list(stream_images("user/pets", **GREY))


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 429, "times": 3}, {"cut": 100, "times": 2}])
def test_what_fails_for_a_while_is_asked_for_again(hub, gray, fault):
    streamed = stream_images(gray, buffer_size=5, **GREY)
    whole = values(streamed)
    items = iter(streamed)
    found = values([next(items) for _ in range(10)])
    hub.fail("GET", r"\.parquet$", **fault)
    assert found + values(items) == whole and not hub.faults


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"status": 500}, r"500 Internal Server Error.*train-0000\d-of-00006\.parquet"),
        ({"status": 404}, r"404 Not Found.*train-0000\d-of-00006\.parquet"),
        ({"cut": 100}, "peer closed connection|Server disconnected"),
    ],
)
def test_what_fails_for_good_is_named(hub, gray, fault, message, workers):
    streamed = stream_images(gray, buffer_size=5, **GREY)
    batches = iter(DataLoader(streamed, batch_size=4, num_workers=workers, prefetch_factor=1 if workers else None))
    next(batches)
    hub.fail("GET", r"\.parquet$", **fault, times=1000)
    with pytest.raises(OSError, match=rf"{gray} can't be read on: .*({message})") as caught:
        list(batches)
    assert "images read before it" in str(caught.value) and "`resume` takes a run on" in str(caught.value)
    assert "0 images" not in str(caught.value)


@pytest.mark.parametrize("source", [load_images, stream_images])
@pytest.mark.parametrize("fault", [{"status": 500}, {"cut": 0}])
@pytest.mark.parametrize("place", ["/api/datasets/", "/tree/", r"\.parquet$"])
def test_a_hub_that_fails_from_the_start(hub, gray, source, fault, place):
    hub.fail("GET", place, **fault, times=1000)
    with pytest.raises(OSError, match=rf"{gray}'? can't be read"):
        source(gray, **GREY)


def tar(values):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for value in values:
            member = tarfile.TarInfo(f"{value:03}.png")
            member.size = len(encoded(value))
            archive.addfile(member, io.BytesIO(encoded(value)))
    return file.getvalue()


@pytest.fixture
def tars(hub):
    """Three tar files of 5, 4 and 3 images."""
    name = f"user/tars{next(NUMBERS)}"
    hub.add(name, {f"train-{n}.tar": tar(range(5 * n, 5 * n + size)) for n, size in enumerate((5, 4, 3))})
    return name


def test_tar_files_are_counted_by_all_and_shared(hub, tars):
    """Two processes: each counts its own files, learns the rest from the other, and gets half of the images."""
    streams = [stream_images(tars, **GREY) for _ in range(2)]
    counted = {}

    def exchange(rank):
        def gather(found):
            counted[rank] = found
            return [[5, 3], [4]]  # of the first and third file, and of the second

        return gather

    assert [stream.share(rank, 2, exchange(rank)) for rank, stream in enumerate(streams)] == [3, 3]
    assert counted == {0: [5, 3], 1: [4]}
    seen = [values(stream) for stream in streams]
    assert [len(own) for own in seen] == [6, 6]
    assert sorted(seen[0] + seen[1]) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12]


def test_tar_files_are_counted_once(hub, tars):
    stream_images(tars, **GREY).share(0, 1)
    again = stream_images(tars, **GREY)
    hub.fail("GET", r"\.tar$", status=500, times=1000)
    assert again.share(0, 1) == 3


def test_tar_files_that_one_process_cannot_count(hub, tars):
    """It passes on what it met, so that the others end, too."""
    first, second = (stream_images(tars, **GREY) for _ in range(2))
    hub.fail("GET", r"train-1\.tar$", status=500, times=1000)
    passed_on = []
    with pytest.raises(OSError, match=r"train-1\.tar can't be counted: .*500 "):
        second.share(1, 2, lambda found: passed_on.append(found) or [[5, 3], found])
    with pytest.raises(OSError, match=r"train-1\.tar can't be counted: .*500 "):
        first.share(0, 2, lambda found: [found, *passed_on])


def test_the_fingerprint_follows_the_content(hub, files, gray):
    def fingerprint():
        return stream_images(gray, **GREY).fingerprint

    first = fingerprint()
    hub.commit(gray, {"README.md": b"---\nlicense: cc0-1.0\n---\nOther words\n"})
    assert fingerprint() == first
    last = f"data/train-{SHARDS - 1:05}-of-{SHARDS:05}.parquet"
    changed = bytearray(files[last])  # as long as before, and no image that a fingerprint looks at
    changed[300] ^= 1
    hub.commit(gray, {last: bytes(changed)})
    assert fingerprint() != first


RUN = {
    **{"streaming": True, "shuffle_buffer": 8, "batch_size": 16, "max_train_steps": 10, "checkpoint_every": 3},
    **{"random_flip": True, "validation_split": "test", "evaluate_every": 2, "evaluate_images": 4},
}


def run_until_killed(folder, dataset):
    """At step 4."""

    def evaluate(components, step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    train(config(E2EConfig, folder, **RUN, dataset=dataset), evaluate)


def test_a_run_goes_on_with_the_same_images(hub, gray, tmp_path):
    """Killed at step 4, then left by the server after step 6, against one that nothing happened to."""

    def run(folder, evaluate=lambda components, step: {}, **options):
        return train(config(E2EConfig, tmp_path / folder, **RUN, dataset=gray, **options), evaluate)

    def fail(components, step):
        if step == 6:
            hub.fail("GET", r"\.parquet$", cut=100, times=1000)
        return {}

    def newest():
        return max(path.name for path in (tmp_path / "parts" / "checkpoints").iterdir())

    run("whole")
    killed = start(run_until_killed, tmp_path / "parts", gray)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert newest() == "step-00000003"
    with pytest.raises(OSError, match=r"can't be read on: .*`resume` takes a run on from its last checkpoint"):
        run("parts", fail, resume=True)
    assert newest() in ("step-00000006", "step-00000007")  # of what was read before
    hub.faults.clear()
    run("parts", resume=True)
    for name in ("model", "ema", "optimizer", "random-0"):
        whole, parts = (state(tmp_path / folder, 10, name) for folder in ("whole", "parts"))
        assert [key for key in whole if not torch.equal(whole[key], parts[key])] == [], name
