"""Priors over an autoencoder's latents or codes. Stage 2 trains them on a frozen autoencoder."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import nn

from ...losses import Weighting
from ...models import (
    GumbelVQModel,
    PixelCNNPrior,
    bridge_start_latents,
    check_num_codes,
)
from ...schedulers import OUBridgeScheduler
from ..build import (
    build_autoencoder,
    build_component,
    build_diffusion_prior,
    class_arguments,
    latent_side,
    prior_classes,
    read_condition,
)
from ..kinds import PixelCNNConfig, PriorConfig
from .base import EarlyStoppingRule, Objective, ObjectiveOutput, root_mean_square, trains
from .bridge import BridgeObjective, all_classes, drop_labels


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
        objective.draw_from(read_condition(config), config.condition_dropout)
        objective.start = start
        return objective

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.vqvae.encode(images).latents

    def forward(
        self,
        images: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        condition: torch.Tensor | None = None,
    ) -> ObjectiveOutput:
        """
        As the base class; cached `latents` z_e (B, d, h, w) may be given instead of images, and a `condition`
        (B, C, s, s) in [-1, 1] for each, if it isn't made of images.
        """
        if latents is None:
            with torch.no_grad():
                latents = self.vqvae.encode(images).latents
        z_0 = bridge_start_latents(self.unet, self.vqvae.quantize, latents)
        timesteps, noise = self.draw(z_0)
        loss = self.bridge_loss(z_0, timesteps, noise, class_labels, self.find_condition(images, condition))
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
        classes = class_arguments(prior_classes(config, num_classes))
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
        labels = drop_labels(class_labels, self.prior.config.num_class_embeds, dropout)
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
