"""Untrained pipelines of a few thousand weights, shared by tests."""

import torch
from diffusers import UNet2DModel

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, GumbelVQModel, OUBridgeScheduler
from diffusion_bridge_vq.models import CodeUNet2DModel

STEPS = 4
BRIDGE = {"num_train_timesteps": 20, "beta_start": 0.01, "beta_end": 0.3}
SKEWED = BRIDGE | {"theta": 2.0, "eta": 1.2, "z_star": [0.3, -0.2, 0.5]}


def make_pipeline(classes: int | None = None, channels: int = 3, size=3, **scheduler) -> DiffusionBridgeVQPipeline:
    """Images 6 x 6, latents 3 x 3 (an odd grid for two levels), untrained."""
    torch.manual_seed(1)
    vqvae = GumbelVQModel(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=[8, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        norm_num_groups=4,
        latent_channels=3,
        num_vq_embeddings=32,
        sample_size=6,
        mid_block_add_attention=False,
    ).eval()
    vqvae.normalizer.running_mean.fill_(0.5)
    vqvae.normalizer.running_var.fill_(0.2)
    unet = UNet2DModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        block_out_channels=[8, 8],
        down_block_types=["DownBlock2D"] * 2,
        up_block_types=["UpBlock2D"] * 2,
        norm_num_groups=4,
        layers_per_block=1,
        num_class_embeds=classes,
    ).eval()
    if classes:
        with torch.no_grad():
            unet.class_embedding.weight.mul_(5)  # so that classes matter
    pipe = DiffusionBridgeVQPipeline(vqvae, unet, OUBridgeScheduler(**(scheduler or SKEWED)))
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
    vqvae = GumbelVQModel(
        in_channels=1,
        out_channels=1,
        block_out_channels=[8, 8, 8],
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        norm_num_groups=4,
        latent_channels=2,
        num_vq_embeddings=16,
        sample_size=16,
        mid_block_add_attention=False,
    ).eval()
    unet = UNet2DModel(
        sample_size=4,
        in_channels=2,
        out_channels=2,
        block_out_channels=[8, 8],
        down_block_types=["DownBlock2D"] * 2,
        up_block_types=["UpBlock2D"] * 2,
        norm_num_groups=4,
        layers_per_block=1,
    ).eval()
    return DiffusionBridgeVQPipeline(vqvae, unet, OUBridgeScheduler(num_train_timesteps=20))
