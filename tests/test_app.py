"""What examples/app.py computes, without a browser; test_app_in_browser.py has the page."""

import importlib.util
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_models import make_gray_pipeline, make_pipeline, rng

from diffusion_bridge_vq import DiffusionBridgeVQPipeline
from diffusion_bridge_vq.sampling import sample_latents

pytest.importorskip("gradio", reason="the page needs gradio: the extra `demo`")
pytestmark = pytest.mark.slow  # importing gradio

ROOT = Path(__file__).parents[1]
REQUEST = SimpleNamespace(session_hash="a session")


@pytest.fixture(scope="module")
def app():
    specification = importlib.util.spec_from_file_location("app", ROOT / "examples" / "app.py")
    specification.loader.exec_module(module := importlib.util.module_from_spec(specification))
    return module


def test_stop_ends_the_computing(app):
    page = app.Page(make_gray_pipeline())
    page.build()
    values = {control: control.value for control in page.settings} | {page.steps: 5}
    calls = []

    def progress(share, **kwargs) -> None:
        calls.append(share)
        if len(calls) == 3:
            page.stopping.add(REQUEST.session_hash)

    draw = partial(page.draw, DiffusionBridgeVQPipeline, values, 1, REQUEST, progress, batch_size=1)
    with pytest.raises(app.Stopped):
        draw()
    assert calls == [(1, 5), (2, 5), (3, 5)]
    draw()  # that was for one call
    assert len(calls) == 8


@pytest.mark.parametrize("classes", [None, 4])
def test_class_and_guidance(app, classes):
    pipe = make_pipeline(classes, size=3)
    page = app.Page(pipe)
    page.build()
    assert page.label.parent.parent.visible == (classes is not None)
    values = {control: control.value for control in page.settings} | {page.label: 1, page.guidance: 3.0, page.steps: 6}
    call = {"progress": lambda *args, **kwargs: None, "batch_size": 1, "output_type": "latent"}
    drawn = page.draw(DiffusionBridgeVQPipeline, values, 1, REQUEST, **call)
    labels = {} if classes is None else {"class_labels": torch.tensor([1]), "guidance_scale": 3.0}
    expected = sample_latents(
        pipe.unet, pipe.scheduler, (1, 3, 3, 3), 6, generator=[rng()], solver="dpmsolver++", **labels
    )
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0)


def test_without_the_checkpoint(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "app.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "call it from the repository" in done.stderr
