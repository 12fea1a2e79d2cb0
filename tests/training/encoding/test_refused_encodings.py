"""Encodings that are damaged, of something else or in use, and autoencoders that can't encode: named, nothing lost."""

import errno
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from encoding_work import content, encode

import diffusion_bridge_vq.data.encoded as encoded_module
from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.data.encoded import EncodedImages
from diffusion_bridge_vq.data.encoded_shards import Encoding
from diffusion_bridge_vq.run_folder import RunFolder
from diffusion_bridge_vq.training import encoding as encoding_module
from diffusion_bridge_vq.training import load_autoencoder
from diffusion_bridge_vq.training.fault_tolerance.run_lock import run_lock


def test_a_damaged_shard_is_named(copy):
    shard = copy / "data" / "train-00003-of-00016.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"train-00003-of-00016\.parquet' isn't a parquet file, or is cut off"):
        EncodedImages(copy)


def test_a_repeated_shard_is_named(copy):
    shutil.copy(copy / "data" / "train-00004-of-00016.parquet", copy / "data" / "train-00003-of-00016.parquet")
    with pytest.raises(ValueError, match=r"train-00003-of-00016\.parquet' is part 4 of .*, expected part 3"):
        EncodedImages(copy)
    shutil.copy(copy / "data" / "train-00003-of-00016.parquet", copy / "data" / "train-3.parquet")
    (copy / "data" / "train-00003-of-00016.parquet").unlink()
    with pytest.raises(ValueError, match=r"train-00003-of-00016\.parquet' is missing"):
        EncodedImages(copy)


def with_column(name, values):
    """A change of a table."""
    return lambda table: table.set_column(table.schema.get_field_index(name), name, pa.array(values[: len(table)]))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda table: table.drop_columns(["label"]), r"has the columns .*, expected key \(string\), .*label"),
        (with_column("label", [None] * 999), r"has the columns .*label \(null\)"),
        (with_column("latents", ["x"] * 999), r"has the columns .*latents \(string\).*, expected"),
        (lambda table: table.replace_schema_metadata({b"diffusion_bridge_vq": b"[]"}), "isn't a shard of encoded"),
        (lambda table: table.replace_schema_metadata({b"diffusion_bridge_vq": b"{"}), "isn't a shard of encoded"),
    ],
    ids=["no label", "null", "text", "list", "cut"],
)
def test_other_columns_than_described_are_named(copy, change, found):
    file = copy / "data" / "train-00003-of-00016.parquet"
    pq.write_table(change(pq.read_table(file)), file)
    with pytest.raises(ValueError, match=rf"train-00003-of-00016\.parquet' {found}"):
        EncodedImages(copy)


def test_a_file_too_many_is_named(copy):
    shutil.copy(copy / "data" / "train-00003-of-00016.parquet", copy / "data" / "train-more.parquet")
    with pytest.raises(ValueError, match=r"train-more\.parquet' is none of the 16 shards"):
        EncodedImages(copy)


@pytest.mark.parametrize("in_memory", [True, False])
def test_latents_that_are_not_finite_are_refused(copy, in_memory, monkeypatch):
    if not in_memory:
        monkeypatch.setattr(encoded_module, "IN_MEMORY_BYTES", 0)
    file = copy / "data" / "train-00000-of-00016.parquet"
    table = pq.read_table(file)
    flat = table.column("latents").combine_chunks().flatten().to_numpy().copy()
    flat[0] = np.nan
    place = table.schema.get_field_index("latents")
    lists = pa.FixedSizeListArray.from_arrays(pa.array(flat), 48)
    pq.write_table(table.set_column(place, table.schema.field(place), lists), file)
    with pytest.raises(ValueError, match="the latents of digits aren't all finite numbers"):
        EncodedImages(copy).__getitems__([0, 1])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            float("nan"),
            r"vqvae can't be used: .* of its tensor 'quant_conv.bias' are wrong, the first is nan",
        ),
        (1e6, r"Image 000000000 has latents of .*, which float16 can't hold; .* or encode with float32"),
    ],
)
def test_an_autoencoder_that_gives_no_numbers(autoencoder, tmp_path, weights, message):
    vqvae = load_autoencoder(autoencoder)
    torch.nn.init.constant_(vqvae.quant_conv.bias, weights)
    vqvae.save_pretrained(tmp_path / "vqvae")
    with pytest.raises(ValueError, match=message):
        encode(tmp_path / "encoded", tmp_path)


def test_a_folder_of_something_else_is_refused(copy, autoencoder, tmp_path):
    with pytest.raises(ValueError, match="holds another encoding: mirrored True, not False; give a new folder"):
        encode(copy, autoencoder)
    vqvae = load_autoencoder(autoencoder)
    vqvae.normalizer.running_var.fill_(2.0)
    vqvae.save_pretrained(tmp_path / "other" / "vqvae")
    with pytest.raises(ValueError, match=r"holds another encoding: autoencoder .*, not "):
        encode(copy, tmp_path / "other", mirrored=True)
    with pytest.raises(ValueError, match="holds another encoding: data "):
        encode(copy, autoencoder, mirrored=True, split="train")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"isn't empty: it holds notes\.txt; give a new folder"):
        encode(tmp_path / "full", autoencoder)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {}},
        {"data": "digits"},
        {"parts": True},
        {"rows": ["297"]},
        {"rows": [-1]},
        {"shape": [10**30, "4"]},
        {"dtype": "object"},
        {"dtype": 5},
        {"mirrored": "yes"},
        {"normalizer": "x"},
        {"what": "label"},
        {"class_names": "abc"},
        {"class_names": [1, 2]},
        {"class_names": 3},
        {"what": ["latents"]},
        {"version": "1", "more": 1},
        {"condition": "sepia"},
        {"condition": 3},
    ],
    ids=str,
)
def test_a_description_that_somebody_else_wrote(copy, changes):
    """Of several kinds of nonsense some ended in KeyError or in numpy."""
    file = copy / "encoding.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=r"encoding\.json' doesn't describe encoded images"):
        EncodedImages(copy)


def test_a_folder_in_use_is_refused(autoencoder, tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock.__wrapped__, "__defaults__", (0.1,))
    with run_lock(RunFolder(tmp_path / "a")), pytest.raises(ValueError, match="Another run writes into"):
        encode(tmp_path / "a", autoencoder)


def test_a_full_disk_loses_nothing(folder, autoencoder, tmp_path, monkeypatch):
    target, write_table, written = tmp_path / "encoded", pq.ParquetWriter.write_table, []

    def fill(self, table):
        written.append(table)
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_table(self, table)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left on device"):
        patch.setattr(pq.ParquetWriter, "write_table", fill)
        encode(target, autoencoder, mirrored=True)
    assert len(list((target / "data").iterdir())) == 3  # and no partial file
    encode(target, autoencoder, mirrored=True)
    assert content(target) == content(folder)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"what": "latents"}', "{"])
def test_a_description_that_is_none(copy, text):
    (copy / "encoding.json").write_text(text)
    with pytest.raises(ValueError, match=r"encoding\.json' doesn't describe encoded images"):
        Encoding.read(copy)


def test_no_autoencoder(tmp_path, autoencoder, monkeypatch):
    monkeypatch.chdir(autoencoder.parent)
    with pytest.raises(
        OSError, match=rf"(?s)neither a folder here nor a repository.*Did you mean '{autoencoder.name}'\?"
    ):
        load_autoencoder(tmp_path.__class__(autoencoder.name + "x"))


def test_images_that_the_autoencoder_does_not_take(autoencoder, tmp_path):
    vqvae = load_autoencoder(autoencoder)
    for options, message in (({"resolution": 7, "channels": 1}, "divisible by 2"), ({"resolution": 8}, "1 channels")):
        with pytest.raises(ValueError, match=message):
            encoding_module.encode_images(
                vqvae, load_images("digits", **options), tmp_path / "a", accelerator=Accelerator(cpu=True)
            )
    assert not (tmp_path / "a").exists()
