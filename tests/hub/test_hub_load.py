"""
`from_pretrained` from a Hub over HTTP: what is fetched, what survives. What is refused is in test_hub_hostile.py,
folders are in test_folder.py.
"""

import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from diffusers import UNet2DModel
from hub_server import TOKEN
from huggingface_hub import constants
from pipeline_files import FILES, INDEX, WEIGHTS, draw, read_folder
from safetensors.torch import load_file
from tiny_models import make_gray_pipeline, make_pipeline, rng

from diffusion_bridge_vq import (
    DiffusionBridgeVQInpaintPipeline,
    DiffusionBridgeVQPipeline,
    GumbelVQModel,
    OUBridgeScheduler,
    PixelCNNPrior,
    PixelCNNVQPipeline,
)

ELSEWHERE = """
import sys
from diffusion_bridge_vq import DiffusionBridgeVQPipeline, GumbelVQModel

pipe = DiffusionBridgeVQPipeline.from_pretrained("user/model")
GumbelVQModel.from_pretrained("user/model", subfolder="vqvae")
import torch
from safetensors.torch import save_file

generator = torch.Generator().manual_seed(5)
images = pipe(batch_size=2, num_inference_steps=3, generator=generator, output_type="pt").images
save_file({"images": images.contiguous()}, sys.argv[1])
"""


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
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE, str(cache.parent / "drawn")]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    drawn = load_file(cache.parent / "drawn")["images"]
    torch.testing.assert_close(drawn, draw(pipe), atol=1e-6, rtol=0)
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
    half = read_folder(folder)
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
    with pytest.raises(ValueError, match="'user/--' is neither a folder nor a repository's name"):
        load(name="user/--")
    hub.log.clear()
    with pytest.raises(ValueError, match="There is no folder outputs/demo/pipelin"):
        load(name="outputs/demo/pipelin")
    assert hub.log == []


def test_every_class(hub, cache, pipe, files):
    hub.add("user/model", files)
    inpaint = load(DiffusionBridgeVQInpaintPipeline), DiffusionBridgeVQInpaintPipeline(**pipe.components)
    image, mask, steps = torch.rand(1, 3, 6, 6), torch.ones(1, 1, 6, 6), {"num_inference_steps": 3}
    assert torch.equal(*(p(image, mask, generator=rng(5), output_type="pt", **steps).images for p in inpaint))

    torch.manual_seed(2)
    prior = PixelCNNPrior(32, width=8, num_layers=2, kernel_size=3, sample_size=3).eval()
    baseline = PixelCNNVQPipeline(pipe.vqvae, prior)
    baseline.save_pretrained(cache.parent / "pixelcnn")
    hub.add("user/pixelcnn", cache.parent / "pixelcnn")
    loaded = load(PixelCNNVQPipeline, "user/pixelcnn")
    assert torch.equal(draw(loaded), draw(baseline))

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


# ---------------------------------------------------------------------------------------------- what goes wrong


def whole_files(cache, files):
    """Every file in the cache's snapshots is as the Hub has it, and there are some."""
    found = [path for path in cache.rglob("snapshots/*/**/*") if path.is_file()]
    names = {path: "/".join(path.parts[path.parts.index("snapshots") + 2 :]) for path in found}
    return bool(found) and all(path.read_bytes() == files[name] for path, name in names.items())


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
    from diffusion_bridge_vq import pretrained

    hub.add("user/model", files)
    download = pretrained.snapshot_download

    def change_first(*args, **kwargs):
        hub.commit("user/model", {"README.md": b"new"})
        return download(*args, **kwargs)

    monkeypatch.setattr(pretrained, "snapshot_download", change_first)
    with pytest.raises(OSError, match="was changed while"):
        load()
