"""Priors over an autoencoder's latents or codes. Stage 2 trains them on a frozen autoencoder."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import nn

from ...losses import Weighting, prior_loss
from ...models import (
    GumbelVQModel,
    PixelCNNPrior,
    bridge_start_latents,
    check_num_codes,
    denoise,
    null_labels,
    take_several_classes,
)
from ...sampling import sample_latents
from ...schedulers import OUBridgeScheduler
from ..build import (
    build_autoencoder,
    build_component,
    build_diffusion_prior,
    class_arguments,
    count_classes,
    latent_side,
)
from ..kinds import PixelCNNConfig, PriorConfig
from .base import EarlyStoppingRule, Objective, ObjectiveOutput, root_mean_square, trains


class BridgeObjective(Objective):
    """
    What all diffusion priors share: U-Net, scheduler, weighting and class dropout, and what is computed from them.

    Args:
        vqvae ([`GumbelVQModel`]): the autoencoder.
        unet (`UNet2DModel`): the denoiser, trained.
        scheduler ([`OUBridgeScheduler`]): the bridge.
        weighting (`str`, *optional*, defaults to `"simple"`): "elbo", "simple" or "min_snr", see `losses.prior_loss`.
        class_dropout (`float`, *optional*, defaults to 0.1): fraction of labels replaced by the null class, in [0, 1],
            for guidance.
    """

    saved = ("vqvae", "unet", "scheduler")
    samples_from = 0
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
        super().__init__()
        self.vqvae, self.unet, self.scheduler = vqvae, unet, scheduler
        self.weighting, self.class_dropout = weighting, class_dropout
        if getattr(unet, "class_embedding", None) is not None:
            take_several_classes(unet)

    def networks(self) -> list[nn.Module]:
        return [self.unet, *super().networks()]

    def draw(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One timestep per sample, uniform over the schedule, and the noise."""
        timesteps = torch.randint(len(self.scheduler), (latents.shape[0],), device=latents.device)
        return timesteps, torch.randn_like(latents)

    def bridge_loss(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        noise: torch.Tensor,
        class_labels: torch.Tensor | None,
    ) -> torch.Tensor:
        """L_t of latents z_0 (B, d, h, w) at timesteps (B,) with noise like the latents -> ()."""
        class_labels = self.prior_labels(class_labels, self.class_dropout if self.training else 0.0)
        z_t = self.scheduler.add_noise(latents, noise, timesteps)
        output = denoise(self.unet, self.scheduler, z_t, timesteps, class_labels)
        return prior_loss(self.scheduler, output, latents, noise, timesteps, self.weighting)

    def prior_labels(self, class_labels: torch.Tensor | None, dropout: float = 0.0) -> torch.Tensor | None:
        """
        Classes (B,) for the U-Net, a fraction `dropout` of them replaced by the null class; None if it has no classes.
        """
        num_embeds = getattr(self.unet.config, "num_class_embeds", None)  # 1-D networks have no classes
        return _drop_labels(class_labels, num_embeds, dropout)

    @torch.no_grad()
    def draw_samples(self, components: Mapping[str, Any], count: int, num_inference_steps: int) -> torch.Tensor | None:
        vqvae, unet, scheduler = (components[name] for name in self.saved)
        config, device = unet.config, next(unet.parameters()).device
        side = config.sample_size if isinstance(config.sample_size, int) else config.sample_size[0]
        z_0 = sample_latents(
            unet,
            scheduler,
            (count, config.in_channels, side, side),
            min(num_inference_steps, len(scheduler)),
            device=device,
            class_labels=all_classes(config.num_class_embeds, count, device),
            solver="ancestral",
        )
        return vqvae.decode(z_0).sample


class _FrozenAutoencoder(Objective):
    """Stage 2: the prior is trained on what a frozen autoencoder, which stays in eval mode, makes of the images."""

    shardable = True

    def train(self, mode: bool = True) -> "_FrozenAutoencoder":
        super().train(mode)
        self.vqvae.eval()
        return self


@trains(PriorConfig)
class PriorObjective(_FrozenAutoencoder, BridgeObjective):
    """
    Stage 2: the denoiser on the latents of a frozen autoencoder (L_t alone; L_rec and L_T are constants then).

    Args:
        vqvae ([`GumbelVQModel`]): frozen, stays in eval mode.
        unet (`UNet2DModel`): trained; of a [`CodeUNet2DModel`] the bridge starts from z_q instead of z_e.
        scheduler ([`OUBridgeScheduler`]): see [`BridgeObjective`].
        weighting (`str`, *optional*, defaults to `"simple"`): see [`BridgeObjective`].
        class_dropout (`float`, *optional*, defaults to 0.1): see [`BridgeObjective`].
        cache_latents (`bool`, *optional*, defaults to `False`): encode the data set once.
    """

    trained = ("unet",)

    def __init__(
        self,
        vqvae: GumbelVQModel,
        unet: UNet2DModel,
        scheduler: OUBridgeScheduler,
        weighting: Weighting = "simple",
        class_dropout: float = 0.1,
        cache_latents: bool = False,
    ):
        super().__init__(vqvae.requires_grad_(False).eval(), unet, scheduler, weighting, class_dropout)
        self.cached_input = "latents" if cache_latents else None

    @classmethod
    def from_config(
        cls, config: PriorConfig, num_classes: int | None, class_names: Sequence[str] | None = None
    ) -> "PriorObjective":
        vqvae = build_autoencoder(config)
        unet, scheduler, start = build_diffusion_prior(config, vqvae, num_classes, class_names)
        cached = config.cache_latents or config.encoded_data is not None
        objective = cls(vqvae, unet, scheduler, config.weighting, config.class_dropout, cached)
        objective.start = start
        return objective

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.vqvae.encode(images).latents

    def forward(
        self,
        images: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
    ) -> ObjectiveOutput:
        """As the base class; cached `latents` z_e (B, d, h, w) may be given instead of images."""
        if latents is None:
            with torch.no_grad():
                latents = self.vqvae.encode(images).latents
        z_0 = bridge_start_latents(self.unet, self.vqvae.quantize, latents)
        timesteps, noise = self.draw(z_0)
        loss = self.bridge_loss(z_0, timesteps, noise, class_labels)
        return ObjectiveOutput({"prior": loss}, {"latent_rms": root_mean_square(latents)})


@trains(PixelCNNConfig)
class PixelCNNObjective(_FrozenAutoencoder):
    """
    Stage 2 of the baseline: -log p(codes) of a PixelCNN on the codes of a frozen autoencoder, in nats per code.

    Args:
        vqvae ([`GumbelVQModel`]): frozen, stays in eval mode.
        prior ([`PixelCNNPrior`]): trained.
        class_dropout (`float`, *optional*, defaults to 0.1): fraction of labels replaced by the null class, in [0, 1].
        early_stopping ([`EarlyStoppingRule`], *optional*): whether and how a run stops early.
    """

    trained = ("prior",)
    saved = ("vqvae", "prior")
    samples_from = 0
    cached_input = "codes"
    prior: PixelCNNPrior

    def __init__(
        self,
        vqvae: GumbelVQModel,
        prior: PixelCNNPrior,
        class_dropout: float = 0.1,
        early_stopping: EarlyStoppingRule | None = None,
    ):
        super().__init__()
        self.vqvae, self.prior = vqvae.requires_grad_(False).eval(), prior
        self.class_dropout, self.early_stopping = class_dropout, early_stopping

    @classmethod
    def from_config(
        cls, config: PixelCNNConfig, num_classes: int | None, class_names: Sequence[str] | None = None
    ) -> "PixelCNNObjective":
        vqvae = build_autoencoder(config)
        sizes = {"num_codes": vqvae.config.num_vq_embeddings, "sample_size": latent_side(config, vqvae)}
        classes = class_arguments(count_classes(config, num_classes))
        prior = build_component(PixelCNNPrior, sizes | config.prior | classes)
        check_num_codes(prior, vqvae)
        rule = EarlyStoppingRule("bits_per_code", config.holdout_fraction, config.eval_every, config.patience)
        return cls(vqvae, prior, config.class_dropout, rule)

    def networks(self) -> list[nn.Module]:
        return [self.prior, *super().networks()]

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.vqvae.encode_codes(self.vqvae.encode(images).latents)

    def forward(
        self,
        images: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        codes: torch.Tensor | None = None,
    ) -> ObjectiveOutput:
        """As the base class; cached `codes` (B, h, w) may be given instead of images."""
        if codes is None:
            with torch.no_grad():
                codes = self.vqvae.encode_codes(self.vqvae.encode(images).latents)
        dropout = self.class_dropout if self.training else 0.0
        labels = _drop_labels(class_labels, self.prior.config.num_class_embeds, dropout)
        nats = -self.prior.log_prob(codes, labels).mean()
        return ObjectiveOutput({"cross_entropy": nats}, {"bits_per_code": nats.detach() / math.log(2)})

    @torch.no_grad()
    def held_out_score(self, components: Mapping[str, Any], inputs: Iterable[dict[str, torch.Tensor]]) -> float:
        """Mean of -log2 p over all codes of all maps; of the unconditional law if the data have no labels."""
        prior, log_probs, count = components["prior"], [], 0
        for batch in inputs:
            codes = batch["codes"] if "codes" in batch else self.encode(batch["images"])
            labels = batch.get("class_labels") if prior.config.num_class_embeds is not None else None
            log_probs.append(prior.log_prob(codes, labels))
            count += codes.numel()
        nats = -torch.cat(log_probs).cpu().double().sum().item()  # float64 on the host: MPS has none
        return nats / count / math.log(2)

    @torch.no_grad()
    def draw_samples(self, components: Mapping[str, Any], count: int, num_inference_steps: int) -> torch.Tensor | None:
        vqvae, prior = components["vqvae"], components["prior"]
        device = next(prior.parameters()).device
        codes = prior.generate(count, class_labels=all_classes(prior.config.num_class_embeds, count, device))
        return vqvae.decode(vqvae.decode_codes(codes), force_not_quantize=True).sample


def _drop_labels(
    class_labels: torch.Tensor | None, num_class_embeds: int | None, dropout: float
) -> torch.Tensor | None:
    """
    The labels for a prior with `num_class_embeds` classes, the last of which is the null class: a random fraction
    `dropout` of them is replaced by it. None if the prior has no classes.

    Labels may be vectors over the classes, too.

    Raises:
        ValueError: the prior has classes, but there are no labels.
    """
    if num_class_embeds is None:
        return None
    if class_labels is None:
        raise ValueError("The prior has classes, but the batch has no labels; name the column by `label_column`.")
    if dropout > 0:
        dropped = torch.rand(class_labels.shape[:1], device=class_labels.device) < dropout
        dropped = dropped.reshape(-1, *[1] * (class_labels.ndim - 1))
        class_labels = torch.where(dropped, null_labels(class_labels, num_class_embeds), class_labels)
    return class_labels


def all_classes(num_class_embeds: int | None, count: int, device: torch.device) -> torch.Tensor | None:
    """Labels (count,) that go through all classes but the null class; None without classes."""
    return torch.arange(count, device=device) % (num_class_embeds - 1) if num_class_embeds else None
