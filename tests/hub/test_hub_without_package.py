"""What a pushed repository gives to people without this package: the code in it draws the same images."""

import os
import re
import subprocess
import sys

import pytest
import torch
from hub_server import TOKEN
from pipeline_files import draw
from safetensors.torch import load_file

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, PixelCNNPrior, PixelCNNVQPipeline
from diffusion_bridge_vq.hub import push_run

WITHOUT = """
import sys

sys.modules["diffusion_bridge_vq"] = None  # importing it fails, installed or not
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

folder = sys.argv[1]
drawn = {}


def load(name, custom_pipeline="pipeline"):
    pipe = DiffusionPipeline.from_pretrained(name, custom_pipeline=custom_pipeline, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(name, pipe):
    steps = {"num_inference_steps": 3} if hasattr(pipe, "unet") else {}
    generator = torch.Generator().manual_seed(5)
    drawn[name] = pipe(batch_size=2, generator=generator, output_type="pt", **steps).images.contiguous()


bridge = load("tester/model")
draw("bridge", bridge)
draw("bridge by the repository's name", load("tester/model", "tester/model"))
pixelcnn = load("tester/pixelcnn")
draw("pixelcnn", pixelcnn)
draw("bridge, after others were loaded", bridge)
bridge.save_pretrained(f"{folder}/bridge")
pixelcnn.save_pretrained(f"{folder}/pixelcnn")
draw("bridge, saved again", load(f"{folder}/bridge"))
draw("pixelcnn, saved again", load(f"{folder}/pixelcnn"))
load(f"{folder}/bridge").save_pretrained(f"{folder}/thrice")
draw("bridge, saved thrice", load(f"{folder}/thrice"))
draw("bridge, by its own class", type(bridge).from_pretrained(f"{folder}/bridge"))
exec(open(f"{folder}/snippet.py").read())
assert len(images) == 16
assert not [name for name in sys.modules if name.split(".")[0] == "diffusion_bridge_vq" and sys.modules[name]]
save_file(drawn, f"{folder}/drawn.safetensors")
"""


def snippets(card: bytes) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card.decode(), re.DOTALL)


def test_snippet_of_the_card(hub, cache, logged_in, run):
    push_run(run, "tester/model", token=TOKEN)
    with_package, without = snippets(hub.files("tester/model")["README.md"])
    names: dict = {}
    exec(with_package, names)
    assert len(names["images"]) == 16 and names["images"][0].size == (6, 6)
    assert "diffusion_bridge_vq" not in without  # it is run below


@pytest.mark.slow
def test_without_the_package(hub, cache, pipe, run, tmp_path):
    """The same images, also of what was saved again, and code that isn't the package's never comes in."""
    torch.manual_seed(2)
    prior = PixelCNNPrior(32, width=8, num_layers=2, kernel_size=3, sample_size=3).eval()
    pixelcnn = PixelCNNVQPipeline(pipe.vqvae, prior)
    pixelcnn.save_pretrained(tmp_path / "pixelcnn" / "pipeline")
    push_run(run, "tester/model", token=TOKEN)
    push_run(tmp_path / "pixelcnn", "tester/pixelcnn", token=TOKEN)

    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "snippet.py").write_text(snippets(hub.files("tester/model")["README.md"])[1])
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "HF_HUB_DISABLE_IMPLICIT_TOKEN")
    }
    env |= {"HF_TOKEN": TOKEN, "HF_HOME": str(folder / "home")}  # a private repository
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "might require" not in done.stderr and "Expected types" not in done.stderr
    expected = {"bridge": draw(pipe), "pixelcnn": draw(pixelcnn)}
    drawn = load_file(folder / "drawn.safetensors")
    assert len(drawn) == 8
    for name, images in drawn.items():
        assert torch.equal(images, expected[re.match(r"\w+", name)[0]]), name

    # with the package: its classes, none of the code
    for again in ("bridge", "thrice"):
        loaded = DiffusionBridgeVQPipeline.from_pretrained(folder / again)
        assert type(loaded.vqvae) is type(pipe.vqvae) and torch.equal(draw(loaded), expected["bridge"])
    assert torch.equal(draw(PixelCNNVQPipeline.from_pretrained(folder / "pixelcnn")), expected["pixelcnn"])
