"""Stage 2: a prior on what a frozen autoencoder makes of the images."""

import math
from typing import Any

import torch
from diffusers import UNet2DModel

from ...losses import Weighting, prior_loss
from ...models import GumbelVQModel, PixelCNNPrior, bridge_start_latents, denoise
from ...schedulers import OUBridgeScheduler
from .base import Objective, ObjectiveOutput, root_mean_square


class _FrozenVQObjective(Objective):
    """Stage 2: a prior is trained on what a frozen autoencoder, which stays in eval, makes of the images."""

    def __init__(self, vqvae: GumbelVQModel):
        super().__init__()
        self.vqvae = vqvae.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "_FrozenVQObjective":
        super().train(mode)
        self.vqvae.eval()
        return self


class PriorObjective(_FrozenVQObjective):
    """
    Stage 2: the eps-network on the latents of a frozen autoencoder (L_t alone; L_rec and L_T are constants then).

    Args:
        vqvae ([`GumbelVQModel`]): frozen, stays in eval.
        unet (`UNet2DModel`): trained; of a [`CodeUNet2DModel`] the bridge starts from z_q instead of z_e.
        scheduler ([`OUBridgeScheduler`]): the bridge.
        weighting (`str`): "elbo", "simple" or "min_snr", see `losses.prior_loss`.
        class_dropout (`float`): share of labels replaced by the null class, in [0, 1], for guidance.
    """

    trained = ("unet",)
    unet: UNet2DModel
    scheduler: OUBridgeScheduler

    def __init__(
        self,
        vqvae: GumbelVQModel,
        unet: UNet2DModel,
        scheduler: OUBridgeScheduler,
        weighting: Weighting = "simple",
        class_dropout: float = 0.1,
    ):
        super().__init__(vqvae)
        self.unet, self.scheduler = unet, scheduler
        self.weighting, self.class_dropout = weighting, class_dropout

    def forward(
        self,
        images: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
    ) -> ObjectiveOutput:
        """As the base class; cached `latents` z_e (B, d, h, w) may stand in for images."""
        if latents is None:
            with torch.no_grad():
                latents = self.vqvae.encode(images).latents
        z_0 = bridge_start_latents(self.unet, self.vqvae.quantize, latents)
        draw = draw_noise(self.scheduler, z_0)
        loss = bridge_loss(self, z_0, *draw, class_labels)
        return ObjectiveOutput({"prior": loss}, {"latent_rms": root_mean_square(latents)})


class PixelCNNObjective(_FrozenVQObjective):
    """
    Stage 2 of the baseline: -log p(codes) of a PixelCNN on the codes of a frozen autoencoder, in nats per code.

    Args:
        vqvae ([`GumbelVQModel`]): frozen, stays in eval.
        prior ([`PixelCNNPrior`]): trained.
        class_dropout (`float`): share of labels replaced by the null class, in [0, 1].
    """

    trained = ("prior",)
    prior: PixelCNNPrior

    def __init__(self, vqvae: GumbelVQModel, prior: PixelCNNPrior, class_dropout: float = 0.1):
        super().__init__(vqvae)
        self.prior, self.class_dropout = prior, class_dropout

    def forward(
        self,
        images: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        codes: torch.Tensor | None = None,
    ) -> ObjectiveOutput:
        """As the base class; cached `codes` (B, h, w) may stand in for images."""
        if codes is None:
            with torch.no_grad():
                codes = self.vqvae.encode_codes(self.vqvae.encode(images).latents)
        labels = _labels(self, self.prior.config.num_class_embeds, class_labels)
        nats = -self.prior.log_prob(codes, labels).mean()
        return ObjectiveOutput({"cross_entropy": nats}, {"bits_per_code": nats.detach() / math.log(2)})


def draw_noise(scheduler: OUBridgeScheduler, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One timestep per sample, uniform over the schedule, and the noise."""
    timesteps = torch.randint(len(scheduler), (latents.shape[0],), device=latents.device)
    return timesteps, torch.randn_like(latents)


def bridge_loss(
    objective: Any,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    noise: torch.Tensor,
    class_labels: torch.Tensor | None,
) -> torch.Tensor:
    scheduler, unet = objective.scheduler, objective.unet
    num_embeds = getattr(unet.config, "num_class_embeds", None)  # 1-D networks have no classes
    class_labels = _labels(objective, num_embeds, class_labels)
    z_t = scheduler.add_noise(latents, noise, timesteps)
    output = denoise(unet, scheduler, z_t, timesteps, class_labels)
    return prior_loss(scheduler, output, latents, noise, timesteps, objective.weighting)


def _labels(
    objective: Any,
    num_embeds: int | None,
    class_labels: torch.Tensor | None,
) -> torch.Tensor | None:
    """What a prior with `num_embeds` classes is given: in training, the null class in place of some labels."""
    if num_embeds is None:
        return None
    if class_labels is None:
        raise ValueError("The prior has classes, but the batch has no labels; name the column by `label_column`.")
    if objective.class_dropout > 0 and objective.training:
        dropped = torch.rand(class_labels.shape, device=class_labels.device) < objective.class_dropout
        class_labels = torch.where(dropped, num_embeds - 1, class_labels)
    return class_labels
