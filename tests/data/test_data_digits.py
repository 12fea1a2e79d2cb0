"""The embedded digits against scikit-learn's copy."""

import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest
import safetensors.torch
import torch

from diffusion_bridge_vq.data import load_images


def embedded():
    return safetensors.torch.load((files("diffusion_bridge_vq.data") / "digits.safetensors").read_bytes())


def test_embedded_digits_are_those_of_scikit_learn():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    tensors = embedded()
    assert set(tensors) == {"images", "labels"}
    np.testing.assert_array_equal(tensors["images"].numpy(), digits.images)
    np.testing.assert_array_equal(tensors["labels"].numpy(), digits.target)


def test_the_file_names_its_source():
    with safetensors.safe_open(str(files("diffusion_bridge_vq.data") / "digits.safetensors"), "pt") as file:
        metadata = file.metadata()
    assert "Alpaydin" in metadata["source"] and "1998" in metadata["source"]
    assert metadata["license"] == "CC BY 4.0"


def test_splits_are_disjoint_and_complete():
    tensors = embedded()
    splits = [load_images("digits", resolution=8, channels=1, split=split) for split in ("train", "test")]
    assert [len(split) for split in splits] == [1500, 297]
    for split in splits:
        assert torch.bincount(split.labels).min() > 0
        assert split.class_names == list("0123456789") and split.num_classes == 10 and split.name == "digits"
    # All 1797 digits differ, so what the splits hold together tells whether they overlap.
    items = [item for split in splits for item in split]
    found = {(int(item["labels"]), item["images"].numpy().tobytes()) for item in items}
    scaled = np.floor(tensors["images"].double().numpy() * 255 / 16 + 0.5).astype(np.uint8)
    expected = {(int(label), image.tobytes()) for label, image in zip(tensors["labels"].numpy(), scaled, strict=True)}
    assert len(expected) == 1797
    assert found == expected


def cubic_weights(size, new_size):
    """(new_size, size): Keys' cubic convolution, a = -1/2, normalized at the border."""
    x = np.abs((np.arange(new_size)[:, None] + 0.5) * size / new_size - 0.5 - np.arange(size))
    weights = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
    return weights / weights.sum(1, keepdims=True)


def test_upsampling_is_bicubic():
    weights = cubic_weights(8, 16)
    small = load_images("digits", resolution=8, channels=1)
    large = load_images("digits", resolution=16, channels=1)
    for index in range(20):
        image = small[index]["images"][0].double().numpy()
        wide = (image @ weights.T).clip(0, 255)  # Pillow rounds and clips after each direction
        expected = (weights @ wide).clip(0, 255)
        np.testing.assert_allclose(large[index]["images"][0].numpy(), expected, atol=1.5)


def test_three_channels_repeat_the_gray_one():
    gray = load_images("digits", resolution=16, channels=1, split="test")
    color = load_images("digits", resolution=16, split="test")
    assert color[5]["images"].shape == (3, 16, 16)
    assert torch.equal(color[5]["images"], gray[5]["images"].expand(3, -1, -1))


def test_the_split_is_settled_for_good():
    """Results quote these splits: the first labels of each pin the shuffle."""
    first = {
        split: load_images("digits", resolution=8, split=split).labels[:12].tolist() for split in ("train", "test")
    }
    assert first["train"] == [2, 8, 2, 6, 6, 7, 1, 9, 8, 5, 2, 8]
    assert first["test"] == [2, 2, 9, 8, 8, 3, 6, 0, 4, 4, 7, 6]


def test_bad_arguments():
    with pytest.raises(ValueError, match="no split 'validation'; choose one of train, test"):
        load_images("digits", resolution=8, split="validation")
    with pytest.raises(ValueError, match="no columns to choose from"):
        load_images("digits", resolution=8, label_column="label")


@pytest.mark.parametrize("resolution", [0, -4, 2.0, "8", True, None])
def test_bad_resolution(resolution):
    with pytest.raises(ValueError, match=rf"resolution is {resolution!r}; give a positive whole number"):
        load_images("digits", resolution=resolution)


@pytest.mark.parametrize("channels", [0, 2, 4, "3"])
def test_bad_channels(channels):
    with pytest.raises(ValueError, match=rf"channels is {channels!r}; choose 3 for RGB or 1 for gray"):
        load_images("digits", resolution=8, channels=channels)


def test_importing_and_digits_do_without_the_datasets_library():
    code = (
        "import sys; from diffusion_bridge_vq.data import load_images; load_images('digits', resolution=8); "
        "sys.exit('datasets' in sys.modules or 'sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
