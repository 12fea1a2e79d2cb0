"""
How far decoded images are from real ones: L_rec, and the perceptual and adversarial terms of VQGAN beside it.

The squared error alone is a Gaussian decoder, whose best answer to doubt is a blur; against real images that blur is
the floor of every prior. Neither term is in the paper.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..losses import reconstruction_loss
from ..models.efficientnet_lite import PIXEL_MEAN, PIXEL_SCALE, feature_maps, load_efficientnet

# Images are enlarged for the feature network: at 32 pixels a side its fourth map would have 2 x 2 positions.
_ENLARGED = 2


class PerceptualLoss(nn.Module):
    r"""
    Distance of images in the features of a frozen EfficientNet-Lite0: the mean over four resolutions and all positions
    of ||f / |f| - f' / |f'|||^2 (LPIPS, Zhang et al. 2018, eq. 1, with every w_l = 1).

    Judge what was trained with it by another network: `evaluation.load_extractor("efficientnet-lite2")`.

    Raises:
        ValueError: the extra `eval`, which brings the weights, isn't installed.
    """

    def __init__(self) -> None:
        super().__init__()
        network: Any = load_efficientnet("efficientnet-lite0")
        network._blocks = network._blocks[:11]  # the fifth resolution isn't looked at
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
        x = F.interpolate(images.expand(-1, 3, -1, -1), scale_factor=_ENLARGED, mode="bilinear")
        x = ((x + 1) * 127.5 - PIXEL_MEAN) / PIXEL_SCALE
        return [F.normalize(f.float(), dim=1) for f in feature_maps(self.network, x)]


class PatchDiscriminator(nn.Sequential):
    """
    Tells real images from decoded ones by their texture (Isola et al. 2017): images (B, C, H, W) in [-1, 1] -> logits
    (B, 1, H / 4, W / 4), each of 18 x 18 pixels but for the groups' statistics. Positive means real.

    Args:
        in_channels (`int`): C.
        width (`int`): channels of the first layer; then twice and four times as many.
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
        channels (`int`): C of the images.
        l1_weight (`float`): weight of the absolute error beside the squared one.
        perceptual_weight (`float`), adversarial_weight (`float`): 0 leaves the term, and its network, out.
        adversarial_from (`int`): first step with the adversarial term.
    """

    def __init__(
        self,
        channels: int = 3,
        l1_weight: float = 0.0,
        perceptual_weight: float = 0.0,
        adversarial_weight: float = 0.0,
        adversarial_from: int = 0,
    ):
        super().__init__()
        self.l1_weight = l1_weight
        self.perceptual_weight, self.adversarial_weight = perceptual_weight, adversarial_weight
        self.adversarial_from, self.adversarial = adversarial_from, adversarial_from <= 0
        self.perceptual = PerceptualLoss() if perceptual_weight else None
        self.discriminator = PatchDiscriminator(channels) if adversarial_weight else None

    def set_step(self, step: int) -> None:
        """Told before every optimiser step."""
        self.adversarial = step >= self.adversarial_from

    def forward(self, images: torch.Tensor, reconstructions: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images (B, C, H, W) in [-1, 1] and what was decoded -> scalars, which are summed and minimised."""
        losses = {"reconstruction": reconstruction_loss(images, reconstructions, self.l1_weight)}
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual_weight * self.perceptual(images, reconstructions)
        if self.discriminator is not None and self.adversarial:
            constants = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
            judged = torch.func.functional_call(self.discriminator, constants, (reconstructions,))
            losses["adversarial"] = -self.adversarial_weight * judged.float().mean()
            real, decoded = self.discriminator(torch.cat([images, reconstructions.detach()])).float().chunk(2)
            losses["discriminator"] = (F.relu(1 - real).mean() + F.relu(1 + decoded).mean()) / 2
        return losses
