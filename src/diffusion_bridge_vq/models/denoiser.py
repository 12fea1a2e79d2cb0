"""The one call of the denoising network, shared by training, sampling and the ONNX export."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel, VQModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn

from .conditions import null_labels


def denoise(
    unet: nn.Module,
    scheduler: SchedulerMixin,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    class_labels: torch.Tensor | None = None,
    guidance_scale: float = 1.0,
) -> torch.Tensor:
    """
    From a noisy sample to what the network predicts (eps, z_0 or v, by the scheduler's `prediction_type`).

    The sample is scaled to unit variance (`scheduler.scale_model_input`); [`call_network`] does the rest.

    Args:
        unet (`nn.Module`): see [`call_network`].
        scheduler: [`OUBridgeScheduler`] or a stock scheduler.
        sample (`torch.Tensor`): z_t, (B, d, h, w) or (B, d, N).
        timestep (`torch.Tensor`): scalar, or one per sample (B,).
        class_labels (`torch.Tensor`, *optional*), guidance_scale (`float`, *optional*, defaults to 1.0): see
            [`call_network`].

    Returns:
        `torch.Tensor`: the prediction, in the shape of `sample`.
    """
    x = scheduler.scale_model_input(sample, timestep)
    return call_network(unet, x, timestep, class_labels, guidance_scale)


def call_network(
    unet: nn.Module,
    x: torch.Tensor,
    timestep: torch.Tensor,
    class_labels: torch.Tensor | None = None,
    guidance_scale: float = 1.0,
) -> torch.Tensor:
    """
    Call the network on samples of unit variance, with padding and guidance.

    The input is padded on the right and below with zeros (z* in these coordinates) until every downsampling of the
    U-Net divides it (a plain `UNet2DModel` fails on 21x21 maps), and the output is cropped.

    Args:
        unet (`nn.Module`): `UNet2DModel`, a 1-D network, or any module called as `unet(x, t, class_labels=...)`.
        x (`torch.Tensor`): x_t of unit variance, (B, d, h, w) or (B, d, N).
        timestep (`torch.Tensor`): scalar, or one per sample (B,).
        class_labels (`torch.Tensor`, *optional*): (B,) int64, or vectors (B, K) over the network's K classes, if it
            takes them ([`take_several_classes`]). The null class, for guidance, is the network's last.
        guidance_scale (`float`, *optional*, defaults to 1): 1 is no guidance; above, null + scale * (conditional -
            null) (Ho and Salimans 2022).

    Returns:
        `torch.Tensor`: the prediction, in the shape of `x`.
    """
    config: Any = getattr(unet, "config", None)
    sides = x.shape[2:]
    x = _pad(x, config)
    if class_labels is None:
        output = _call(unet, x, timestep)
    elif guidance_scale == 1.0:
        output = _call(unet, x, timestep, class_labels=class_labels)
    else:
        labels = torch.cat([null_labels(class_labels, config.num_class_embeds), class_labels])
        both = timestep if timestep.ndim == 0 else timestep.repeat(2)
        null_output, output = _call(unet, torch.cat([x, x]), both, class_labels=labels).chunk(2)
        output = null_output + guidance_scale * (output - null_output)
    for axis, side in enumerate(sides, start=2):
        output = output.narrow(axis, 0, side)
    return output


def _pad(x: torch.Tensor, config: Any) -> torch.Tensor:
    """Zeros on the right and below, to the next size that the network's downsampling takes."""
    levels = getattr(config, "block_out_channels", (0,))  # a network without them takes every size
    multiple, smallest = 2 ** (len(levels) - 1), 1
    if getattr(config, "mid_block_type", None) == "UNetMidBlock1D":  # halves once more, and wants 3 positions there
        multiple, smallest = 2 * multiple, 6 * multiple
    return F.pad(x, [p for side in reversed(x.shape[2:]) for p in (0, max(-side % multiple, smallest - side))])


def _call(unet: nn.Module, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
    output = unet(*args, **kwargs)
    return output if isinstance(output, torch.Tensor) else output.sample


def check_channels(unet: UNet2DModel, vqvae: VQModel) -> None:
    """
    Raises:
        ValueError: the network doesn't go from the latents' channels to the same number.
    """
    embed_dim = vqvae.config.vq_embed_dim or vqvae.config.latent_channels
    if (unet.config.in_channels, unet.config.out_channels) != (embed_dim, embed_dim):
        raise ValueError(
            f"The U-Net goes from {unet.config.in_channels} to {unet.config.out_channels} channels, but the codes of "
            f"the autoencoder have {embed_dim}; make it with in_channels=out_channels={embed_dim}."
        )
