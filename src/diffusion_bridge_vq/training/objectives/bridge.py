"""What all diffusion priors share: U-Net, process, dropped classes and conditions, and samples."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import nn

from ...data import ImageCondition
from ...losses import Weighting, prior_loss
from ...models import ConditionedUNet, GumbelVQModel, condition_map, denoise, null_labels, take_several_classes
from ...models.network_sizes import latent_sides
from ...sampling import sample_latents
from ...schedulers import OUBridgeScheduler
from .base import Objective


class BridgeObjective(Objective):
    """
    What all diffusion priors share: U-Net, scheduler, weighting and class dropout, and what is computed from them.

    Args:
        vqvae ([`GumbelVQModel`]): the autoencoder.
        unet (`UNet2DModel`): the denoiser, trained.
        scheduler ([`OUBridgeScheduler`]): the bridge.
        weighting (`str`, *optional*, defaults to `"simple"`): "elbo", "simple", "min_snr" or "clamped_snr",
            see [`prior_loss_of_each`].
        class_dropout (`float`, *optional*, defaults to 0.1): fraction of labels replaced by the null class, in [0, 1],
            for guidance.

    Raises:
        ValueError: "clamped_snr" for a network that predicts the noise.
    """

    saved = ("vqvae", "unet", "scheduler")
    samples_from = 0
    unet: UNet2DModel
    scheduler: OUBridgeScheduler
    condition_dropout: float = 0.0

    def __init__(
        self,
        vqvae: GumbelVQModel,
        unet: UNet2DModel,
        scheduler: OUBridgeScheduler,
        weighting: Weighting = "simple",
        class_dropout: float = 0.1,
    ):
        super().__init__()
        if weighting == "clamped_snr" and scheduler.config.prediction_type == "epsilon":
            raise ValueError(
                "`weighting` clamped_snr has no bound for a network that predicts the noise (epsilon): "
                "take min_snr, or a `prediction_type` of sample or v_prediction."
            )
        self.vqvae, self.unet, self.scheduler = vqvae, unet, scheduler
        self.weighting, self.class_dropout = weighting, class_dropout
        if getattr(unet, "class_embedding", None) is not None:
            take_several_classes(unet)

    def draw_from(self, condition: ImageCondition | None, dropout: float = 0.1) -> None:
        """
        Learn to draw from images. A fraction `dropout` of a batch, in [0, 1], is learned without them, and without
        classes, for guidance.
        """
        self.condition, self.condition_dropout = condition, dropout

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
        condition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        L_t of latents z_0 (B, d, h, w) at timesteps (B,) with noise like the latents -> (); conditions (B, C, s, s).
        """
        class_labels = self.prior_labels(class_labels, self.class_dropout if self.training else 0.0)
        unet, class_labels = self._shown(latents, condition, class_labels)
        z_t = self.scheduler.add_noise(latents, noise, timesteps)
        output = denoise(unet, self.scheduler, z_t, timesteps, class_labels)
        return prior_loss(self.scheduler, output, latents, noise, timesteps, self.weighting)

    def find_condition(self, images: torch.Tensor | None, condition: torch.Tensor | None) -> torch.Tensor | None:
        """The images that a batch is drawn from, those of the data set or made of its images; None if it is not."""
        if self.condition is None or condition is not None or images is None:
            return condition
        return self.condition.derive(images)

    def _shown(
        self, latents: torch.Tensor, condition: torch.Tensor | None, class_labels: torch.Tensor | None
    ) -> tuple[nn.Module, torch.Tensor | None]:
        """The U-Net with what it is shown of the conditions, and the classes."""
        if self.condition is None:
            return self.unet, class_labels
        if condition is None:
            raise ValueError(f"The prior draws from images ({self.condition.name}), but the batch has none.")
        shown = condition_map(condition, latents.shape[-1])
        if self.training and self.condition_dropout > 0:
            dropped = torch.rand(len(latents), device=latents.device) < self.condition_dropout
            shown = shown.masked_fill(dropped[:, None, None, None], 0.0)
            if class_labels is not None:
                null = null_labels(class_labels, self.unet.config.num_class_embeds)
                class_labels = torch.where(dropped.reshape(-1, *[1] * (class_labels.ndim - 1)), null, class_labels)
        return ConditionedUNet(self.unet, shown), class_labels

    def prior_labels(self, class_labels: torch.Tensor | None, dropout: float = 0.0) -> torch.Tensor | None:
        """
        Classes (B,) for the U-Net, a fraction `dropout` of them replaced by the null class; None if it has no classes.
        """
        num_embeds = getattr(self.unet.config, "num_class_embeds", None)  # 1-D networks have no classes
        return drop_labels(class_labels, num_embeds, dropout)

    @torch.no_grad()
    def draw_samples(self, components: Mapping[str, Any], count: int, num_inference_steps: int) -> torch.Tensor | None:
        config = components["unet"].config
        null = torch.zeros(count, config.in_channels - config.out_channels, *latent_sides(config.sample_size))
        labels = all_classes(config.num_class_embeds, count)
        if self.sample_labels is not None:
            labels = self.sample_labels[torch.arange(count) % len(self.sample_labels)]
        return self._draw(components, labels, num_inference_steps, null)

    @torch.no_grad()
    def draw_rows(
        self, components: Mapping[str, Any], inputs: Mapping[str, torch.Tensor], num_inference_steps: int
    ) -> torch.Tensor | None:
        if self.condition is None:
            return None
        images, unet = inputs["images"], components["unet"]
        given = self.find_condition(images, inputs.get("condition"))
        assert given is not None and self.condition is not None
        shown = condition_map(given, latent_sides(unet.config.sample_size)[0]).repeat_interleave(2, dim=0)
        labels = None
        if unet.config.num_class_embeds is not None:  # no class
            labels = torch.full((len(shown),), unet.config.num_class_embeds - 1)
        drawn = self._draw(components, labels, num_inference_steps, shown).unflatten(0, (len(images), 2))
        given = F.interpolate(given, size=images.shape[-2:], mode="nearest").expand_as(images)
        return torch.stack([given, drawn[:, 0], drawn[:, 1], images], dim=1).flatten(0, 1)

    def _draw(
        self,
        components: Mapping[str, Any],
        class_labels: torch.Tensor | None,
        num_inference_steps: int,
        condition: torch.Tensor,
    ) -> torch.Tensor:
        """Images with a map of conditions (B, c, h, w) each, c = 0 for a prior without them."""
        vqvae, unet, scheduler = (components[name] for name in self.saved)
        config, device = unet.config, next(unet.parameters()).device
        z_0 = sample_latents(
            ConditionedUNet(unet, condition.to(device)) if condition.shape[1] else unet,
            scheduler,
            (len(condition), config.out_channels, *condition.shape[2:]),
            min(num_inference_steps, len(scheduler)),
            device=device,
            class_labels=None if class_labels is None else class_labels.to(device),
            solver="ancestral",
        )
        return vqvae.decode(z_0).sample

    def random_inputs(self, batch_size: int) -> dict[str, torch.Tensor]:
        inputs = super().random_inputs(batch_size)
        if self.condition is not None and (self.condition.column is not None or "images" not in inputs):
            side = self.condition.side
            noise = torch.rand(batch_size, self.condition.channels, side, side, device=next(self.parameters()).device)
            inputs["condition"] = noise * 2 - 1
        return inputs


def drop_labels(
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


def all_classes(num_class_embeds: int | None, count: int, device: torch.device | None = None) -> torch.Tensor | None:
    """Labels (count,) that go through all classes but the null class; None without classes."""
    return torch.arange(count, device=device) % (num_class_embeds - 1) if num_class_embeds else None
