"""Untrained models and pipelines of a few thousand weights, shared by tests."""

from typing import Any

import torch
from diffusers import UNet2DModel

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, GumbelVQModel, OUBridgeScheduler
from diffusion_bridge_vq.models import CodeUNet2DModel

STEPS = 4
BRIDGE = {"num_train_timesteps": 20, "beta_start": 0.01, "beta_end": 0.3}
SKEWED = BRIDGE | {"theta": 2.0, "eta": 1.2, "z_star": [0.3, -0.2, 0.5]}


def autoencoder_settings(levels: int = 2, **changes: Any) -> dict[str, Any]:
    """Arguments of [`GumbelVQModel`]: `levels` of 8 channels, latents of 3 channels, 16 codes."""
    settings = {
        "block_out_channels": [8] * levels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": 4,
        "latent_channels": 3,
        "num_vq_embeddings": 16,
        "mid_block_add_attention": False,
    }
    return settings | changes


def unet_settings(levels: int = 2, **changes: Any) -> dict[str, Any]:
    """Arguments of `UNet2DModel`: `levels` of 8 channels, for latents of 3 channels."""
    settings = {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": [8] * levels,
        "down_block_types": ["DownBlock2D"] * levels,
        "up_block_types": ["UpBlock2D"] * levels,
        "norm_num_groups": 4,
        "layers_per_block": 1,
    }
    return settings | changes


def make_autoencoder(levels: int = 2, **changes: Any) -> GumbelVQModel:
    """See [`autoencoder_settings`]; for images 16 x 16, in training mode."""
    return GumbelVQModel(**autoencoder_settings(levels, **{"sample_size": 16} | changes))


def make_unet(levels: int = 2, **changes: Any) -> UNet2DModel:
    """See [`unet_settings`]; in training mode."""
    return UNet2DModel(**unet_settings(levels, **changes))


def make_images(batch_size: int = 2, size: int = 16, channels: int = 3) -> torch.Tensor:
    """(B, C, H, W) in [-1, 1]."""
    return torch.rand(batch_size, channels, size, size) * 2 - 1


def with_running_statistics(vqvae: GumbelVQModel) -> GumbelVQModel:
    """The model with the running statistics of a batch, so that latents lie among the codes; in eval mode."""
    momentum, vqvae.normalizer.momentum = vqvae.normalizer.momentum, 1.0
    with torch.no_grad():
        vqvae.train().encode(make_images(16, vqvae.config.sample_size, vqvae.config.in_channels))
    vqvae.normalizer.momentum = momentum
    assert (vqvae.normalizer.running_var < 0.5).all()  # far from its start, 1
    return vqvae.eval()


def make_pipeline(classes: int | None = None, channels: int = 3, size=3, **scheduler) -> DiffusionBridgeVQPipeline:
    """Images 6 x 6, latents 3 x 3 (an odd grid for two levels), untrained."""
    torch.manual_seed(1)
    image = {"in_channels": channels, "out_channels": channels, "sample_size": 6}
    vqvae = make_autoencoder(**image, num_vq_embeddings=32).eval()
    vqvae.normalizer.running_mean.fill_(0.5)
    vqvae.normalizer.running_var.fill_(0.2)
    unet = make_unet(sample_size=size, num_class_embeds=classes).eval()
    if classes:
        with torch.no_grad():
            unet.class_embedding.weight.mul_(5)  # so that classes matter
    pipe = DiffusionBridgeVQPipeline(vqvae, unet, OUBridgeScheduler(**(scheduler or SKEWED)))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_conditioned_pipeline(
    condition: str = "gray", channels: int = 5, classes: int | None = None
) -> DiffusionBridgeVQPipeline:
    """Images 8 x 8, latents 4 x 4 of 3 channels, untrained; the condition, of so many channels there, matters."""
    torch.manual_seed(0)
    unet = make_unet(sample_size=4, in_channels=3 + channels, num_class_embeds=classes).eval()
    vqvae = make_autoencoder(sample_size=8).eval()
    pipe = DiffusionBridgeVQPipeline(vqvae, unet, OUBridgeScheduler(**SKEWED), condition=condition)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_code_pipeline() -> DiffusionBridgeVQPipeline:
    """[`make_pipeline`] with a network that gives each code a probability."""
    pipe = make_pipeline(**SKEWED, prediction_type="sample")
    levels = len(pipe.scheduler)
    unet = CodeUNet2DModel(**_arguments(pipe.unet), num_codes=32, num_noise_levels=levels).eval()
    log_snr = pipe.scheduler.signal_to_noise(torch.arange(levels)).log()
    unet.set_process(pipe.vqvae.quantize.embedding.weight, log_snr, torch.tensor(pipe.scheduler.config.z_star))
    return DiffusionBridgeVQPipeline(pipe.vqvae, unet, pipe.scheduler)


def _arguments(model: UNet2DModel) -> dict:
    return {name: value for name, value in model.config.items() if not name.startswith("_")}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_gray_pipeline() -> DiffusionBridgeVQPipeline:
    """Gray images 16 x 16, as the digits; latents 4 x 4."""
    torch.manual_seed(0)
    vqvae = make_autoencoder(levels=3, in_channels=1, out_channels=1, latent_channels=2, sample_size=16).eval()
    unet = make_unet(sample_size=4, in_channels=2, out_channels=2).eval()
    return DiffusionBridgeVQPipeline(vqvae, unet, OUBridgeScheduler(num_train_timesteps=20))


def make_words_pipeline(examples: list[str] | None = None) -> DiffusionBridgeVQPipeline:
    """[`make_pipeline`] with classes that are words, and labels of these."""
    pipe = make_pipeline(5)
    settings = {"label_words": True, "label_examples": dict(enumerate(examples)) if examples else None}
    names = dict(enumerate(["blue", "cat", "dog", "red"]))
    pipe = DiffusionBridgeVQPipeline(pipe.vqvae, pipe.unet, pipe.scheduler, names, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_student_pipeline(classes: int | None = None) -> DiffusionBridgeVQPipeline:
    """[`make_pipeline`], as if it had learned to draw in one or two steps with a guidance scale of 2."""
    pipe = make_pipeline(classes)
    few = {"1": [len(pipe.scheduler) - 1], "2": [len(pipe.scheduler) - 1, len(pipe.scheduler) // 2]}
    learned = {"prediction_type": "sample", "few_step_timesteps": few, "distilled_guidance_scale": 2.0}
    scheduler = OUBridgeScheduler.from_config(pipe.scheduler.config, **learned)
    pipe = DiffusionBridgeVQPipeline(pipe.vqvae, pipe.unet, scheduler, default_num_inference_steps=1)
    pipe.set_progress_bar_config(disable=True)
    return pipe
