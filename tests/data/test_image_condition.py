"""What a model draws from, made of images as Pillow makes it, or read from a column."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from diffusion_bridge_vq.data import ImageCondition, load_images, stream_images
from diffusion_bridge_vq.data.pixels import to_bytes, to_pixels

NUMBERS = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
PIXELS = to_pixels(torch.from_numpy(NUMBERS).movedim(-1, 1))


def test_gray_is_that_of_pillow():
    found = to_bytes(ImageCondition.parse("gray", 3, 8).derive(PIXELS))
    expected = [np.array(Image.fromarray(image).convert("L")) for image in NUMBERS]
    assert found.shape == (2, 1, 8, 8)
    assert np.array_equal(found[:, 0].numpy(), np.stack(expected))


def test_low_resolution_is_the_mean_over_squares():
    """Pillow rounds rows and columns one after the other: one level apart at most."""
    condition = ImageCondition.parse("low-resolution:4", 3, 8)
    found = to_bytes(condition.derive(PIXELS))
    expected = [np.array(Image.fromarray(image).resize((4, 4), Image.Resampling.BOX)) for image in NUMBERS]
    assert (condition.channels, condition.side) == (3, 4)
    assert np.abs(found.movedim(1, -1).numpy().astype(int) - np.stack(expected)).max() <= 1
    mirrored = condition.derive(PIXELS.flip(-1))
    assert torch.equal(mirrored, condition.derive(PIXELS).flip(-1))


@pytest.mark.parametrize(
    ("name", "channels", "message"),
    [
        ("sepia", 3, "must be gray, low-resolution:SIDE or column:NAME, got 'sepia'"),
        (3, 3, "got 3"),
        ("column:", 3, "got 'column:'"),
        ("gray", 1, "is the image itself"),
        ("low-resolution:8", 3, "less than that of the images, 8, and divide it"),
        ("low-resolution:3", 3, "divide it"),
        ("low-resolution:0", 3, "must be gray"),
    ],
)
def test_other_conditions_are_refused(name, channels, message):
    with pytest.raises(ValueError, match=message):
        ImageCondition.parse(name, channels, 8)


def test_a_column_is_not_made_of_images():
    condition = ImageCondition.parse("column:edges", 3, 8)
    assert (condition.column, condition.channels, condition.side) == ("edges", 3, 8)
    with pytest.raises(ValueError, match="the batch must have it"):
        condition.derive(PIXELS)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> str:
    """Two columns of images, the second of which is gray."""
    photos = [Image.fromarray(image) for image in NUMBERS]
    rows = {"photo": photos, "edges": [photo.convert("L") for photo in photos]}
    folder = tmp_path_factory.mktemp("table")
    features = Features({name: ImageFeature() for name in rows})
    Dataset.from_dict(rows, features=features).to_parquet(folder / "train-00000-of-00001.parquet")
    return str(folder)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_column_comes_with_its_image(table, in_memory):
    images = load_images(table, resolution=8, condition_column="edges", in_memory=in_memory)
    batch = images.collate(images.__getitems__([1, 0]))
    assert torch.equal(batch["images"], torch.from_numpy(NUMBERS[[1, 0]]).movedim(-1, 1))
    assert batch["conditions"].shape == (2, 3, 8, 8)
    gray = torch.from_numpy(np.array(Image.fromarray(NUMBERS[1]).convert("L")))
    assert torch.equal(batch["conditions"][0], gray.expand(3, 8, 8))
    alone = load_images(table, resolution=8, image_column="photo")
    assert alone.fingerprint != images.fingerprint and "conditions" not in alone[0]


def test_columns_that_are_not_there_are_refused(table):
    with pytest.raises(ValueError, match="condition_column 'lines' holds no images; the columns are photo"):
        load_images(table, resolution=8, condition_column="lines")
    for load in (load_images, stream_images):
        with pytest.raises(ValueError, match="image_column and condition_column are both 'edges'"):
            load(table, resolution=8, image_column="edges", condition_column="edges")
    with pytest.raises(ValueError, match="'digits' has no columns"):
        load_images("digits", resolution=8, channels=1, condition_column="edges")
