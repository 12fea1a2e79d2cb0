"""
How far decoded images are from real ones: L_rec, and the perceptual and adversarial terms of VQGAN.

The squared error alone is a Gaussian decoder, which blurs what the codes leave open; no prior's samples can be sharper
than that. Neither term is in the paper.
"""

from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..choices import PerceptualFeatures
from ..models.arguments import Integer, Number, Rule, check_arguments
from ..models.efficientnet_lite import PIXEL_MEAN, PIXEL_SCALE, feature_maps, load_efficientnet
from ..models.inputs import check_same_shape

_WEIGHT = Number(low=0)
_ARGUMENTS: dict[str, Rule] = {
    "channels": Integer(),
    "l1_weight": _WEIGHT,
    "perceptual_weight": _WEIGHT,
    "adversarial_weight": _WEIGHT,
    "adversarial_from": Integer(0),
}
_OFFLINE = "`perceptual_features` that need no internet are 'efficientnet-lite0' (extra `eval`)."

# Smaller images are enlarged to twice their size for the feature network: of 32 pixels a side its fourth map would be
# 2 x 2 positions.
_LARGE_ENOUGH = 64


def reconstruction_loss(images: torch.Tensor, reconstructions: torch.Tensor, l1_weight: float = 0.0) -> torch.Tensor:
    """
    -L_rec up to constants: mean squared error + l1_weight * mean absolute error; (B, C, H, W) in [-1, 1] -> ().

    Raises:
        TypeError, ValueError: not two tensors of floating point and of one shape, or a weight that isn't a finite
            number of at least 0.
    """
    check_same_shape(images=images, reconstructions=reconstructions)
    check_arguments("reconstruction_loss", {"l1_weight": l1_weight}, {"l1_weight": _WEIGHT})
    loss = F.mse_loss(reconstructions.float(), images.float())
    return loss + l1_weight * F.l1_loss(reconstructions.float(), images.float()) if l1_weight else loss


class PerceptualLoss(nn.Module):
    r"""
    Distance of images in the features of a frozen EfficientNet-Lite0: the mean over four resolutions and all positions
    of ||f / |f| - f' / |f'|||^2 (LPIPS, Zhang et al. 2018, eq. 1, with every w_l = 1).

    Evaluate models that were trained with it by another network: `evaluation.load_extractor("efficientnet-lite2")`.

    Raises:
        ValueError: the extra `eval`, which brings the weights, isn't installed.
    """

    def __init__(self) -> None:
        super().__init__()
        network: Any = load_efficientnet("efficientnet-lite0")
        network._blocks = network._blocks[:11]  # the fifth resolution isn't used
        _fold_batch_norms(network)
        self.network = network

    def train(self, mode: bool = True) -> "PerceptualLoss":
        return super().train(False)

    def forward(self, images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        """Images (B, 1 or 3, H, W) in [-1, 1], twice -> () in [0, 4]; the gradient reaches `reconstructions`."""
        with torch.no_grad():
            wanted = self._features(images)
        found = self._features(reconstructions)
        distances = [(a - b).square().sum(dim=1).mean() for a, b in zip(wanted, found, strict=True)]
        return torch.stack(distances).mean()

    def _features(self, images: torch.Tensor) -> list[torch.Tensor]:
        x = images.expand(-1, 3, -1, -1)
        if min(x.shape[2:]) < _LARGE_ENOUGH:
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
        x = ((x + 1) * 127.5 - PIXEL_MEAN) / PIXEL_SCALE
        return [F.normalize(f.float(), dim=1) for f in feature_maps(self.network, x)]


def _fold_batch_norms(network: Any) -> None:
    """Into the convolutions before them: the network is frozen, so they are constants."""

    def fold(block: Any, conv: str, norm: str) -> None:
        setattr(block, conv, fuse_conv_bn_eval(getattr(block, conv), getattr(block, norm)))
        setattr(block, norm, nn.Identity())

    fold(network, "_conv_stem", "_bn0")
    for block in network._blocks:
        if hasattr(block, "_expand_conv"):
            fold(block, "_expand_conv", "_bn0")
        fold(block, "_depthwise_conv", "_bn1")
        fold(block, "_project_conv", "_bn2")


class LPIPSLoss(nn.Module):
    """
    LPIPS (Zhang et al. 2018) in VGG-16's features, as in VQGAN: torchmetrics' network, frozen and in eval mode.

    The w_l, fitted to people's ratings, are a file of torchmetrics, which loads them. VGG-16's weights, from
    ImageNet, are torchvision's: 528 MB that torch.hub downloads at the first use, checks against the hash in their
    name, and keeps. Both are read with `weights_only`. torchvision's own constructors unpickle whatever the file
    holds, so they make the network without weights.

    Evaluate models that were trained with it by another network, as with [`PerceptualLoss`].

    Raises:
        ValueError: torchmetrics or torchvision isn't installed, or the weights can't be had, with what to do instead.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from torchmetrics.functional.image.lpips import _NoTrainLpips
            from torchvision.models import VGG16_Weights

            self.network = _NoTrainLpips(net="vgg", pnet_rand=True)
        except ImportError as error:
            raise ValueError(
                f"'lpips' needs the extra `eval` (pip install -e '.[eval]' in the repository) and a torchvision "
                f"that was built for torch {torch.__version__}: {error}. {_OFFLINE}"
            ) from error
        try:
            weights = VGG16_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:  # urllib's; the hash's
            raise ValueError(f"'lpips' could not download VGG-16's weights ({error}). {_OFFLINE}") from error
        for part in self.network.net.children():  # layers keep the numbers that they have in torchvision
            part.load_state_dict({name: weights[f"features.{name}"] for name in part.state_dict()})

    def forward(self, images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        """Images (B, 1 or 3, H, W >= 16) in [-1, 1], twice -> (), >= 0; the gradient reaches `reconstructions`."""
        pair = (x.expand(-1, 3, -1, -1) for x in (images, reconstructions))
        return self.network(*pair).float().mean()


class PatchDiscriminator(nn.Sequential):
    """
    Classifies images as real or decoded by their texture (Isola et al. 2017): images (B, C, H, W) in [-1, 1] -> logits
    (B, 1, H / 4, W / 4), each of 18 x 18 pixels but for the groups' statistics. Positive means real.

    Args:
        in_channels (`int`): C.
        width (`int`, *optional*, defaults to 32): channels of the first layer; then twice and four times as many.
    """

    def __init__(self, in_channels: int, width: int = 32):
        super().__init__(
            nn.Conv2d(in_channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1),
            nn.GroupNorm(8, 4 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 1),
        )


class ReconstructionLoss(nn.Module):
    """
    The terms of decoded images, weighted, by name: "reconstruction", "perceptual", "adversarial", "discriminator".

    The adversarial term and its opponent (hinge losses, as in VQGAN, Esser et al. 2021) begin at `adversarial_from`.
    One backward pass serves both: the term sees the discriminator's weights as constants, the opponent's loss sees the
    images as constants.

    Args:
        channels (`int`, *optional*, defaults to 3): C of the images.
        l1_weight (`float`, *optional*, defaults to 0.0): weight of the absolute error, added to the squared one.
        perceptual_weight (`float`, *optional*, defaults to 0.0): 0 leaves the term, and its network, out.
        adversarial_weight (`float`, *optional*, defaults to 0.0): 0 leaves the term, and its network, out.
        perceptual_features (`str`, *optional*, defaults to `"efficientnet-lite0"`): "efficientnet-lite0" for
            [`PerceptualLoss`], "lpips" for [`LPIPSLoss`].
        adversarial_from (`int`, *optional*, defaults to 0): first step with the adversarial term.

    Raises:
        ValueError: other `perceptual_features`, a number outside its range, or a network that can't be had here, with
            what to do instead.
    """

    def __init__(
        self,
        channels: int = 3,
        l1_weight: float = 0.0,
        perceptual_weight: float = 0.0,
        perceptual_features: PerceptualFeatures = "efficientnet-lite0",
        adversarial_weight: float = 0.0,
        adversarial_from: int = 0,
    ):
        super().__init__()
        given = {
            "channels": channels,
            "l1_weight": l1_weight,
            "perceptual_weight": perceptual_weight,
            "adversarial_weight": adversarial_weight,
            "adversarial_from": adversarial_from,
        }
        check_arguments("ReconstructionLoss", given, _ARGUMENTS)
        choices = get_args(PerceptualFeatures)
        if perceptual_features not in choices:
            raise ValueError(f"`perceptual_features` must be one of {choices}, got {perceptual_features!r}.")
        perceptual = PerceptualLoss if perceptual_features == "efficientnet-lite0" else LPIPSLoss
        self.l1_weight, self.perceptual_weight = l1_weight, perceptual_weight
        self.adversarial_weight, self.adversarial_from = adversarial_weight, adversarial_from
        self.perceptual = perceptual() if perceptual_weight else None
        self.discriminator = PatchDiscriminator(channels) if adversarial_weight else None
        self.set_step(0)

    def set_step(self, step: float) -> None:
        """Called before every optimizer step with its place in the schedule."""
        self.adversarial = step >= self.adversarial_from

    def forward(self, images: torch.Tensor, reconstructions: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images (B, C, H, W) in [-1, 1] and what was decoded -> scalars, which are summed and minimized."""
        losses = {"reconstruction": reconstruction_loss(images, reconstructions, self.l1_weight)}
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual_weight * self.perceptual(images, reconstructions)
        if self.discriminator is not None and self.adversarial:
            constants = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
            logits = torch.func.functional_call(self.discriminator, constants, (reconstructions,))
            losses["adversarial"] = -self.adversarial_weight * logits.float().mean()
            real, decoded = self.discriminator(torch.cat([images, reconstructions.detach()])).float().chunk(2)
            losses["discriminator"] = (F.relu(1 - real).mean() + F.relu(1 + decoded).mean()) / 2
        return losses
