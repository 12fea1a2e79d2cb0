"""Runs whose data are streamed from shards: resumed exactly, and refused when the data have changed."""

import dataclasses
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Features, Image
from PIL import Image as PILImage
from tiny_models import make_autoencoder
from tiny_run import assert_same_state, config

from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.data.encoded import EncodedImages
from diffusion_bridge_vq.run_folder import RunFolder
from diffusion_bridge_vq.training import E2EConfig, PixelCNNConfig, VQConfig, build_objective, train
from diffusion_bridge_vq.training.data import open_images
from diffusion_bridge_vq.training.distributed.accelerate import make_accelerator
from diffusion_bridge_vq.training.monitoring.validation import make_validation

SMALL = {"resolution": 8, "lr_warmup_steps": 1, "log_every": 1, "image_every": 0, "report_to": "none"}
PLAIN = {"batch_size": 16, "max_train_steps": 8, "checkpoint_every": 3}
RUN = PLAIN | {"streaming": True, "shuffle_buffer": 30}


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
    assert_same_state(tmp_path / "whole", tmp_path / "parts", 8, ("model", "ema", "optimizer", "random-0"))


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
    run = {**PLAIN, "dataset": str(tmp_path / "shards"), "max_train_steps": 3}
    train(config(VQConfig, tmp_path / "run", **run))
    with pytest.raises(ValueError, match=r"data have changed.*num_workers: None then, 0 now"):
        train(config(VQConfig, tmp_path / "run", **run, streaming=True, resume=True))


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


def test_validation_of_a_stream_is_that_of_the_loaded_split(tmp_path):
    """Of two files, read in the order of the loaded set; classes are numbered by their names."""
    write_shards(tmp_path / "data", count=60)
    (tmp_path / "data" / "train-00001-of-00003.parquet").rename(
        tmp_path / "data" / "validation-00000-of-00001.parquet"
    )
    run = PLAIN | {"dataset": str(tmp_path / "data"), "validation_split": "validation"}
    run |= {"validate_every": 1, "class_conditional": True}
    found = []
    for streaming in (True, False):
        folder = tmp_path / str(streaming)
        settings = config(E2EConfig, folder, **run | {"streaming": streaming})
        accelerator = make_accelerator(settings)
        images = open_images(settings)
        torch.manual_seed(0)
        objective = build_objective(settings, images.num_classes, images.class_names).eval()
        validation = make_validation(settings, accelerator, images)
        found.append(validation(objective, {}))
    assert found[0] == pytest.approx(found[1], rel=1e-6) and len(found[0]) >= 1


def test_a_pixelcnn_is_trained_on_a_stream(tmp_path):
    """Which is encoded once; held-out images score it, and it goes on where it was interrupted."""
    write_shards(tmp_path / "shards", count=60)
    vqvae = make_autoencoder(in_channels=1, out_channels=1, sample_size=8)
    vqvae.save_pretrained(tmp_path / "vq" / "vqvae")
    settings = RUN | {"dataset": str(tmp_path / "shards"), "init_from": tmp_path / "vq", "max_train_steps": 4}
    settings |= {"prior": {"width": 8, "num_layers": 2}, "eval_every": 2, "checkpoint_every": 2}
    whole = PixelCNNConfig.from_preset("digits", output_dir=tmp_path / "run", **SMALL, **settings)
    train(whole)
    records = RunFolder(tmp_path / "run").read_metrics()
    assert [record["step"] for record in records if "heldout/bits_per_code" in record] == [2, 4]
    encoded = EncodedImages(RunFolder(tmp_path / "run").encoded)
    assert encoded.num_images == 60 and encoded.encoding.what == "codes"
    train(dataclasses.replace(whole, max_train_steps=5, resume=True))
    assert RunFolder(tmp_path / "run").read_metrics()[-1]["step"] == 5
