"""
What each kind of run minimises: one module per objective, whose `forward(images)` computes every loss in one call.

One forward matters under DistributedDataParallel: calling an inner model behind the wrapper's back would skip the
gradient synchronisation.
"""

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from diffusers import UNet2DModel
from torch import nn

from ..losses import (
    Regularization,
    Weighting,
    prior_loss,
    regularization_loss,
    terminal_loss,
)
from ..models import GumbelVQModel, PixelCNNPrior, bridge_start_latents, denoise
from ..schedulers import OUBridgeScheduler
from .reconstruction import ReconstructionLoss


class ObjectiveOutput(NamedTuple):
    """`losses`: weighted terms, whose sum is minimised. `metrics`: detached numbers to look at. All are scalars."""

    losses: dict[str, torch.Tensor]
    metrics: dict[str, torch.Tensor]


class Objective(nn.Module):
    """
    Base: a module that knows how far the run is. `trained` names the submodules that are trained, averaged and saved.
    """

    trained: ClassVar[tuple[str, ...]]
    vqvae: GumbelVQModel

    def set_step(self, step: int) -> None:
        """Told before every optimiser step; phases and ramps hang on it."""

    def forward(self, images: torch.Tensor, class_labels: torch.Tensor | None = None) -> ObjectiveOutput:
        """Images (B, C, H, W) in [-1, 1] and optional classes (B,) -> named losses."""
        raise NotImplementedError


class VQObjective(Objective):
    """
    Stage 1: reconstruction and codebook, the T = 0 case of the paper.

    Args:
        vqvae ([`GumbelVQModel`]): trained.
        reconstruction ([`ReconstructionLoss`], *optional*): what decoded images are held to; the squared error alone.
    """

    trained = ("vqvae", "discriminator")

    def __init__(self, vqvae: GumbelVQModel, reconstruction: ReconstructionLoss | None = None):
        super().__init__()
        self.vqvae, self.reconstruction = vqvae, reconstruction or ReconstructionLoss()
        self.discriminator = self.reconstruction.discriminator

    def set_step(self, step: int) -> None:
        self.reconstruction.set_step(step)

    def forward(self, images: torch.Tensor, class_labels: torch.Tensor | None = None) -> ObjectiveOutput:
        latents = self.vqvae.encode(images).latents
        z_q, codebook, (perplexity, _, _) = self.vqvae.quantize(latents)
        losses = self.reconstruction(images, self.vqvae.decode(z_q, True).sample) | {"codebook": codebook}
        return ObjectiveOutput(losses, {"latent_rms": _rms(latents), "batch_perplexity": perplexity})


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
        draw = _draw(self.scheduler, z_0)
        loss = _prior_loss(self, z_0, *draw, class_labels)
        return ObjectiveOutput({"prior": loss}, {"latent_rms": _rms(latents)})


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


class E2EObjective(Objective):
    r"""
    Algorithm 1: encoder, decoder, codebook and prior at once, L_rec + L_t + L_t^reg with one t per sample.

    `mode` settles what may move the encoder:

    - "paper": as printed. Every gradient flows, also the prior's into the encoder, with its full weight. Algorithm 1
      draws one of t = 0..T. Here it is one of the T steps of the bridge; L_T and L_0^reg, the terms without one, join
      every time with their share 1 / T. Latents keep the scale they came with (the normaliser is frozen). The sum can
      be won by shrinking the latents.
    - "stable": latents have unit variance, batch by batch. The prior's gradient reaches the encoder through frozen
      prior weights, times `encoder_gradient_weight`, which rises linearly from 0 over the joint phase's first
      `ramp_steps`. Until `joint_from` the autoencoder learns alone; from `freeze_from` on only the prior does.

    Args:
        vqvae ([`GumbelVQModel`]), unet (`UNet2DModel`): trained.
        scheduler ([`OUBridgeScheduler`]): the bridge.
        mode (`str`): "stable" or "paper".
        weighting (`str`), class_dropout (`float`): see [`PriorObjective`].
        reconstruction_weight (`float`): w of `losses`: a Gaussian decoder of variance D / (2 w N d).
        reconstruction ([`ReconstructionLoss`], *optional*): see [`VQObjective`].
        regularization (`str`), regularization_weight (`float`): form and weight of L_t^reg.
        encoder_gradient_weight (`float`), ramp_steps, joint_from, freeze_from (`int`): see "stable"; steps.

    Raises:
        ValueError: an unknown mode.
    """

    trained = ("vqvae", "unet", "discriminator")
    unet: UNet2DModel
    scheduler: OUBridgeScheduler
    encoder_gradient_scale: torch.Tensor

    def __init__(
        self,
        vqvae: GumbelVQModel,
        unet: UNet2DModel,
        scheduler: OUBridgeScheduler,
        mode: Literal["stable", "paper"] = "stable",
        weighting: Weighting = "simple",
        class_dropout: float = 0.1,
        reconstruction_weight: float = 1.0,
        reconstruction: ReconstructionLoss | None = None,
        regularization: Regularization = "gamma",
        regularization_weight: float = 1.0,
        encoder_gradient_weight: float = 0.1,
        ramp_steps: int = 0,
        joint_from: int = 0,
        freeze_from: int | None = None,
    ):
        super().__init__()
        if mode not in ("stable", "paper"):
            raise ValueError(f"`mode` must be stable or paper, got {mode!r}.")
        self.vqvae, self.unet, self.scheduler = vqvae, unet, scheduler
        self.mode, self.weighting, self.class_dropout = mode, weighting, class_dropout
        self.reconstruction_weight = reconstruction_weight
        self.reconstruction = reconstruction or ReconstructionLoss()
        self.discriminator = self.reconstruction.discriminator
        self.regularization, self.regularization_weight = regularization, regularization_weight
        self.encoder_gradient_weight, self.ramp_steps = encoder_gradient_weight, ramp_steps
        self.joint_from, self.freeze_from = joint_from, freeze_from
        if mode == "paper":
            vqvae.normalizer.freeze()
        # a tensor, so that a compiled forward isn't compiled again for every value
        self.register_buffer("encoder_gradient_scale", torch.zeros(()), persistent=False)
        self.set_step(0)

    def set_step(self, step: int) -> None:
        self.reconstruction.set_step(step)
        if self.mode == "paper":
            self.joint, self.frozen, scale = True, False, 1.0
        else:
            self.joint = step >= self.joint_from
            self.frozen = self.freeze_from is not None and step >= self.freeze_from
            ramp = min(1.0, (step - self.joint_from) / self.ramp_steps) if self.ramp_steps else 1.0
            scale = self.encoder_gradient_weight * ramp if self.joint else 0.0
        self.encoder_gradient_scale.fill_(scale)
        if self.vqvae.training != (self.training and not self.frozen):
            self.vqvae.train(self.training and not self.frozen)

    def train(self, mode: bool = True) -> "E2EObjective":
        super().train(mode)
        self.vqvae.train(mode and not self.frozen)
        return self

    def forward(self, images: torch.Tensor, class_labels: torch.Tensor | None = None) -> ObjectiveOutput:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            latents = self.vqvae.encode(images).latents  # z_e^0
            z_q, codebook, (perplexity, _, _) = self.vqvae.quantize(latents)
        losses, metrics = {}, {"latent_rms": _rms(latents), "batch_perplexity": perplexity}
        if not self.frozen:
            for name, loss in self.reconstruction(images, self.vqvae.decode(z_q, True).sample).items():
                losses[name] = loss if name == "discriminator" else self.reconstruction_weight * loss
            # Algorithm 1 has no codebook term: there L_t^reg ties codes and latents. An EMA codebook has no other.
            if self.mode == "stable" or self.vqvae.quantize.quantizer_type == "ema":
                losses["codebook"] = codebook
        if self.joint:
            timesteps, noise = _draw(self.scheduler, latents)
            z_0 = _ScaleGradient.apply(latents, self.encoder_gradient_scale)
            losses["prior"] = _prior_loss(self, z_0, timesteps, noise, class_labels)
            if not self.frozen and self.regularization != "none":
                z_t = self.scheduler.add_noise(latents, noise, timesteps)
                regularization = self._regularization(z_t, timesteps)
                if self.mode == "paper":
                    clean = self._regularization(latents, torch.full_like(timesteps, -1))  # L_0^reg
                    regularization = regularization + clean / len(self.scheduler)
                losses["regularization"] = self.regularization_weight * regularization
            if self.mode == "paper":
                losses["terminal"] = terminal_loss(self.scheduler, z_0) / len(self.scheduler)
        return ObjectiveOutput(losses, metrics)

    def _regularization(self, z_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return regularization_loss(self.scheduler, self.vqvae.quantize, z_t, timesteps, self.regularization)


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by `scale`: the prior's weights keep theirs, the encoder gets a share."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(scale)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        (scale,) = ctx.saved_tensors
        return grad_outputs[0] * scale.to(grad_outputs[0].dtype), None


def _draw(scheduler: OUBridgeScheduler, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One timestep per sample, uniform over the schedule, and the noise."""
    timesteps = torch.randint(len(scheduler), (latents.shape[0],), device=latents.device)
    return timesteps, torch.randn_like(latents)


def _prior_loss(
    objective: PriorObjective | E2EObjective,
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
    objective: PriorObjective | PixelCNNObjective | E2EObjective,
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


def _rms(latents: torch.Tensor) -> torch.Tensor:
    return latents.detach().float().square().mean().sqrt()
