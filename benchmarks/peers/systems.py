"""Rows of table B by other packages: from nothing to images, tokenizer included."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from torch import nn

from diffusion_bridge_vq.data.pixels import to_bytes, to_pixels
from diffusion_bridge_vq.losses import ReconstructionLoss

from .data import Data, Split
from .latent_priors import ddpm_loss, denoised
from .row import LatentScale, Learner, LossOf, Phase, Row

_STEPS = 1000  # nominal, see `ours`
_ADVERSARIAL_FROM = 0.5  # fraction of the autoencoder's phase, the package's default
_KL_WEIGHT = 1e-6  # latent diffusion's (Rombach et al. 2022), against the sum over pixels and channels


class PixelDDPM(Row):
    """diffusers' unconditional example, with classes; sampled by DPM-Solver++."""

    title = "pixel DDPM"
    packages = ("diffusers",)
    search = {"guidance_scale": (1.0, 1.5, 2.5), "steps": (20, 12, 50)}
    tuned = False

    def __init__(self, data: Data, learning_rate: float | None = None):
        super().__init__(data, learning_rate or 5e-4)
        self.unet = UNet2DModel(
            sample_size=data.resolution,
            in_channels=data.channels,
            out_channels=data.channels,
            num_class_embeds=data.num_classes + 1,
            **self.setting.pixel_unet,
        )
        self.scheduler = DDPMScheduler()

    def phases(self) -> list[Phase]:
        return [Phase(LossOf(self.unet, self.loss), _images, self.learning_rate)]

    def loss(self, unet: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return ddpm_loss(unet, self.scheduler, to_pixels(images), self.labels_for(unet, labels))

    def networks(self) -> nn.ModuleDict:
        return nn.ModuleDict({"unet": self.unet})

    @torch.no_grad()
    def draw(self, labels: torch.Tensor, steps: int = 20, guidance_scale: float = 1.0) -> torch.Tensor:
        noise = torch.randn(len(labels), self.data.channels, self.data.resolution, self.data.resolution)
        sampler = DPMSolverMultistepScheduler.from_config(self.scheduler.config)
        return to_bytes(denoised(self.unet, sampler, noise, labels, self.null_class, steps, guidance_scale))


class AutoencoderLearner(Learner):
    """
    An autoencoder of another package with the loss terms that ours has.

    Args:
        row ([`Row`]): has their weights.
        autoencoder (`nn.Module`): trained.
    """

    def __init__(self, row: Row, autoencoder: nn.Module):
        super().__init__()
        weights: dict[str, Any] = dict(row.setting.autoencoder_losses)
        self.autoencoder = autoencoder
        self.reconstruction = ReconstructionLoss(
            row.data.channels, adversarial_from=round(_ADVERSARIAL_FROM * _STEPS), **weights
        )

    def set_progress(self, fraction: float) -> None:
        self.reconstruction.set_step(fraction * _STEPS)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        pixels = to_pixels(images)
        decoded, own_loss = self.reconstruct(pixels)
        return torch.stack([own_loss, *self.reconstruction(pixels, decoded).values()]).sum()

    def reconstruct(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Decoded images and the loss that the autoencoder adds."""
        raise NotImplementedError


class _KLLearner(AutoencoderLearner):
    def reconstruct(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = self.autoencoder.encode(pixels).latent_dist
        kl = posterior.kl().mean() / pixels[0].numel()  # as the other terms, which are means over these
        return self.autoencoder.decode(posterior.sample()).sample, _KL_WEIGHT * kl


class LatentDiffusion(Row):
    """
    Stable Diffusion's kind: diffusers' `AutoencoderKL`, then DDPM with its scaled linear betas on scaled latents,
    sampled by DPM-Solver++. Encoder, decoder, latents and U-Net have the sizes of ours.
    """

    title = "KL autoencoder, latent diffusion"
    packages = ("diffusers",)
    search = {"guidance_scale": (1.0, 1.5, 2.5), "steps": (20, 12, 50)}
    tuned = False
    splits_time = True

    def __init__(self, data: Data, learning_rate: float | None = None):
        super().__init__(data, learning_rate)
        sizes = self.preset["vqvae"]
        names = ("block_out_channels", "down_block_types", "up_block_types", "layers_per_block", "latent_channels")
        self.autoencoder = AutoencoderKL(
            in_channels=data.channels,
            out_channels=data.channels,
            sample_size=data.resolution,
            norm_num_groups=sizes["norm_num_groups"],
            mid_block_add_attention=sizes["mid_block_add_attention"],
            **{name: sizes[name] for name in names},
        )
        self.scale = LatentScale()
        classes = {"num_class_embeds": data.num_classes + 1}
        self.unet = UNet2DModel(**{"sample_size": data.side} | self.preset["unet"] | classes)
        self.scheduler = DDPMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
        )
        self._latents: dict[int, torch.Tensor] = {}

    def phases(self) -> list[Phase]:
        first = self.setting.autoencoder_fraction
        return [
            Phase(_KLLearner(self, self.autoencoder), _images, self.learning_rate, first),
            Phase(LossOf(self.unet, self.loss), self._encode, self.learning_rate, 1 - first),
        ]

    @torch.no_grad()
    def _encode(self, split: Split) -> dict[str, torch.Tensor]:
        if id(split) not in self._latents:
            self.autoencoder.eval()
            parts = [self.autoencoder.encode(to_pixels(x)).latent_dist.mode() for x in split.images.split(256)]
            latents = torch.cat(parts)
            if split is self.data.training:
                self.scale.fit(latents)
            self._latents[id(split)] = latents * self.scale.factor
        return {"latents": self._latents[id(split)], "labels": split.labels}

    def loss(self, unet: nn.Module, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return ddpm_loss(unet, self.scheduler, latents, self.labels_for(unet, labels))

    def networks(self) -> nn.ModuleDict:
        return nn.ModuleDict({"autoencoder": self.autoencoder, "unet": self.unet, "scale": self.scale})

    @torch.no_grad()
    def draw(self, labels: torch.Tensor, steps: int = 20, guidance_scale: float = 1.0) -> torch.Tensor:
        noise = torch.randn(len(labels), self.unet.config.in_channels, self.data.side, self.data.side)
        sampler = DPMSolverMultistepScheduler.from_config(self.scheduler.config)
        latents = denoised(self.unet, sampler, noise, labels, self.null_class, steps, guidance_scale)
        return to_bytes(self.autoencoder.decode(latents / self.scale.factor).sample)

    @torch.no_grad()
    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        found = [self.autoencoder(to_pixels(part)).sample for part in images.split(256)]
        return torch.cat([to_bytes(part) for part in found])


class _MonaiLearner(AutoencoderLearner):
    def reconstruct(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.autoencoder(pixels)


class Monai(Row):
    """
    MONAI's `VQVAE` with its `LatentDiffusionInferer`, guidance as in its inferer: classes as a context, one-hot, and
    -1 everywhere for no class. Depth and numbers of codes and latent channels are those of ours.
    """

    title = "MONAI VQ-VAE, latent diffusion"
    packages = ("monai", "einops")
    search = {"guidance_scale": (1.0, 1.5, 2.5), "steps": (20, 50)}
    tuned = False
    splits_time = True

    def __init__(self, data: Data, learning_rate: float | None = None):
        super().__init__(data, learning_rate or 5e-4)
        from monai.inferers import LatentDiffusionInferer
        from monai.networks.nets import VQVAE, DiffusionModelUNet
        from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

        sizes, channels = self.preset["vqvae"], self.preset["unet"]["block_out_channels"]
        halvings = len(sizes["block_out_channels"]) - 1
        width = 2 * sizes["block_out_channels"][0]
        self.latent_channels = sizes["latent_channels"]
        self.autoencoder = VQVAE(
            spatial_dims=2,
            in_channels=data.channels,
            out_channels=data.channels,
            channels=(width,) * halvings,
            num_res_channels=(width,) * halvings,
            num_res_layers=2,
            downsample_parameters=((2, 4, 1, 1),) * halvings,
            upsample_parameters=((2, 4, 1, 1, 0),) * halvings,
            num_embeddings=sizes["num_vq_embeddings"],
            embedding_dim=self.latent_channels,
        )
        self.unet = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=self.latent_channels,
            out_channels=self.latent_channels,
            num_res_blocks=1,
            channels=tuple(channels),
            attention_levels=tuple(level == len(channels) - 1 for level in range(len(channels))),
            norm_num_groups=self.preset["unet"].get("norm_num_groups", 32),
            num_head_channels=channels[-1] // 4,
            with_conditioning=True,
            cross_attention_dim=data.num_classes,
        )
        betas = {"schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0195}
        self.noising = DDPMScheduler(num_train_timesteps=1000, **betas)
        self.sampler = DDIMScheduler(num_train_timesteps=1000, clip_sample=False, **betas)
        self.inferer = LatentDiffusionInferer
        self.scale = LatentScale()
        self.side = data.resolution // 2**halvings

    def phases(self) -> list[Phase]:
        first = self.setting.autoencoder_fraction
        return [
            Phase(_MonaiLearner(self, self.autoencoder), _images, self.learning_rate, first),
            Phase(LossOf(self.unet, self.loss), self._second_stage, self.learning_rate, 1 - first),
        ]

    @torch.no_grad()
    def _second_stage(self, split: Split) -> dict[str, torch.Tensor]:
        self.autoencoder.eval()
        if split is self.data.training:  # the factor of MONAI's tutorials: from the first batch
            first = self.autoencoder.encode_stage_2_inputs(to_pixels(split.images[: self.preset["batch_size"]]))
            self.scale.fit(first)
        return _images(split)

    def loss(self, unet: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(len(images), self.latent_channels, self.side, self.side)
        timesteps = torch.randint(self.noising.num_train_timesteps, (len(images),))
        output = self.inferer(self.noising, scale_factor=self.scale.factor)(
            inputs=to_pixels(images),
            autoencoder_model=self.autoencoder,
            diffusion_model=unet,
            noise=noise,
            timesteps=timesteps,
            condition=self._context(self.labels_for(unet, labels)),
        )
        return F.mse_loss(output, noise)

    def _context(self, labels: torch.Tensor) -> torch.Tensor:
        """(B, 1, classes)."""
        known = F.one_hot(labels.clamp(max=self.null_class - 1), self.null_class).float()
        return torch.where(labels[:, None] == self.null_class, -1.0, known)[:, None]

    def networks(self) -> nn.ModuleDict:
        return nn.ModuleDict({"autoencoder": self.autoencoder, "unet": self.unet, "scale": self.scale})

    def draw(self, labels: torch.Tensor, steps: int = 20, guidance_scale: float = 1.0) -> torch.Tensor:
        self.sampler.set_timesteps(steps)
        pixels = self.inferer(self.sampler, scale_factor=self.scale.factor).sample(
            input_noise=torch.randn(len(labels), self.latent_channels, self.side, self.side),
            autoencoder_model=self.autoencoder,
            diffusion_model=self.unet,
            conditioning=self._context(labels),
            cfg=None if guidance_scale == 1 else guidance_scale,
            verbose=False,
        )
        return to_bytes(pixels)

    @torch.no_grad()
    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([to_bytes(self.autoencoder(to_pixels(part))[0]) for part in images.split(256)])


def _images(split: Split) -> dict[str, torch.Tensor]:
    return {"images": split.images, "labels": split.labels}
