"""What a model draws from, stored next to latents: against numpy and Pillow, and runs that encode in each step."""

import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from encoding_work import content, recorded, train_and_record
from PIL import Image
from tiny_models import make_autoencoder, with_running_statistics
from tiny_run import assert_same_state, config, stopped_at_a_checkpoint
from warm_processes import launch

import diffusion_bridge_vq.data.encoded as encoded_module
from diffusion_bridge_vq.commands.encode_dataset import main
from diffusion_bridge_vq.data import ImageCondition, load_images
from diffusion_bridge_vq.data.encoded import EncodedImages
from diffusion_bridge_vq.data.encoded_shards import Encoding
from diffusion_bridge_vq.data.pixels import to_bytes, to_pixels
from diffusion_bridge_vq.hub import PushOptions
from diffusion_bridge_vq.hub.encoded import make_card
from diffusion_bridge_vq.training import PriorConfig, build_objective, encode_images, load_autoencoder, train
from diffusion_bridge_vq.training import encoding as encoding_module
from diffusion_bridge_vq.training.data import make_loader, open_images
from diffusion_bridge_vq.training.distributed.accelerate import make_accelerator

COUNT = 8
CONDITIONS = ["gray", "low-resolution:4", "column:edges"]
PHOTOS, EDGES = np.random.default_rng(0).integers(0, 256, (2, COUNT, 8, 8, 3), dtype=np.uint8)
RUN = {
    "channels": 3,
    "image_column": "photo",
    "batch_size": 4,
    "random_flip": True,
    "max_train_steps": 4,  # an epoch with the mirror images
    "checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A folder of two parquet files, whose images each come with another one."""
    folder = tmp_path_factory.mktemp("table")
    features = Features({name: ImageFeature() for name in ("photo", "edges")})
    for number, rows in enumerate(np.split(np.arange(COUNT), 2)):
        images = {
            name: [Image.fromarray(all_[row]) for row in rows] for name, all_ in (("photo", PHOTOS), ("edges", EDGES))
        }
        Dataset.from_dict(images, features=features).to_parquet(folder / f"train-{number:05}-of-00002.parquet")
    return folder


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("color")
    torch.manual_seed(0)
    vqvae = make_autoencoder(sample_size=8, latent_channels=4, num_vq_embeddings=8)
    with_running_statistics(vqvae).save_pretrained(folder / "vqvae")
    return folder


def truth(autoencoder, name):
    """Latents and conditions in [-1, 1] of all images, then of all mirror images, by numpy and Pillow."""
    photos, edges = (np.concatenate([images, images[:, :, ::-1]]) for images in (PHOTOS, EDGES))
    with torch.no_grad():
        latents = load_autoencoder(autoencoder).eval().encode(as_pixels(photos)).latents
    if name == "gray":
        shown = np.stack([np.array(Image.fromarray(photo).convert("L")) for photo in photos])[..., None]
    elif name == "column:edges":
        shown = edges
    else:
        shown = photos.reshape(-1, 4, 2, 4, 2, 3).astype(np.float64).mean((2, 4)).round()
    return latents, as_pixels(shown)


def as_pixels(images):
    return torch.from_numpy(np.ascontiguousarray(images)).movedim(-1, 1).float() / 127.5 - 1


def encode(folder, table, autoencoder, name, **options):
    condition = ImageCondition.parse(name, 3, 8)
    images = load_images(str(table), resolution=8, image_column="photo", condition_column=condition.column)
    options = {"precision": "float32", "mirrored": True, "condition": condition} | options
    accelerator = make_accelerator(config(PriorConfig, folder, vqvae_from=autoencoder))
    return encode_images(load_autoencoder(autoencoder), images, folder, accelerator=accelerator, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, table, autoencoder):
    folder = tmp_path_factory.mktemp("encoded")
    encode(folder, table, autoencoder, "column:edges")
    return folder


def test_encodings_without_a_condition_are_those_of_before(folder):
    """Fingerprint and description of version 0.1.0, in which there were no conditions."""
    before = Encoding(
        **{"what": "latents", "precision": "float16", "num_codes": 16, "mirrored": True, "labels": True, "parts": 16},
        **{"autoencoder": "0123456789abcdef", "normalizer": {"mean": [0.5], "variance": [2.0]}, "version": "0.1.0"},
        data={"name": "digits", "split": "test", "fingerprint": "fedcba9876543210", "resolution": 8, "channels": 1},
        class_names=["a", "b"],
    )
    assert before.fingerprint == "9c57eadcabc64e6a" and "condition" not in before.to_json()
    assert Encoding.read(folder).to_json()["condition"] == "column:edges"


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("name", CONDITIONS)
def test_each_image_keeps_its_condition(name, in_memory, table, autoencoder, tmp_path, monkeypatch):
    """And each mirror image a mirrored one; who doesn't ask doesn't get them."""
    encode(tmp_path / "a", table, autoencoder, name)
    if not in_memory:
        monkeypatch.setattr(encoded_module, "IN_MEMORY_BYTES", 0)
    latents, conditions = truth(autoencoder, name)
    encoded = EncodedImages(tmp_path / "a", with_condition=True)
    found = encoded.__getitems__(list(range(2 * COUNT)))
    torch.testing.assert_close(found["latents"], latents, atol=1e-5, rtol=1e-5)
    assert found["conditions"].dtype == torch.uint8
    assert torch.equal(found["conditions"], to_bytes(conditions))
    assert torch.equal(encoded[COUNT + 1]["conditions"], found["conditions"][COUNT + 1])
    assert EncodedImages(tmp_path / "a")[0].keys() == {"latents"}


def test_an_interrupted_encoding_keeps_what_is_there(folder, table, autoencoder, tmp_path, monkeypatch):
    write, target = encoding_module.write_shard, tmp_path / "encoded"

    def write_three(encoding, folder, part, batches):
        if part == 3:
            raise OSError("No space left on device")
        return write(encoding, folder, part, batches)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(encoding_module, "write_shard", write_three)
        encode(target, table, autoencoder, "column:edges")
    times = {path.name: path.stat().st_mtime_ns for path in target.glob("data/*.parquet")}
    assert len(times) == 3
    with pytest.raises(ValueError, match="another encoding: condition 'column:edges', not None"):
        encode(target, table, autoencoder, "column:edges", condition=None)
    encode(target, table, autoencoder, "column:edges")
    assert content(target) == content(folder)
    assert all((target / "data" / name).stat().st_mtime_ns == time for name, time in times.items())


def test_a_card_says_how_to_train(folder):
    card = make_card(Encoding.read(folder), PushOptions("user/latents"))
    assert "`condition` is an image to draw from, `column:edges`, 3 x 8 x 8 in uint8." in card
    assert "--latents user/latents --condition column:edges --output-dir" in card


# ------------------------------------------------------------------------------------------------------------- runs


READING = ("dataset", "image_column")  # of images, which a run on latents doesn't read


def settings(folder, table, autoencoder, **options):
    run = {**RUN, "folder": folder, "dataset": str(table), "vqvae_from": autoencoder, **options}
    return {name: value for name, value in run.items() if not (options.get("latents") and name in READING)}


def match(found, expected):
    """The place of each found condition among the expected ones, whose latents it must come with."""
    latents, conditions = expected
    equal = (found["conditions"][:, None] == conditions).flatten(2).all(2)
    assert (equal.sum(dim=1) == 1).all()
    places = equal.int().argmax(dim=1)
    torch.testing.assert_close(found["latents"], latents[places], atol=1e-5, rtol=1e-5)
    return sorted(places.tolist())


def test_runs_with_and_without_a_cache_see_the_same_pairs(table, autoencoder, folder, tmp_path):
    """An epoch of the cached one is all images and all mirror images; so is one that is given a folder."""
    options = {"condition": "column:edges"}
    ways = {"each step": {}, "cached": {"cache_latents": True}, "given": {"latents": folder, "dataset": "not/needed"}}
    places = {}
    for way, more in ways.items():
        train_and_record(settings(tmp_path / way, table, autoencoder, **options, **more), tmp_path / way / "pairs")
        places[way] = match(recorded(tmp_path / way / "pairs")[0], truth(autoencoder, "column:edges"))
    assert places["cached"] == places["given"] == list(range(2 * COUNT))
    assert [sorted(place % COUNT for place in places["each step"])] == [sorted([*range(COUNT)] * 2)]
    assert len({place // COUNT for place in places["each step"]}) == 2  # mirrored, too


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_stream_is_cached_with_its_conditions(name, table, autoencoder, tmp_path):
    run = settings(tmp_path / "run", table, autoencoder, condition=name, streaming=True, cache_latents=True)
    train_and_record(run, tmp_path / "pairs")
    assert match(recorded(tmp_path / "pairs")[0], truth(autoencoder, name)) == list(range(2 * COUNT))


def test_a_cached_run_resumes_bit_for_bit(table, autoencoder, tmp_path, monkeypatch):
    options = settings(None, table, autoencoder, condition="column:edges", cache_latents=True)
    train(config(PriorConfig, **options | {"folder": tmp_path / "whole"}))
    with stopped_at_a_checkpoint(monkeypatch):
        train(config(PriorConfig, **options | {"folder": tmp_path / "parts"}))
    monkeypatch.setattr(encoding_module, "write_shard", lambda *_: pytest.fail("encoded again"))
    train(config(PriorConfig, **options | {"folder": tmp_path / "parts", "resume": True}))
    assert_same_state(tmp_path / "whole", tmp_path / "parts", 4, ("model", "ema", "optimizer", "random-0"))


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [True, False])
def test_two_processes_share_images_with_their_conditions(streaming, table, autoencoder, tmp_path):
    """Each encodes and reads its own: an epoch of both is all images and all mirror images, once each."""
    name = "column:edges"
    run = settings(tmp_path / "run", table, autoencoder, condition=name, streaming=streaming, cache_latents=True)
    launch(tmp_path, train_and_record, run | {"max_train_steps": 2}, tmp_path / "pairs")
    shares = [match(found, truth(autoencoder, name)) for found in recorded(tmp_path / "pairs")]
    assert [len(share) for share in shares] == [COUNT, COUNT]
    assert sorted(place for share in shares for place in share) == list(range(2 * COUNT))


@pytest.mark.parametrize("name", CONDITIONS)
def test_noise_and_a_dry_run_have_conditions(name, table, autoencoder, tmp_path, capsys):
    """What estimates of time and memory are made of."""
    run = config(
        PriorConfig, **settings(tmp_path, table, autoencoder, condition=name, cache_latents=True, dry_run=True)
    )
    objective = build_objective(run)
    inputs = objective.random_inputs(2)
    assert inputs.keys() == {"latents", "condition"}
    assert objective(**inputs).losses["prior"].isfinite()
    train(run)
    assert "nothing was written" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------- refused


def test_an_encoding_that_does_not_fit_is_refused_before_training(table, autoencoder, folder, tmp_path):
    def refused(message, **options):
        with pytest.raises(ValueError, match=message):
            train(config(PriorConfig, **settings(tmp_path / "run", table, autoencoder, **options)))

    refused(
        "holds the condition 'column:edges' of each image, but this run draws from 'gray': .* `--condition gray`",
        **{"latents": folder, "condition": "gray"},
    )
    plain = tmp_path / "plain"
    encode(plain, table, autoencoder, "gray", condition=None)
    refused("plain holds no condition of each image, but this run draws from 'gray'", latents=plain, condition="gray")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_without_a_condition_does_not_read_it(table, autoencoder, folder, tmp_path):
    run = config(PriorConfig, **settings(tmp_path, table, autoencoder, latents=folder))
    loader = make_loader(run, make_accelerator(run), build_objective(run), open_images(run)).loader
    assert {tuple(batch) for batch in loader} == {("latents",)}


def test_images_without_the_column_are_refused(table, autoencoder, tmp_path):
    images = load_images(str(table), resolution=8, image_column="photo")
    with pytest.raises(ValueError, match="was opened without the column of `condition` 'column:edges'"):
        encode_images(
            load_autoencoder(autoencoder),
            images,
            tmp_path / "a",
            accelerator=make_accelerator(config(PriorConfig, tmp_path, vqvae_from=autoencoder)),
            condition=ImageCondition.parse("column:edges", 3, 8),
        )


def test_the_command_takes_a_condition(table, autoencoder, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        words = ["encode", "--vqvae-from", autoencoder, "--dataset", table, "--output-dir", tmp_path / "a", *arguments]
        monkeypatch.setattr(sys, "argv", [*map(str, words)])
        main()

    for arguments, message in (
        (["--condition", "gray", "--what", "codes"], "--condition goes with latents"),
        (["--condition", "sepia"], "`condition` must be gray, low-resolution:SIDE or column:NAME, got 'sepia'"),
    ):
        with pytest.raises(SystemExit):
            run(*arguments)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    run("--condition", "column:edges", "--image-column", "photo", "--precision", "float32", "--mirrored")
    said = capsys.readouterr().out
    assert "each with its condition 'column:edges'" in said and "--condition column:edges" in said
    found = EncodedImages(tmp_path / "a", with_condition=True).__getitems__(list(range(2 * COUNT)))
    assert torch.equal(to_pixels(found["conditions"]), truth(autoencoder, "column:edges")[1])
