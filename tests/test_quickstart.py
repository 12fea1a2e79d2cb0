"""examples/quickstart.ipynb, cell by cell, and what is committed of it."""

import ast
import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_bridge_vq import DiffusionBridgeVQInpaintPipeline, OUBridgeScheduler

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def code_cells() -> list[dict[str, Any]]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def execute(cells: list[dict[str, Any]]) -> tuple[dict[str, Any], list[Any]]:
    """The names that the cells leave, and what each would show: the value of its last line, if that is one."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for number, cell in enumerate(cells):
        body = ast.parse("".join(cell["source"])).body
        last = ast.Expression(body.pop().value) if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), f"cell {number}", "exec"), namespace)
        shown.append(last and eval(compile(last, f"cell {number}", "eval"), namespace))
    return namespace, shown


def arrays(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clone")
    (folder / "checkpoints").symlink_to(ROOT / "checkpoints")
    (folder / "examples").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "examples")  # where Jupyter starts a notebook
        yield execute(code_cells())


@pytest.fixture
def left(run) -> dict[str, Any]:
    """The names that the cells leave."""
    return run[0]


pytestmark = pytest.mark.slow


def test_it_starts_from_the_checkpoint(left):
    assert left["pipe"].name_or_path == "../checkpoints/digits"
    assert isinstance(left["pipe"].scheduler, OUBridgeScheduler)
    assert [image.size for image in left["images"]] == [(16, 16)] * 16
    assert len({image.tobytes() for image in left["images"]}) > 12


def test_solvers_without_noise_agree(left):
    ours, unipc, ancestral = (arrays(left[name][:8]) for name in ("images", "unipc", "ancestral"))
    assert abs(unipc - ours).mean() < 0.5 * abs(ancestral - ours).mean()


def test_chain_goes_from_noise_to_the_images(left):
    pipe, frames = left["pipe"], [arrays(frame) for frame in left["frames"]]
    final = pipe(batch_size=3, num_inference_steps=20, generator=torch.Generator().manual_seed(0)).images
    assert (frames[-1] == arrays(final)).all()
    distances = [abs(frame - frames[-1]).mean() for frame in frames]
    assert distances[0] > 30 and distances == sorted(distances, reverse=True)


def test_codes_are_the_nearest(left):
    book = left["vqvae"].quantize.embedding.weight.detach().double()
    distances = (left["latents"].double()[:, None] - book[None, :, :, None, None]).square().sum(dim=2)
    assert torch.equal(left["codes"], distances.argmin(dim=1))
    error = (arrays(left["decoded"]) - left["digits"][:, 0].numpy()).astype(float)
    assert (error**2).mean() < 0.1 * arrays(left["given"]).var()  # gray everywhere would be off by the variance


def test_patches_are_inside_of_their_images(left):
    alone = left["decode"](torch.full((1, 3, 3), 5))[0]
    difference = abs(arrays([alone.crop((4, 4, 8, 8))]) - arrays([left["patches"][5]]))
    assert len(left["patches"]) == 64 and difference.max() <= 1  # another batch rounds otherwise


def test_a_swap_changes_most_where_it_is(left):
    assert (left["swapped"] != left["codes"]).sum() == 8
    difference = arrays(left["difference"])
    assert (difference == abs(arrays(left["after"]) - arrays(left["decoded"]))).all()
    inside = np.zeros((16, 16), bool)
    inside[4:8, 4:8] = True
    assert difference[:, inside].mean() > 4 * difference[:, ~inside].mean()


def test_completions_have_no_seam(left):
    """The rows next to the edge differ as the decoder's own rows do; put back exactly, the given ones differ more."""
    completions = arrays(left["completions"])
    assert (completions.reshape(3, 6, 16, 16)[:, 1:, 8:] != completions.reshape(3, 6, 16, 16)[:, :1, 8:]).any()
    given = left["digits"][::3, 0].numpy().repeat(6, axis=0).astype(int)
    kept = np.where(np.arange(16)[:, None] < 8, given, completions)
    assert abs(completions[:, :8] - given[:, :8]).mean() < 20  # they are the same digits
    inpaint = left["inpaint"]
    assert isinstance(inpaint, DiffusionBridgeVQInpaintPipeline)
    assert abs(completions[:, 8] - completions[:, 7]).mean() < abs(kept[:, 8] - kept[:, 7]).mean()


def test_the_saved_pipeline_draws_the_same(left):
    assert left["same"] and (left["folder"] / "model_index.json").is_file()


def test_pictures(run):
    _, shown = run
    pictures = [value for value in shown if isinstance(value, Image.Image)]
    sizes = [(8 * 68, 2 * 68)] * 2 + [(8 * 68, 3 * 68 + 20)] + [(8 * 68, 2 * 68)]
    sizes += [(16 * 36, 4 * 36), (8 * 68, 3 * 68), (7 * 68, 3 * 68)]
    assert [picture.size for picture in pictures] == sizes


def test_committed_outputs_are_a_whole_run_without_traces_of_a_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"execute_result", "stream"}
    assert all(output["name"] == "stdout" for output in outputs if output["output_type"] == "stream")
    assert not any("{" in line for output in outputs for line in output.get("text", []))  # no JSON
    pictures = [base64.b64decode(o["data"]["image/png"]) for o in outputs if o["output_type"] == "execute_result"]
    assert len(pictures) == 7
    assert all(np.asarray(Image.open(io.BytesIO(picture))).std() > 10 for picture in pictures)
    assert not any(trace in text for trace in ("/home/", "/root/", "/tmp/", "/Users/", "C:\\\\", "site-packages"))
    assert len(text) < 200_000
    notebook = json.loads(text)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert all(cell["metadata"] == {} for cell in notebook["cells"])


def test_committed_pictures_are_what_the_cells_draw(run):
    """Up to rounding, which other machines do otherwise."""
    _, shown = run
    committed = [
        Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"])))
        for cell in code_cells()
        for output in cell["outputs"]
        if output["output_type"] == "execute_result"
    ]
    drawn = [value for value in shown if isinstance(value, Image.Image)]
    for one, other in zip(committed, drawn, strict=True):
        assert abs(arrays([one]) - arrays([other])).mean() < 2
