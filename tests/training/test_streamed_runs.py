"""Runs whose data are streamed from shards: resumed exactly, and refused when the data have changed."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Features, Image
from PIL import Image as PILImage
from tiny_run import config, state

from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.training import E2EConfig, VQConfig, train

RUN = {"streaming": True, "shuffle_buffer": 30, "batch_size": 16, "max_train_steps": 8, "checkpoint_every": 3}


def write_shards(folder, count=120, shards=3):
    """Digits as parquet files, as the Hub has them: more than seven batches an epoch, not divisible by them."""
    folder.mkdir()
    digits = load_images("digits", resolution=8, channels=1)
    features = Features({"image": Image(), "label": ClassLabel(num_classes=10)})
    for shard in range(shards):
        rows = []
        for i in range(shard, count, shards):
            file = io.BytesIO()
            PILImage.fromarray(digits[i]["images"][0].numpy()).save(file, "PNG")
            rows.append({"image": {"bytes": file.getvalue(), "path": f"{i}.png"}, "label": int(digits[i]["labels"])})
        table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
        pq.write_table(table, folder / f"train-{shard:05d}-of-{shards:05d}.parquet")


def test_a_resumed_run_reads_on_where_it_stopped(tmp_path):
    """Across the end of an epoch, from the middle of one, end-to-end with flips."""
    write_shards(tmp_path / "shards")
    run = {**RUN, "dataset": str(tmp_path / "shards"), "random_flip": True, "class_conditional": True}
    train(config(E2EConfig, tmp_path / "whole", **run))
    with pytest.raises(
        ValueError, match="ended after step 1, before unet had been trained"
    ):  # in mid-epoch; it is saved
        train(config(E2EConfig, tmp_path / "parts", **run, max_train_time=1e-9))
    train(config(E2EConfig, tmp_path / "parts", **run, resume=True))
    for name in ("model", "ema", "optimizer", "random-0"):
        whole, parts = state(tmp_path / "whole", 8, name), state(tmp_path / "parts", 8, name)
        assert [key for key in whole if not torch.equal(whole[key], parts[key])] == [], name


def test_other_data_are_refused(tmp_path):
    write_shards(tmp_path / "shards")
    run = {**RUN, "dataset": str(tmp_path / "shards"), "max_train_steps": 3}
    train(config(VQConfig, tmp_path / "run", **run))
    with pytest.raises(ValueError, match="num_workers: 0 then, 1 now"):
        train(config(VQConfig, tmp_path / "run", **run, num_workers=1, resume=True))
    (tmp_path / "shards" / "train-00002-of-00003.parquet").unlink()
    with pytest.raises(ValueError, match=r"data have changed.*fingerprint.*init_from"):
        train(config(VQConfig, tmp_path / "run", **run, resume=True))
    assert (tmp_path / "run" / "checkpoints" / "step-00000003").is_dir()


def test_what_was_not_streamed_is_not_gone_on_with_as_a_stream(tmp_path):
    write_shards(tmp_path / "shards")
    run = {**RUN, "dataset": str(tmp_path / "shards"), "max_train_steps": 3}
    train(config(VQConfig, tmp_path / "run", **run | {"streaming": False}))
    with pytest.raises(ValueError, match=r"data have changed.*num_workers: None then, 0 now"):
        train(config(VQConfig, tmp_path / "run", **run, resume=True))


def test_an_epoch_without_a_batch_is_named(tmp_path):
    write_shards(tmp_path / "shards", count=10)
    with pytest.raises(ValueError, match="10 images to train on, fewer than one batch of 16"):
        train(config(VQConfig, tmp_path / "run", **RUN, dataset=str(tmp_path / "shards")))


def test_workers_that_fill_no_batch_are_named(tmp_path):
    """Three workers have 10 of the 30 images each, and `drop_last` leaves them out, epoch after epoch."""
    write_shards(tmp_path / "shards", count=30)
    with pytest.raises(ValueError, match=r"no batch of 16 images .* 3 workers .* fewer `num_workers`"):
        train(config(VQConfig, tmp_path / "run", **RUN, dataset=str(tmp_path / "shards"), num_workers=3))
    assert not (tmp_path / "run" / "checkpoints").exists()  # nothing was learned
