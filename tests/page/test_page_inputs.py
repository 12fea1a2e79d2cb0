"""Pictures, masks and the model card, as they come in."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from diffusion_bridge_vq.page.masks import PRESETS, preset_masks, read_mask
from diffusion_bridge_vq.page.pictures import MAX_FILE_BYTES, from_data_url, to_data_url


@pytest.mark.parametrize("side", range(3, 23))
def test_center_is_in_the_center(side):
    mask = np.array(preset_masks(side)["center hidden"])
    assert (mask == mask[::-1]).all() and (mask == mask[:, ::-1]).all() and 0 < mask.sum() < side**2


def test_masks_do_what_their_names_say():
    masks = {name: np.array(mask) for name, mask in preset_masks(8).items()}
    assert list(masks) == list(PRESETS)
    assert not masks["left half given"][:, :4].any() and masks["left half given"][:, 4:].all()
    assert not masks["top half given"][:4].any() and masks["top half given"][4:].all()
    assert masks["top left hidden"][:3, :3].all() and masks["top left hidden"].sum() == 9
    assert np.array(preset_masks(21)["center hidden"])[6:15, 6:15].sum() == 81  # the paper's


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        ("left-half", "must be one of 'left half given'"),
        ([[0, 0], [0, 0]], "Nothing is hidden"),
        ([[0, 2], [0, 0]], "whole numbers from 0 to 1"),
        ([[0, 1]], "2 lists of 2"),
    ],
)
def test_wrong_masks(hidden, message):
    with pytest.raises(ValueError, match=message):
        read_mask(hidden, 2)


def file_url(image: Image.Image, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return "data:application/octet-stream;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_a_photo_is_converted_as_in_training():
    picture = Image.new("RGB", (60, 40), "red")
    picture.paste("blue", (4, 0, 56, 40))
    image, size = from_data_url(file_url(picture), 16, 3)
    assert size == (60, 40) and image.size == (16, 16)
    assert (np.asarray(image) == (0, 0, 255)).all()  # its center


def test_a_picture_of_the_models_size_stays_as_it_is():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8))
    image, _ = from_data_url(to_data_url(picture), 16, 1)
    assert (np.asarray(image) == np.asarray(picture)).all()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://example.com/a.png", "must be a data URL"),
        (None, "must be a data URL"),
        ("data:image/png;base64,!!!", "isn't base64"),
        ("data:image/png;base64," + base64.b64encode(b"no image").decode(), "not an image"),
        (file_url(Image.new("RGB", (40, 9))), "has 40 x 9 pixels, fewer than the model's 16 x 16"),
        ("data:image/png;base64," + "A" * (MAX_FILE_BYTES * 4 // 3 + 8), "larger than 20 MB"),
    ],
)
def test_wrong_pictures(url, message):
    with pytest.raises(ValueError, match=message):
        from_data_url(url, 16, 3)


def test_card(tmp_path):
    card = pytest.importorskip("diffusion_bridge_vq.page.card", reason="the card needs markdown-it-py")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "README.md").write_text(
        "---\nlicense: mit\n---\n# Title\n\n<script>alert(1)</script>\n\n| a |\n|---|\n| 1 |\n"
    )
    assert card.card_folder(str(tmp_path / "pipeline")) == tmp_path
    page = card.card_html("model", (tmp_path / "README.md").read_text())
    assert "<h1>Title</h1>" in page and "<table tabindex" in page and "license" not in page and "<script>" not in page
    assert not card.is_on_hub(str(tmp_path)) and card.is_on_hub("user/model")
