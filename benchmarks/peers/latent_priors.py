"""Rows of table A on the tokenizer's latents, with the bridge's U-Net: flow matching and DDPM by diffusers."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import nn

from .data import Data, Split
from .row import LossOf, Phase, TokenizerRow, guided


class _LatentRow(TokenizerRow):
    """U-Net and latents, those of the bridge; noise and steps are the subclass's."""

    packages = ("diffusers",)
    search = {"guidance_scale": (1.0, 1.5, 2.5), "steps": (20, 8, 12, 50)}

    def __init__(self, data: Data, learning_rate: float | None = None):
        super().__init__(data, learning_rate)
        arguments = {"sample_size": data.side, "num_class_embeds": data.num_classes + 1} | self.preset["unet"]
        self.unet = UNet2DModel(**arguments)

    def phases(self) -> list[Phase]:
        return [Phase(LossOf(self.unet, self.loss), self._tensors, self.learning_rate)]

    def _tensors(self, split: Split) -> dict[str, torch.Tensor]:
        return {"latents": self.data.latents(split), "labels": split.labels}

    def loss(self, unet: nn.Module, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def networks(self) -> nn.ModuleDict:
        return nn.ModuleDict({"unet": self.unet})

    @torch.no_grad()
    def draw(self, labels: torch.Tensor, steps: int = 20, guidance_scale: float = 1.0) -> torch.Tensor:
        noise = torch.randn(len(labels), self.unet.config.in_channels, self.data.side, self.data.side)
        return self.data.decode_latents(
            denoised(self.unet, self._sampler(), noise, labels, self.null_class, steps, guidance_scale)
        )

    def _sampler(self) -> Any:
        raise NotImplementedError


def denoised(
    unet: UNet2DModel,
    sampler: Any,
    noise: torch.Tensor,
    labels: torch.Tensor,
    null_class: int,
    steps: int,
    guidance_scale: float,
) -> torch.Tensor:
    """Samples from noise, by a scheduler of diffusers."""
    sampler.set_timesteps(steps)
    sample = noise * getattr(sampler, "init_noise_sigma", 1.0)
    for t in sampler.timesteps:

        def predict(x: torch.Tensor, y: torch.Tensor, t: Any = t) -> torch.Tensor:
            return unet(x, t, class_labels=y).sample

        output = guided(predict, sample, labels, null_class, guidance_scale)
        sample = sampler.step(output, t, sample).prev_sample
    return sample


class FlowMatching(_LatentRow):
    """The recipe of diffusers' Stable Diffusion 3 examples: logit-normal times, velocity, unweighted loss."""

    title = "flow matching, same latents and U-Net"
    packages = ("diffusers",)

    def __init__(self, data: Data, learning_rate: float | None = None):
        super().__init__(data, learning_rate)
        self.scheduler = FlowMatchEulerDiscreteScheduler()

    def loss(self, unet: nn.Module, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        u = compute_density_for_timestep_sampling("logit_normal", len(latents), logit_mean=0.0, logit_std=1.0)
        index = (u * self.scheduler.config.num_train_timesteps).long()
        sigma = self.scheduler.sigmas[index].view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        noisy = (1 - sigma) * latents + sigma * noise
        output = unet(noisy, self.scheduler.timesteps[index], class_labels=self.labels_for(unet, labels)).sample
        return F.mse_loss(output, noise - latents)

    def _sampler(self) -> FlowMatchEulerDiscreteScheduler:
        return FlowMatchEulerDiscreteScheduler()


class DDPM(_LatentRow):
    """diffusers' unconditional example with classes, on latents: linear betas, predicts the noise, DPM-Solver++."""

    title = "DDPM, same latents and U-Net"

    def __init__(self, data: Data, learning_rate: float | None = None):
        super().__init__(data, learning_rate)
        self.scheduler = DDPMScheduler(clip_sample=False)  # clipping is for pixels

    def loss(self, unet: nn.Module, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return ddpm_loss(unet, self.scheduler, latents, self.labels_for(unet, labels))

    def _sampler(self) -> DPMSolverMultistepScheduler:
        return DPMSolverMultistepScheduler.from_config(self.scheduler.config)


def ddpm_loss(unet: nn.Module, scheduler: DDPMScheduler, samples: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Squared error of the predicted noise."""
    noise = torch.randn_like(samples)
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(samples),))
    output = unet(scheduler.add_noise(samples, noise, timesteps), timesteps, class_labels=labels).sample
    return F.mse_loss(output, noise)
