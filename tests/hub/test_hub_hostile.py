"""
What `from_pretrained` refuses: code, pickles, configurations and weights that are not what they should be, from a Hub
and from a folder.
"""

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from pipeline_files import FILES, INDEX, WEIGHTS, draw, write_folder
from safetensors.torch import load, save
from tiny_models import make_gray_pipeline

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, GumbelVQModel


@pytest.mark.usefixtures("own_modules")
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
    assert torch.equal(draw(DiffusionBridgeVQPipeline.from_pretrained("user/model")), draw(pipe))
    assert set(hub.asked("user/model")) == FILES and not marker.exists()

    index = json.loads(files[INDEX]) | {"_class_name": ["own", "DiffusionBridgeVQPipeline"]}
    hub.add("user/model", files | coded | {INDEX: json.dumps(index).encode()})
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained("user/model")
    DiffusionPipeline.download("user/model", trust_remote_code=True)
    assert marker.exists()  # diffusers does run it, if asked to
    marker.unlink()
    assert next(cache.rglob("own.py")).is_file() and next(cache.rglob("vqvae/*.py")).is_file()
    loaded = DiffusionBridgeVQPipeline.from_pretrained("user/model")
    assert type(loaded) is DiffusionBridgeVQPipeline and torch.equal(draw(loaded), draw(pipe))
    for option in ({"trust_remote_code": True}, {"custom_pipeline": "own"}):
        with pytest.raises(ValueError, match="never runs code"):
            DiffusionBridgeVQPipeline.from_pretrained("user/model", **option)
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


def test_a_model_alone_is_compared_with_its_weights(hub, cache, files, tmp_path):
    """Before anything is allocated, as in a pipeline."""
    hub.add("user/model", edit(files, "vqvae/config.json", num_vq_embeddings=400_000_000))
    with pytest.raises(ValueError, match="don't belong together"):
        GumbelVQModel.from_pretrained("user/model", subfolder="vqvae", cache_dir=tmp_path / "parts")


def module_of_the_repo(files, marker):
    code = f"open({str(marker)!r}, 'w')\nfrom diffusion_bridge_vq import GumbelVQModel"
    return edit(files, INDEX, vqvae=["own", "GumbelVQModel"]) | {"vqvae/own.py": code.encode()}


def climbing_shard(files, marker):
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "../../../secret.safetensors"}}
    return files | {f"unet/{WEIGHTS}.index.json": json.dumps(index).encode()}


def header(changed):
    """Weights that are this JSON object and 64 bytes."""
    content = json.dumps(changed).encode()
    return replace(f"unet/{WEIGHTS}", len(content).to_bytes(8, "little") + content + bytes(64))


def huge_header(files, marker):
    return files | {f"unet/{WEIGHTS}": (2**62).to_bytes(8, "little") + files[f"unet/{WEIGHTS}"][8:]}


def other_shapes(files, marker):
    make_gray_pipeline().save_pretrained(marker.parent / "other")
    return files | {f"unet/{WEIGHTS}": (marker.parent / "other" / "unet" / WEIGHTS).read_bytes()}


def lost_tensor(files, marker):
    tensors = load(files[f"unet/{WEIGHTS}"])
    del tensors["conv_in.bias"]
    return files | {f"unet/{WEIGHTS}": save(tensors)}


def replace(name, content):
    return lambda files, marker: files | {name: content}


def index(**changes):
    return lambda files, marker: edit(files, INDEX, **changes)


def config(**changes):
    return lambda files, marker: edit(files, "vqvae/config.json", **changes)


ENTRY = {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}
CODE = b"import os\nos.system('true')\n"
MISFIT = "can't be loaded as UNet2DModel: .* expected shape|aren't those of its configuration"
HOSTILE = {
    "pickle": (pickled, "pickles aren't read from the Hub|can't be loaded as GumbelVQModel"),
    "os.system": (index(vqvae=["os", "system"]), r"has \['os', 'system'\] for vqvae"),
    "eval": (index(scheduler=["builtins", "eval"]), r"has \['builtins', 'eval'\] for scheduler"),
    "other class": (index(unet=["diffusers", "DiffusionPipeline"]), "for unet, expected"),
    "no scheduler": (index(scheduler=["diffusers", "FlaxDDPMScheduler"]), "for scheduler, expected"),
    "other scheduler": (index(scheduler=["diffusers", "EulerDiscreteScheduler"]), "is of OUBridgeScheduler, expected"),
    "other library": (index(unet=["diffusion_bridge_vq.training.trainer", "UNet2DModel"]), "for unet, expected"),
    "path as library": (index(vqvae=["../own", "GumbelVQModel"]), "for vqvae, expected"),
    "module of the repo": (module_of_the_repo, r"has \['own', 'GumbelVQModel'\] for vqvae"),
    "no pair": (index(vqvae="GumbelVQModel"), "has GumbelVQModel for vqvae"),
    "null": (index(vqvae=[None, None]), r"\[None, None\] for vqvae"),
    "nested": (index(vqvae=[["os"], {"system": 1}]), "for vqvae, expected"),
    "climbing component": (index(**{"../../evil": ["diffusers", "UNet2DModel"]}), r"has \['../../evil'\]"),
    "climbing shard": (climbing_shard, "doesn't name the shards in its folder"),
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
    "more codes": (
        config(num_vq_embeddings=64),
        r"of another shape quantize\.embedding\.weight \(32, 3\) instead of \(64, 3\)",
    ),
    "truncated": (lambda files, _: files | {f"unet/{WEIGHTS}": files[f"unet/{WEIGHTS}"][:-100]}, "cut off or damaged"),
    "empty": (replace(f"unet/{WEIGHTS}", b""), "cut off or damaged"),
    "code as weights": (replace(f"unet/{WEIGHTS}", CODE), "cut off or damaged"),
    "lying header": (header({"a": ENTRY | {"shape": [2**40], "data_offsets": [0, 2**42]}}), "cut off or damaged"),
    "huge header": (huge_header, "cut off or damaged"),
    "overlapping": (header({"a": ENTRY, "b": ENTRY}), "cut off or damaged"),
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
        DiffusionBridgeVQPipeline.from_pretrained("user/model")
    asked = hub.asked("user/model")
    assert all(name.endswith((".json", ".safetensors")) and ".." not in name for name in asked)
    if hostile[INDEX] != files[INDEX]:  # refused before anything else is fetched
        assert asked == [INDEX] or name == "other scheduler"
    folder = write_folder(tmp_path / "folder", hostile)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        DiffusionBridgeVQPipeline.from_pretrained(folder)
    assert not marker.exists()


@pytest.mark.parametrize("name", [INDEX, "vqvae/config.json", "scheduler/scheduler_config.json"])
def test_huge_json_is_not_fetched(hub, cache, tmp_path, files, name):
    hub.add("user/model", files | {name: files[name] + b" " * 100_000_000})
    with pytest.raises(ValueError, match=rf"{name} has 100,000,\d+ bytes"):
        DiffusionBridgeVQPipeline.from_pretrained("user/model")
    assert hub.asked("user/model") == []
    hub.repos.clear()
    write_folder(tmp_path, files)
    with open(tmp_path / name, "r+b") as file:
        file.truncate(100_000_000)
    with pytest.raises(ValueError, match="has 100,000,000 bytes"):
        DiffusionBridgeVQPipeline.from_pretrained(tmp_path)
