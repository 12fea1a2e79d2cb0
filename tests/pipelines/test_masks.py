"""Forms of masks that hid something else than what was drawn, and that are read right or refused."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tiny_models import make_pipeline

from diffusion_bridge_vq import DiffusionBridgeVQInpaintPipeline


@pytest.fixture(scope="module")
def pipe() -> DiffusionBridgeVQInpaintPipeline:
    pipe = DiffusionBridgeVQInpaintPipeline(**make_pipeline().components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(mode: str, color, background=0) -> Image.Image:
    """A rectangle of two columns."""
    mask = Image.new(mode, (6, 6), background)
    ImageDraw.Draw(mask).rectangle((2, 0, 3, 5), fill=color)
    return mask


HIDDEN = torch.zeros(6, 6, dtype=torch.bool)
HIDDEN[:, 2:4] = True
WHITE_STROKES = {
    "RGBA": drawn("RGBA", (255, 255, 255, 255), (0, 0, 0, 0)),
    "RGBA on transparent white": drawn("RGBA", (255, 255, 255, 255), (255, 255, 255, 0)),
    "LA": drawn("LA", (255, 255), (0, 0)),
    "RGBA, opaque": drawn("RGBA", (255, 255, 255, 255), (0, 0, 0, 255)),
    "L": drawn("L", 255),
    "1": drawn("1", 1),
    "RGB": drawn("RGB", "white", "black"),
    "I;16": Image.fromarray(HIDDEN.numpy().astype(np.uint16) * 65535),
}


@pytest.mark.parametrize("form", WHITE_STROKES)
def test_white_is_hidden_and_transparent_is_known(pipe, form):
    assert torch.equal(pipe.read_mask(WHITE_STROKES[form], 1)[0, 0], HIDDEN)


def test_palettes_with_a_transparent_color(pipe):
    mask = drawn("L", 255).convert("P")
    mask.info["transparency"] = 0
    assert torch.equal(pipe.read_mask(mask, 1)[0, 0], HIDDEN)


@pytest.mark.parametrize("color", [(0, 0, 0, 255), (255, 255, 255, 0)])
def test_a_transparent_mask_without_white_is_refused(pipe, color):
    """Black strokes may mean the opposite, and nothing at all was hidden or everything."""
    with pytest.raises(ValueError, match="transparent in part and white nowhere"):
        pipe.read_mask(drawn("RGBA", color, (0, 0, 0, 0)), 1)


def test_the_remedy_for_soft_edges_of_a_layer_gives_what_was_drawn(pipe):
    mask = drawn("RGBA", (255, 255, 255, 200), (0, 0, 0, 0))
    with pytest.raises(ValueError, match="round it first") as error:
        pipe.read_mask(mask, 1)
    remedy = str(error.value).split("`")[3]
    assert torch.equal(pipe.read_mask(eval(remedy, {"mask_image": mask}), 1)[0, 0], HIDDEN)


@pytest.mark.parametrize(
    "mask", [drawn("L", 200), HIDDEN * 0.8, (HIDDEN * 200).to(torch.uint8), HIDDEN.numpy() * np.uint8(200)]
)
def test_the_remedy_for_gray_gives_black_and_white(pipe, mask):
    with pytest.raises(ValueError, match=r"black .known. and white .hidden. only") as error:
        pipe.read_mask(mask, 1)
    remedy = str(error.value).split("`")[3]
    assert torch.equal(pipe.read_mask(eval(remedy, {"mask_image": mask}), 1)[0, 0], HIDDEN)


@pytest.mark.parametrize(
    "mask",
    [
        HIDDEN.to(torch.uint8),
        HIDDEN.numpy().astype(np.uint8),
        drawn("L", 1),
        Image.fromarray(HIDDEN.numpy().astype(np.uint16)),
        torch.ones(6, 6, dtype=torch.uint8),
    ],
)
def test_ones_of_a_type_whose_white_is_larger(pipe, mask):
    """The old remedy, to round, made everything known."""
    with pytest.raises(ValueError, match="has the value 1, almost black") as error:
        pipe.read_mask(mask, 1)
    remedy = str(error.value).split("`")[3]
    expected = HIDDEN if np.asarray(mask).min() == 0 else torch.ones_like(HIDDEN)
    assert torch.equal(pipe.read_mask(eval(remedy, {"mask_image": mask, "Image": Image, "np": np}), 1)[0, 0], expected)


@pytest.mark.parametrize(
    "wrong",
    [
        *("mask.png", None, 5, np.array("x"), np.zeros(6), np.zeros((6, 6), dtype=complex), [[0, 1]]),
        *(np.zeros((1, 1, 6, 6, 1)), torch.zeros(6), torch.zeros(6, 6, dtype=torch.complex64), {}),
    ],
)
def test_what_is_no_mask(pipe, wrong):
    with pytest.raises(ValueError, match=r"Images and masks must be PIL images|round it first"):
        pipe.read_mask(wrong, 1)


@pytest.mark.parametrize("as_array", [lambda image: image, np.asarray])
def test_no_warnings_of_arrays_that_can_not_be_written(pipe, as_array):
    image = as_array(Image.new("RGB", (6, 6), "red"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe(image, as_array(WHITE_STROKES["L"]), 2, output_type="pt")
