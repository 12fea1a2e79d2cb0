"""Encoded data sets against the autoencoder's own latents and codes, on one, two and three processes."""

import errno
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from encoding_work import encode, encode_until_killed
from tiny_models import make_autoencoder
from torch.utils.data import DataLoader
from warm_processes import launch, start

import diffusion_bridge_vq.data.encoded as encoded_module
from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.data.encoded import EncodedImages, Encoding
from diffusion_bridge_vq.data.pixels import to_pixels
from diffusion_bridge_vq.training import encoding as encoding_module
from diffusion_bridge_vq.training import load_autoencoder
from diffusion_bridge_vq.training.fault_tolerance.run_lock import run_lock

NUM_IMAGES = 297


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """A folder with an untrained one, `vqvae/`."""
    folder = tmp_path_factory.mktemp("autoencoder")
    torch.manual_seed(0)
    vqvae = make_autoencoder(sample_size=8, in_channels=1, out_channels=1)
    vqvae.normalizer.running_mean.fill_(0.1)
    vqvae.save_pretrained(folder / "vqvae")
    return folder


@pytest.fixture(scope="module")
def images():
    return load_images("digits", resolution=8, channels=1, split="test")


@pytest.fixture(scope="module")
def latents(autoencoder, images):
    """z_e of all images, and of their mirror images."""
    vqvae = load_autoencoder(autoencoder).eval()
    pixels = to_pixels(torch.stack([item["images"] for item in images]))
    with torch.no_grad():
        return vqvae.encode(pixels).latents, vqvae.encode(pixels.flip(-1)).latents


@pytest.fixture(scope="module")
def folder(tmp_path_factory, autoencoder):
    """Of one process: latents in half precision, with mirror images."""
    folder = tmp_path_factory.mktemp("encoded")
    encode(folder, autoencoder, mirrored=True)
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def content(folder):
    """Of all files but the lock's."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


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
    assert torch.equal(labels, images.labels.repeat(2))
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
    assert {count: encoded_module.smallest_integer(count) for count in sizes} == sizes


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
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (8, 8), value).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_streams_are_shared_without_loss_or_repetition(processes, autoencoder, tmp_path):
    """19 images, in row groups of at most 4: seven parts."""
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
    assert len(set(keys)) == 19 and encoded.encoding.parts == 7


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


# ------------------------------------------------------------------------------------------------------- bad input


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
        {"class_names": [1, 2]},
        {"class_names": 3},
        {"what": ["latents"]},
        {"version": "1", "more": 1},
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
    from diffusion_bridge_vq.run_folder import RunFolder

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
    from accelerate import Accelerator

    vqvae = load_autoencoder(autoencoder)
    for options, message in (({"resolution": 7, "channels": 1}, "divisible by 2"), ({"resolution": 8}, "1 channels")):
        with pytest.raises(ValueError, match=message):
            encoding_module.encode_images(
                vqvae, load_images("digits", **options), tmp_path / "a", accelerator=Accelerator(cpu=True)
            )
    assert not (tmp_path / "a").exists()


# --------------------------------------------------------------------------------------------------------- the Hub


def test_a_folder_is_pushed_with_a_card_and_without_local_names(copy, tmp_path, monkeypatch):
    """To a stand-in that keeps the files; what comes back is trained on."""
    from types import SimpleNamespace

    from huggingface_hub import HfApi

    from diffusion_bridge_vq.hub import PushOptions, push_encoded

    text = (copy / "encoding.json").read_text().replace('"name": "digits"', '"name": "my-secret-project"')
    (copy / "encoding.json").write_text(text)
    pushed, back = [], tmp_path / "back"

    def commit(self, repo_id, operations, **options):
        pushed.append((repo_id, options["repo_type"]))
        for operation in operations:
            path = back / operation.path_in_repo
            path.parent.mkdir(parents=True, exist_ok=True)
            content = operation.path_or_fileobj
            path.write_bytes(content if isinstance(content, bytes) else Path(content).read_bytes())

    repositories = []
    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, name, **o: repositories.append(o) or SimpleNamespace(repo_id=name)
    )
    monkeypatch.setattr(HfApi, "create_commit", commit)
    push_encoded(copy, PushOptions("user/latents", license="mit"))
    assert pushed == [("user/latents", "dataset")] and repositories[0]["private"]
    whole, found = EncodedImages(copy), EncodedImages(back)
    assert torch.equal(found.__getitems__([0, 5])["latents"], whole.__getitems__([0, 5])["latents"])
    assert found.fingerprint == whole.fingerprint
    card = (back / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\nconfigs:") and "--latents user/latents" in card
    assert f"{whole.num_rows} rows of latents" in card
    assert not any(b"secret" in path.read_bytes() for path in back.rglob("*") if path.is_file())
    assert datasets.load_dataset(str(back), split="train").num_rows == whole.num_rows


def test_latents_come_from_the_hub_where_there_is_no_such_folder(copy, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: asked.append((name, options)) or str(copy)
    )
    monkeypatch.chdir(tmp_path)
    assert encoded_module.find_encoded(Path("user/latents")) == copy
    assert asked[0][0] == "user/latents" and asked[0][1]["repo_type"] == "dataset"
    (tmp_path / "user" / "latents").mkdir(parents=True)
    assert encoded_module.find_encoded(Path("user/latents")) == Path("user/latents") and len(asked) == 1
