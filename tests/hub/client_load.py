"""`from_pretrained` from a Hub over HTTP: what is fetched, what survives, what is refused."""

import json
import logging
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, UNet2DModel
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from server import TOKEN
from tiny_pipeline import make_gray_pipeline, make_pipeline, rng

from diffusion_bridge_vq import (
    DiffusionBridgeVQInpaintPipeline,
    DiffusionBridgeVQPipeline,
    GumbelVQModel,
    OUBridgeScheduler,
    PixelCNNPrior,
    PixelCNNVQPipeline,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = "model_index.json"
FILES = {
    INDEX,
    "scheduler/scheduler_config.json",
    *(f"{part}/{name}" for part in ("unet", "vqvae") for name in ("config.json", WEIGHTS)),
}
STEPS = {"num_inference_steps": 3, "output_type": "pt"}


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(saved) -> dict[str, bytes]:
    return {path.relative_to(saved).as_posix(): path.read_bytes() for path in saved.rglob("*") if path.is_file()}


def draw(pipe, **kwargs):
    pipe.set_progress_bar_config(disable=True)
    return pipe(batch_size=2, generator=rng(5), **STEPS | kwargs).images


def load(cls=DiffusionBridgeVQPipeline, name="user/model", **kwargs):
    return cls.from_pretrained(name, **kwargs)


# ----------------------------------------------------------------------------------------------- what works


def test_cold_warm_and_offline(hub, cache, pipe, files, caplog):
    extra = ["README.md", "evil.py", "vqvae/evil.py", "vqvae/diffusion_pytorch_model.bin", "samples.png", "a/b.json"]
    hub.add("user/model", files | dict.fromkeys(extra, b"import nothing_of_the_kind"))
    first = load()
    assert set(hub.asked("user/model")) == FILES
    assert torch.equal(draw(first), draw(pipe)) and not first.unet.training
    assert len(first(batch_size=32, num_inference_steps=2).images) == 32
    assert first.name_or_path == "user/model"

    hub.log.clear()
    assert torch.equal(draw(load()), draw(pipe))
    assert hub.asked("user/model") == []

    hub.log.clear()
    assert torch.equal(draw(load(local_files_only=True)), draw(pipe))
    script = (
        "import sys; from diffusion_bridge_vq import DiffusionBridgeVQPipeline as P, GumbelVQModel as M;"
        "p = P.from_pretrained('user/model'); M.from_pretrained('user/model', subfolder='vqvae');"
        "print(sum(w.double().sum().item() for w in p.unet.parameters()), len(p(1, num_inference_steps=2).images))"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    total = sum(weight.double().sum().item() for weight in pipe.unet.parameters())
    assert done.stdout.split() == [str(total), "1"]
    assert hub.log == []

    hub.fail("GET", "/api/", cut=0, times=100)  # the Hub is down
    logging.getLogger("diffusers").propagate = True
    try:
        assert torch.equal(draw(load()), draw(pipe))
        assert "is taken from the cache" in caplog.text
    finally:
        logging.getLogger("diffusers").propagate = False
    with pytest.raises(OSError, match="isn't in the cache, or not all of it, and the Hub can't be reached"):
        load(name="user/other")


def test_offline_with_a_part_of_the_cache(hub, cache, files):
    hub.add("user/model", files)
    GumbelVQModel.from_pretrained("user/model", subfolder="vqvae")
    with pytest.raises(OSError, match="isn't in the cache, or not all of it, and `local_files_only` is set"):
        load(local_files_only=True)
    load()
    next(cache.rglob(f"snapshots/*/unet/{WEIGHTS}")).unlink()
    with pytest.raises(OSError, match=r"unet.*local_files_only|local_files_only.*unet"):
        load(local_files_only=True)


def test_revisions(hub, cache, pipe, files):
    first = hub.add("user/model", files)
    hub.tag("user/model", "v1.0")
    other = make_gray_pipeline()
    hub.tag("user/model", "gray")
    folder = cache.parent / "gray"
    other.save_pretrained(folder)
    hub.commit("user/model", folder, "gray")
    for revision in (None, "v1.0", first, "gray", "v1.0"):
        expected = other if revision == "gray" else pipe
        assert torch.equal(draw(load(revision=revision)), draw(expected)), revision
    assert torch.equal(draw(load(revision="gray", local_files_only=True)), draw(other))
    hub.commit("user/model", folder)  # main moves on
    assert torch.equal(draw(load()), draw(other)) and torch.equal(draw(load(revision="v1.0")), draw(pipe))
    with pytest.raises(OSError, match=r"'user/model' has no revision 'v2\.0'"):
        load(revision="v2.0")


def test_variants_types_and_shards(hub, cache, pipe, files):
    folder = cache.parent / "half"
    make_pipeline().to(torch.float16).save_pretrained(folder, variant="fp16", max_shard_size="20KB")
    half = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert any("-00001-of-" in name for name in half)
    hub.add("user/model", files | half)
    loaded = load(variant="fp16", torch_dtype=torch.float16)
    assert set(hub.asked("user/model")) == set(half)
    for part in ("unet", "vqvae"):
        ours, theirs = getattr(loaded, part).state_dict(), getattr(pipe, part).state_dict()
        assert all(torch.equal(ours[k], theirs[k].half()) for k in theirs), part
    loaded = load(torch_dtype={"unet": torch.bfloat16, "default": torch.float16})
    assert (loaded.unet.dtype, loaded.vqvae.dtype) == (torch.bfloat16, torch.float16)

    hub.add("user/mixed", files | {name: content for name, content in half.items() if name.startswith("unet/")})
    mixed = load(name="user/mixed", variant="fp16")
    assert torch.equal(mixed.unet.conv_in.weight, pipe.unet.conv_in.weight.half().float())
    assert torch.equal(mixed.vqvae.quant_conv.weight, pipe.vqvae.quant_conv.weight)
    with pytest.raises(ValueError, match="variant=bf16"):
        load(variant="bf16")


def test_private(hub, cache, pipe, files):
    hub.add("user/model", files, private=True)
    for token in (None, False, "hf_wrong"):
        with pytest.raises(OSError, match="neither a folder here nor a repository on the Hub that you may read"):
            load(token=token)
    assert not list(cache.rglob("*.json"))
    assert torch.equal(draw(load(token=TOKEN)), draw(pipe))
    assert torch.equal(draw(load(local_files_only=True)), draw(pipe))
    model = GumbelVQModel.from_pretrained("user/model", subfolder="vqvae", token=TOKEN)
    assert torch.equal(model.quantize.embedding.weight, pipe.vqvae.quantize.embedding.weight)
    with pytest.raises(OSError, match="not a local folder and is not a valid model identifier"):
        GumbelVQModel.from_pretrained("user/model", subfolder="vqvae", cache_dir=cache.parent / "empty")


def test_names_that_are_none(hub, cache):
    with pytest.raises(OSError, match="'user/typo' is neither a folder here nor a repository"):
        load(name="user/typo")
    with pytest.raises(ValueError, match="'outputs/demo/pipelin' is neither a folder nor a repository's name"):
        load(name="outputs/demo/pipelin")


def test_every_class(hub, cache, pipe, files):
    hub.add("user/model", files)
    inpaint = load(DiffusionBridgeVQInpaintPipeline)
    inpaint.set_progress_bar_config(disable=True)
    image, mask = torch.rand(1, 3, 6, 6), torch.ones(1, 1, 6, 6)
    expected = DiffusionBridgeVQInpaintPipeline(**pipe.components)
    expected.set_progress_bar_config(disable=True)
    drawn = (p(image, mask, generator=rng(5), **STEPS).images for p in (inpaint, expected))
    assert torch.equal(*drawn)

    torch.manual_seed(2)
    prior = PixelCNNPrior(32, width=8, num_layers=2, kernel_size=3, sample_size=3).eval()
    baseline = PixelCNNVQPipeline(pipe.vqvae, prior)
    baseline.save_pretrained(cache.parent / "pixelcnn")
    hub.add("user/pixelcnn", cache.parent / "pixelcnn")
    loaded = load(PixelCNNVQPipeline, "user/pixelcnn")
    for drawing in (loaded, baseline):
        drawing.set_progress_bar_config(disable=True)
    drawn = (p(2, generator=rng(5), output_type="pt").images for p in (loaded, baseline))
    assert torch.equal(*drawn)

    for cls, part, repo in (
        (GumbelVQModel, "vqvae", "user/model"),
        (UNet2DModel, "unet", "user/model"),
        (PixelCNNPrior, "prior", "user/pixelcnn"),
    ):
        hub.log.clear()
        model = load(cls, repo, subfolder=part, cache_dir=cache.parent / "parts")
        source = getattr(baseline if part == "prior" else pipe, part).state_dict()
        assert all(torch.equal(value, source[name]) for name, value in model.state_dict().items())
        asked = set(hub.asked(repo))
        assert asked >= {f"{part}/config.json", f"{part}/{WEIGHTS}"}
        assert all(name.endswith((".json", ".safetensors")) for name in asked)
    hub.log.clear()
    scheduler = load(OUBridgeScheduler, subfolder="scheduler", cache_dir=cache.parent / "parts")
    assert scheduler.config.z_star == pipe.scheduler.config.z_star
    assert hub.asked("user/model") == ["scheduler/scheduler_config.json"]
    with pytest.raises(ValueError, match=r"is no pipeline of this class: there is no prior/config\.json"):
        load(PixelCNNVQPipeline)


def test_passed_components(hub, cache, pipe, files):
    """A component that is passed is neither fetched nor looked up, so that a class of one's own can stand there."""
    index = json.loads(files[INDEX]) | {"unet": ["my_package.nets", "Mine"]}
    hub.add("user/model", files | {INDEX: json.dumps(index).encode()})
    loaded = load(unet=pipe.unet)
    assert loaded.unet is pipe.unet and torch.equal(draw(loaded), draw(pipe))
    assert not any(name.startswith("unet/") for name in hub.asked("user/model"))
    with pytest.raises(ValueError, match=r"my_package.nets.*pass it as `unet`"):
        load()


def test_stock_scheduler_and_saving_again(hub, cache, pipe, files):
    hub.add("user/model", files)
    loaded = load()
    loaded.scheduler = loaded.scheduler.to_diffusers(DPMSolverMultistepScheduler)
    loaded.save_pretrained(cache.parent / "again")
    hub.add("user/again", cache.parent / "again")
    again = load(name="user/again")
    assert type(again.scheduler) is DPMSolverMultistepScheduler
    assert torch.equal(draw(again), draw(loaded))


# ------------------------------------------------------------------------------------------ what is never run


def test_code_of_a_repository(hub, cache, pipe, files):
    """Not with the code there, not in a cache that a trusted load has filled with it, and not when asked to."""
    marker = cache.parent / "ran"
    code = f"open({str(marker)!r}, 'a').write('x')\n"
    modules = {
        "vqvae/diffusion_bridge_vq.models.autoencoder_gumbel_vq.py": "from diffusion_bridge_vq import GumbelVQModel",
        "scheduler/diffusion_bridge_vq.schedulers.scheduling_ou_bridge.py": (
            "from diffusion_bridge_vq import OUBridgeScheduler"
        ),
        "unet/diffusers.py": "from diffusers import UNet2DModel",
        "pipeline.py": "",
        "None.py": "",
        "own.py": "import diffusion_bridge_vq\nclass DiffusionBridgeVQPipeline(diffusion_bridge_vq."
        "DiffusionBridgeVQPipeline): stolen = True",
    }
    coded = {name: (code + source).encode() for name, source in modules.items()}
    hub.add("user/model", files | coded)
    assert torch.equal(draw(load()), draw(pipe))
    assert set(hub.asked("user/model")) == FILES and not marker.exists()

    index = json.loads(files[INDEX]) | {"_class_name": ["own", "DiffusionBridgeVQPipeline"]}
    hub.add("user/model", files | coded | {INDEX: json.dumps(index).encode()})
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained("user/model")
    DiffusionPipeline.download("user/model", trust_remote_code=True)
    assert marker.exists()  # diffusers does run it, if told to
    marker.unlink()
    assert next(cache.rglob("own.py")).is_file() and next(cache.rglob("vqvae/*.py")).is_file()
    loaded = load()
    assert type(loaded) is DiffusionBridgeVQPipeline and torch.equal(draw(loaded), draw(pipe))
    for option in ({"trust_remote_code": True}, {"custom_pipeline": "own"}):
        with pytest.raises(ValueError, match="never runs code"):
            load(**option)
    assert not marker.exists()


class Payload:
    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def edit(files: dict[str, bytes], name: str, **changes) -> dict[str, bytes]:
    return files | {name: json.dumps(json.loads(files[name]) | changes).encode()}


def pickled(files, marker):
    changed = files | {"vqvae/diffusion_pytorch_model.bin": pickle.dumps(Payload(marker))}
    return {name: content for name, content in changed.items() if name != f"vqvae/{WEIGHTS}"}


def test_a_model_alone_takes_no_pickle(hub, cache, files, tmp_path):
    marker = tmp_path / "ran"
    hub.add("user/model", pickled(files, marker))
    hub.log.clear()
    with pytest.raises(OSError):
        GumbelVQModel.from_pretrained("user/model", subfolder="vqvae", cache_dir=tmp_path / "parts")
    assert not marker.exists() and not any(name.endswith(".bin") for name in hub.asked("user/model"))


def module_of_the_repo(files, marker):
    code = f"open({str(marker)!r}, 'w')\nfrom diffusion_bridge_vq import GumbelVQModel"
    return edit(files, INDEX, vqvae=["own", "GumbelVQModel"]) | {"vqvae/own.py": code.encode()}


def climbing_shard(files, marker):
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "../../../secret.safetensors"}}
    return files | {f"unet/{WEIGHTS}.index.json": json.dumps(index).encode()}


def lying_header(files, marker):
    header = json.dumps({"conv_in.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    return files | {f"unet/{WEIGHTS}": len(header).to_bytes(8, "little") + header + bytes(64)}


def huge_header(files, marker):
    return files | {f"unet/{WEIGHTS}": (2**62).to_bytes(8, "little") + files[f"unet/{WEIGHTS}"][8:]}


def overlapping(files, marker):
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    return files | {f"unet/{WEIGHTS}": len(header).to_bytes(8, "little") + header + bytes(16)}


def other_shapes(files, marker):
    folder = marker.parent / "other"
    make_gray_pipeline().save_pretrained(folder)
    return files | {f"unet/{WEIGHTS}": (folder / "unet" / WEIGHTS).read_bytes()}


def lost_tensor(files, marker):
    path = marker.parent / WEIGHTS
    path.write_bytes(files[f"unet/{WEIGHTS}"])
    tensors = load_file(path)
    save_file({name: value.clone() for name, value in tensors.items() if name != "conv_in.bias"}, path)
    return files | {f"unet/{WEIGHTS}": path.read_bytes()}


def replace(name, content):
    return lambda files, marker: files | {name: content}


def index(**changes):
    return lambda files, marker: edit(files, INDEX, **changes)


def config(**changes):
    return lambda files, marker: edit(files, "vqvae/config.json", **changes)


CODE = b"import os\nos.system('true')\n"
MISFIT = "can't be loaded as UNet2DModel: .* expected shape|aren't those of its configuration"
HOSTILE = {
    "pickle": (pickled, "pickles aren't read from the Hub|can't be loaded as GumbelVQModel"),
    "os.system": (index(vqvae=["os", "system"]), r"has \['os', 'system'\] for vqvae"),
    "eval": (index(scheduler=["builtins", "eval"]), r"has \['builtins', 'eval'\] for scheduler"),
    "other class": (index(unet=["diffusers", "DiffusionPipeline"]), "for unet, expected"),
    "no scheduler": (index(scheduler=["diffusers", "FlaxDDPMScheduler"]), "for scheduler, expected"),
    "other scheduler": (index(scheduler=["diffusers", "EulerDiscreteScheduler"]), "is of OUBridgeScheduler, expected"),
    "other library": (index(unet=["diffusion_bridge_vq.training.loop", "UNet2DModel"]), "for unet, expected"),
    "path as library": (index(vqvae=["../own", "GumbelVQModel"]), "for vqvae, expected"),
    "module of the repo": (module_of_the_repo, r"has \['own', 'GumbelVQModel'\] for vqvae"),
    "no pair": (index(vqvae="GumbelVQModel"), "has GumbelVQModel for vqvae"),
    "null": (index(vqvae=[None, None]), r"\[None, None\] for vqvae"),
    "nested": (index(vqvae=[["os"], {"system": 1}]), "for vqvae, expected"),
    "climbing component": (index(**{"../../evil": ["diffusers", "UNet2DModel"]}), r"has \['../../evil'\]"),
    "climbing shard": (climbing_shard, "doesn't name the shards beside it"),
    "code as index": (replace(INDEX, CODE), "model_index.json isn't JSON"),
    "list as index": (replace(INDEX, b"[]"), "must hold a JSON object, got list"),
    "deep index": (replace(INDEX, b'{"a":' + b"[" * 200_000), "isn't JSON"),
    "no text as index": (replace(INDEX, b"\xff\xfe\x00"), "isn't JSON"),
    "code as config": (replace("vqvae/config.json", CODE), "config.json isn't JSON"),
    "code as scheduler": (replace("scheduler/scheduler_config.json", CODE), "scheduler_config.json isn't JSON"),
    "config of another class": (config(_class_name="UNet2DModel"), "is of UNet2DModel, expected GumbelVQModel"),
    "quantized": (config(quantization_config={"quant_method": "bitsandbytes"}), "quantized"),
    "text as channels": (config(block_out_channels="../etc"), "can't be loaded as GumbelVQModel"),
    "negative channels": (config(block_out_channels=[-8, 8]), "can't be loaded as GumbelVQModel"),
    "more codes": (config(num_vq_embeddings=64), "can't be loaded as GumbelVQModel"),
    "truncated": (lambda files, _: files | {f"unet/{WEIGHTS}": files[f"unet/{WEIGHTS}"][:-100]}, "cut off or damaged"),
    "empty": (replace(f"unet/{WEIGHTS}", b""), "cut off or damaged"),
    "code as weights": (replace(f"unet/{WEIGHTS}", CODE), "cut off or damaged"),
    "lying header": (lying_header, "cut off or damaged"),
    "huge header": (huge_header, "cut off or damaged"),
    "overlapping": (overlapping, "cut off or damaged"),
    "swapped": (lambda files, _: files | {f"unet/{WEIGHTS}": files[f"vqvae/{WEIGHTS}"]}, MISFIT),
    "other shapes": (other_shapes, MISFIT),
    "lost tensor": (lost_tensor, "missing conv_in.bias, unexpected none"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(hub, cache, tmp_path, files, name):
    change, message = HOSTILE[name]
    marker = tmp_path / "ran"
    hostile = change(files, marker)
    hub.add("user/model", hostile)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        load()
    asked = hub.asked("user/model")
    assert all(name.endswith((".json", ".safetensors")) and ".." not in name for name in asked)
    if hostile[INDEX] != files[INDEX]:  # refused before anything else is fetched
        assert asked == [INDEX] or name == "other scheduler"
    folder = tmp_path / "folder"
    for path, content in hostile.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        load(name=folder)
    assert not marker.exists()


@pytest.mark.parametrize("name", [INDEX, "vqvae/config.json", "scheduler/scheduler_config.json"])
def test_huge_json_is_not_fetched(hub, cache, tmp_path, files, name):
    hub.add("user/model", files | {name: files[name] + b" " * 100_000_000})
    with pytest.raises(ValueError, match=rf"{name} has 100,000,\d+ bytes"):
        load()
    assert hub.asked("user/model") == []
    hub.repos.clear()
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    with open(tmp_path / name, "r+b") as file:
        file.truncate(100_000_000)
    with pytest.raises(ValueError, match="has 100,000,000 bytes"):
        load(name=tmp_path)


# ---------------------------------------------------------------------------------------------- what goes wrong


def whole_files(cache, files):
    """Every file in the cache's snapshots is as the Hub has it."""
    found = [path for path in cache.rglob("snapshots/*/**/*") if path.is_file()]
    return all(path.read_bytes() == files["/".join(path.parts[path.parts.index("snapshots") + 2 :])] for path in found)


def test_cut_download_goes_on(hub, cache, pipe, files, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # it keeps whole chunks, of 10 MB otherwise
    hub.add("user/model", files)
    hub.fail("GET", f"unet/{WEIGHTS}$", cut=50_000)
    assert torch.equal(draw(load()), draw(pipe))
    sent = [r.sent for r in hub.log if r.method == "GET" and r.path.endswith(f"unet/{WEIGHTS}")]
    assert sent == [50_000, len(files[f"unet/{WEIGHTS}"]) - 50_000]


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 404}, {"status": 401}, {"cut": 0}])
def test_failed_download_leaves_a_sound_cache(hub, cache, pipe, files, fault):
    hub.add("user/model", files)
    hub.fail("GET", f"unet/{WEIGHTS}$", **fault, times=100)
    with pytest.raises(OSError, match="'user/model' couldn't be downloaded"):
        load()
    assert whole_files(cache, files) and not list(cache.rglob(f"snapshots/*/unet/{WEIGHTS}"))
    with pytest.raises(OSError, match="isn't in the cache, or not all of it"):
        load(local_files_only=True)
    hub.faults.clear()
    assert torch.equal(draw(load()), draw(pipe)) and whole_files(cache, files)
    assert not list(cache.rglob("*.incomplete"))


def test_rate_limit(hub, cache, pipe, files):
    hub.add("user/model", files)
    hub.fail("GET", f"vqvae/{WEIGHTS}$", status=429, headers={"Retry-After": "0"})
    assert torch.equal(draw(load()), draw(pipe))
    statuses = [r.status for r in hub.log if r.method == "GET" and r.path.endswith(f"vqvae/{WEIGHTS}")]
    assert statuses == [429, 200]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_hub_that_answers_with_errors(hub, cache, pipe, files, status):
    hub.add("user/model", files)
    hub.fail("GET", "/api/models/", status=status, times=100)
    with pytest.raises(OSError, match=rf"isn't in the cache.*can't be reached.*{status}"):
        load()
    hub.faults.clear()
    load()
    hub.fail("GET", "/api/models/", status=status, times=100)
    assert torch.equal(draw(load()), draw(pipe))  # from the cache


def test_repository_that_changes_meanwhile(hub, cache, files, monkeypatch):
    """A commit between the look at the sizes and the download is noticed."""
    from diffusion_bridge_vq import repository

    hub.add("user/model", files)
    download = repository.snapshot_download

    def change_first(*args, **kwargs):
        hub.commit("user/model", {"README.md": b"new"})
        return download(*args, **kwargs)

    monkeypatch.setattr(repository, "snapshot_download", change_first)
    with pytest.raises(OSError, match="was changed while"):
        load()
