"""Encoded data sets against the autoencoder's own latents and codes, on one, two and three processes."""

import io
import json

import datasets
import numpy as np
import pytest
import torch
from encoding_work import content, encode, encode_until_killed
from PIL import Image
from torch.utils.data import DataLoader
from warm_processes import launch, start

import diffusion_bridge_vq.data.encoded as encoded_module
from diffusion_bridge_vq.data.encoded import EncodedImages
from diffusion_bridge_vq.data.encoded_shards import smallest_integer
from diffusion_bridge_vq.data.pixels import to_pixels
from diffusion_bridge_vq.training import encoding as encoding_module
from diffusion_bridge_vq.training import load_autoencoder

NUM_IMAGES = 297


@pytest.mark.parametrize("in_memory", [True, False])
def test_latents_are_those_of_the_autoencoder(folder, images, latents, in_memory, monkeypatch):
    if not in_memory:
        monkeypatch.setattr(encoded_module, "IN_MEMORY_BYTES", 0)
    encoded = EncodedImages(folder)
    assert len(encoded) == 2 * NUM_IMAGES and encoded.num_images == NUM_IMAGES and encoded.name == "digits"
    assert encoded.class_names == list("0123456789") and encoded.num_classes == 10
    batches = list(DataLoader(encoded, batch_size=400, collate_fn=EncodedImages.collate))
    found, labels = (torch.cat([batch[name] for batch in batches]) for name in ("latents", "labels"))
    assert found.dtype == torch.float32 and labels.dtype == torch.int64
    torch.testing.assert_close(found, torch.cat(latents), atol=1e-4, rtol=2**-10)  # half precision
    assert torch.equal(labels, images.labels.repeat(2)) and torch.equal(encoded.image_labels, images.labels)
    assert torch.equal(encoded[7]["latents"], found[7]) and encoded[7]["labels"] == labels[7]


def test_float32_is_exact_to_rounding(autoencoder, latents, tmp_path):
    encode(tmp_path / "a", autoencoder, precision="float32")
    found = EncodedImages(tmp_path / "a").__getitems__(list(range(NUM_IMAGES)))["latents"]
    torch.testing.assert_close(found, latents[0], atol=1e-6, rtol=1e-6)


def test_codes_have_the_smallest_integer_type(autoencoder, latents, tmp_path):
    encoding = encode(tmp_path / "a", autoencoder, what="codes")
    assert encoding.dtype == "uint8" and encoding.shape == [4, 4] and encoding.num_codes == 16
    codes = EncodedImages(tmp_path / "a").__getitems__(list(range(NUM_IMAGES)))["codes"]
    expected = load_autoencoder(autoencoder).encode_codes(latents[0])
    assert codes.dtype == torch.int64 and (codes != expected).float().mean() < 1e-3  # ties
    sizes = {2: "uint8", 256: "uint8", 257: "uint16", 65536: "uint16", 65537: "int32"}
    assert {count: smallest_integer(count) for count in sizes} == sizes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"what": "code"}, "'latents' or 'codes'.* got 'code'"), ({"batch_size": 0}, "`batch_size` must be")],
)
def test_what_cannot_be_encoded(wrong, message, autoencoder, tmp_path):
    with pytest.raises(ValueError, match=message):
        encode(tmp_path / "new", autoencoder, **wrong)
    assert not (tmp_path / "new").exists()


def test_datasets_reads_the_folder(folder, latents):
    table = datasets.load_dataset(str(folder), split="train")
    assert len(table) == 2 * NUM_IMAGES and table.features["label"].names == list("0123456789")
    assert table["key"][:4] == ["000000000", "000000000", "000000001", "000000001"]
    assert table["mirrored"][:4] == [False, True, False, True]
    np.testing.assert_allclose(table[5]["latents"], latents[1][2].flatten(), atol=1e-3)


def test_the_description(folder, autoencoder, images):
    described = json.loads((folder / "encoding.json").read_text())
    assert described["shape"] == [3, 4, 4] and described["dtype"] == "float16" and described["mirrored"]
    assert described["data"] == {
        **{"name": "digits", "split": "test", "fingerprint": images.fingerprint},
        **{"resolution": 8, "channels": 1},
    }
    np.testing.assert_allclose(described["normalizer"]["mean"], [0.1] * 3, rtol=1e-6)
    assert sum(described["rows"]) == 2 * NUM_IMAGES and len(described["rows"]) == described["parts"] == 16


# ------------------------------------------------------------------------------------------------------- processes


@pytest.mark.slow
def test_three_processes_share_the_images(autoencoder, tmp_path):
    """16 parts; the same files as one process writes."""
    alone = tmp_path / "alone"
    encode(alone, autoencoder)
    launch(tmp_path, encode, tmp_path / "shared", autoencoder, processes=3)
    assert content(tmp_path / "shared") == content(alone)


def write_parquet(path, count, start=0):
    rows = [{"bytes": png(value), "path": None} for value in range(start, start + count)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": rows, "label": [value % 2 for value in range(start, start + count)]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path, batch_size=4)


def png(value):
    file = io.BytesIO()
    Image.new("L", (8, 8), value).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_streams_are_shared_without_loss_or_repetition(processes, autoencoder, tmp_path):
    """19 images in three files, in row groups of at most 4: seven parts, which older `datasets` don't divide."""
    for number, (first, count) in enumerate(((0, 5), (5, 13), (18, 1))):
        write_parquet(tmp_path / "images" / f"train-{number}.parquet", count, first)
    if processes == 1:
        encode(tmp_path / "encoded", autoencoder, str(tmp_path / "images"), streaming=True)
    else:
        launch(tmp_path, encode, tmp_path / "encoded", autoencoder, str(tmp_path / "images"), True)
    encoded = EncodedImages(tmp_path / "encoded")
    vqvae = load_autoencoder(autoencoder).eval()
    pixels = to_pixels(torch.arange(19, dtype=torch.uint8).reshape(19, 1, 1, 1).expand(19, 1, 8, 8))
    with torch.no_grad():
        expected = vqvae.encode(pixels).latents
    found = encoded.__getitems__(list(range(19)))
    torch.testing.assert_close(found["latents"], expected, atol=1e-3, rtol=2**-9)
    assert found["labels"].tolist() == [value % 2 for value in range(19)] and encoded.class_names == ["even", "odd"]
    keys = datasets.load_dataset(str(tmp_path / "encoded"), split="train")["key"]
    assert len(set(keys)) == 19
    assert encoded.encoding.parts == (7 if hasattr(datasets.IterableDataset, "reshard") else 3)


def test_fewer_parts_than_processes_are_named(autoencoder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(encoding_module.Accelerator, "num_processes", 20)
    encode(tmp_path / "a", autoencoder)
    assert "digits has 16 parts to encode for 20 processes, so some have nothing to do" in capsys.readouterr().out


def test_an_interrupted_encoding_goes_on(folder, autoencoder, tmp_path):
    """Killed while it writes its sixth shard; what is there stays as it is."""
    target = tmp_path / "encoded"
    killed = start(encode_until_killed, 5, target, autoencoder)
    killed.join()
    assert killed.exitcode == -9
    with pytest.raises(ValueError, match="isn't complete; encode with the same command again"):
        EncodedImages(target)
    there = {path.name: path.stat().st_mtime_ns for path in target.glob("data/[!.]*")}
    assert len(there) == 5
    encode(target, autoencoder)
    alone = tmp_path / "alone"
    encode(alone, autoencoder)
    assert content(target) == content(alone)
    assert all((target / "data" / name).stat().st_mtime_ns == time for name, time in there.items())


def test_a_complete_folder_is_not_encoded_again(copy, autoencoder, monkeypatch):
    monkeypatch.setattr(encoding_module, "write_shard", lambda *_: pytest.fail("encoded again"))
    assert encode(copy, autoencoder, mirrored=True).rows is not None


def test_a_missing_shard_is_encoded_again(folder, copy, autoencoder):
    (copy / "data" / "train-00003-of-00016.parquet").unlink()
    with pytest.raises(ValueError, match=r"train-00003-of-00016\.parquet' is missing; encode again"):
        EncodedImages(copy)
    encode(copy, autoencoder, mirrored=True)
    assert content(copy) == content(folder)
