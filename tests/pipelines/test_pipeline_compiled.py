"""The compiled pipeline against itself before."""

import logging

import pytest
import torch
from heard_logs import heard
from reference_pipeline import run
from tiny_models import STEPS, make_pipeline

from diffusion_bridge_vq import DiffusionBridgeVQPipeline


class Counting:
    """A backend for `torch.compile` that runs graphs as they are and counts them."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def no_compiled_code_left():
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("no_compiled_code_left")
@pytest.mark.parametrize("classes", [None, 4])
def test_compiled_images_are_the_same(tmp_path, classes):
    """Within 1e-5 in float32, with shapes compiled once; the layout is no part of what is saved."""
    pipe, backend = make_pipeline(classes=classes), Counting()
    labels = {"class_labels": [0, 2]} if classes else {}
    expected = run(pipe, **labels)
    pipe.compile(batch_size=2, backend=backend)
    graphs = backend.graphs
    assert graphs >= 2 and pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    for solver in (None, "ancestral", "ddim"):
        for steps in (STEPS, 10):
            run(pipe, solver=solver, num_inference_steps=steps, **labels)
    torch.testing.assert_close(run(pipe, **labels), expected, atol=1e-5, rtol=0)
    assert backend.graphs == graphs  # neither steps, solvers nor noise compile anything again
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionBridgeVQPipeline.from_pretrained(tmp_path)
    torch.testing.assert_close(run(loaded, **labels), expected, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("no_compiled_code_left")
def test_what_cannot_be_compiled_goes_on_with_a_warning(caplog):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    pipe = make_pipeline()
    expected = run(pipe)
    with heard(caplog, logging.getLogger("diffusers")):
        pipe.compile(batch_size=2, backend=broken)
    assert "goes on as it was" in caplog.text and "no compiler here" in caplog.text
    assert torch.equal(run(pipe), expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fulgraph": True}, "unexpected keyword argument 'fulgraph'"),
        ({"mode": "fastest"}, "Unrecognized mode=fastest"),
        ({"backend": "nope"}, "Invalid backend: 'nope'"),
    ],
)
def test_wrong_arguments_are_no_failure_to_compile(wrong, message):
    """They raise, and nothing is changed."""
    pipe = make_pipeline()
    expected = run(pipe)
    with pytest.raises((TypeError, RuntimeError), match=message):
        pipe.compile(**wrong)
    assert pipe.unet.conv_in.weight.is_contiguous() and torch.equal(run(pipe), expected)
