"""The one call of the denoising network, shared by training, sampling and the ONNX export."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel, VQModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn

from .conditions import null_labels


class ConditionedUNet(nn.Module):
    """
    A U-Net with the images that it draws from, for samplers and losses, which need not know about them. Only
    [`call_network`] can call it.

    Args:
        unet (`UNet2DModel`): its input has the channels of the latents and then those of the condition.
        condition (`torch.Tensor`): from [`condition_map`], (B, c, h, w), one for each sample; all zeros are no
            condition.

    Raises:
        ValueError: a condition of other channels than the U-Net's.
    """

    def __init__(self, unet: nn.Module, condition: torch.Tensor):
        super().__init__()
        self.config = config = cast(Any, unet).config
        expected = config.in_channels - config.out_channels
        if condition.ndim != 4 or condition.shape[1] != expected:
            raise ValueError(
                f"`condition` must be (B, {expected}, h, w) for this U-Net, as `condition_map` makes it, got "
                f"{tuple(condition.shape)}."
            )
        self.unet: nn.Module = unet
        self.condition: torch.Tensor = condition
        self.training = unet.training


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
            null) (Ho and Salimans 2022). Null is without class and without image.

    Returns:
        `torch.Tensor`: the prediction, in the shape of `x`.

    Raises:
        ValueError: the network draws from images, but there are none, or not one for each sample.
    """
    config: Any = getattr(unet, "config", None)
    sides, latents = x.shape[2:], x
    condition: torch.Tensor | None = None
    if isinstance(unet, ConditionedUNet):
        condition, unet = unet.condition.to(x), unet.unet
        if condition.shape[0] != x.shape[0] or condition.shape[2:] != sides:
            raise ValueError(
                f"`condition` must be on the grid of the samples, {tuple(sides)}, and as many, {len(x)}; got "
                f"{tuple(condition.shape)}."
            )
        x = torch.cat([x, condition], dim=1)
    elif getattr(config, "in_channels", 0) > x.shape[1]:
        raise ValueError(
            f"The network's input has {config.in_channels} channels, but the latents have {x.shape[1]}. If it draws "
            "from images, call it with them, as a `ConditionedUNet`."
        )
    x = _pad(x, config)
    labels = {} if class_labels is None else {"class_labels": class_labels}
    if guidance_scale == 1.0 or (class_labels is None and condition is None):
        output = _call(unet, x, timestep, **labels)
    else:
        null_x = x
        if condition is not None:
            null_x = _pad(torch.cat([latents, torch.zeros_like(condition)], dim=1), config)
        if class_labels is not None:
            labels["class_labels"] = torch.cat([null_labels(class_labels, config.num_class_embeds), class_labels])
        both = timestep if timestep.ndim == 0 else timestep.repeat(2)
        null_output, output = _call(unet, torch.cat([null_x, x]), both, **labels).chunk(2)
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


def check_channels(unet: UNet2DModel, vqvae: VQModel, condition_channels: int = 0) -> None:
    """
    Raises:
        ValueError: the network doesn't go from the channels of latents and condition to those of the latents.
    """
    embed_dim = vqvae.config.vq_embed_dim or vqvae.config.latent_channels
    found, wanted = (unet.config.in_channels, unet.config.out_channels), (embed_dim + condition_channels, embed_dim)
    if found != wanted:
        of_condition = f", and the map of its condition {condition_channels}" if condition_channels else ""
        sizes = f"in_channels={wanted[0]} and out_channels" if condition_channels else "in_channels=out_channels"
        raise ValueError(
            f"The U-Net goes from {found[0]} to {found[1]} channels, but the codes of the autoencoder have "
            f"{embed_dim}{of_condition}; make it with {sizes}={embed_dim}."
        )


def refuse_image_condition(unet: Any, what: str) -> None:
    """
    Raises:
        ValueError: the network draws from images, which isn't possible here.
    """
    if unet.config.in_channels > unet.config.out_channels:
        raise ValueError(f"This model draws from images (`condition`), which {what}: take one without.")
