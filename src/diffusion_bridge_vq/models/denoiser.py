"""The one call of the eps-network, shared by training and sampling."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel, VQModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn

from .code_unet import CodeUNet2DModel


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

    The sample is brought to unit variance (`scheduler.scale_model_input`), padded on the right and below with zeros
    (z* in those coordinates) until every downsampling of the U-Net divides it (a plain `UNet2DModel` fails on 21x21
    maps), and the output is cropped back.

    Args:
        unet (`nn.Module`): `UNet2DModel`, a 1-D network, or any module called as `unet(x, t, class_labels=...)`.
        scheduler: [`OUBridgeScheduler`] or a stock scheduler.
        sample (`torch.Tensor`): z_t, (B, d, h, w) or (B, d, N).
        timestep (`torch.Tensor`): scalar, or one per sample (B,).
        class_labels (`torch.Tensor`, *optional*): (B,) int64. The null class, for guidance, is the network's last.
        guidance_scale (`float`): 1 is no guidance; above, null + scale * (conditional - null) (Ho and Salimans 2022).

    Returns:
        `torch.Tensor`: the prediction, in the shape of `sample`.
    """
    config: Any = getattr(unet, "config", None)
    levels = getattr(config, "block_out_channels", (0,))  # a network without them takes every size
    multiple, smallest = 2 ** (len(levels) - 1), 1
    if getattr(config, "mid_block_type", None) == "UNetMidBlock1D":  # halves once more, and wants 3 positions there
        multiple, smallest = 2 * multiple, 6 * multiple
    x = scheduler.scale_model_input(sample, timestep)
    x = F.pad(x, [p for side in reversed(x.shape[2:]) for p in (0, max(-side % multiple, smallest - side))])
    if class_labels is None:
        output = _call(unet, x, timestep)
    elif guidance_scale == 1.0:
        output = _call(unet, x, timestep, class_labels=class_labels)
    else:
        null = torch.full_like(class_labels, config.num_class_embeds - 1)
        labels = torch.cat([null, class_labels])
        both = timestep if timestep.ndim == 0 else timestep.repeat(2)
        null_output, output = _call(unet, torch.cat([x, x]), both, class_labels=labels).chunk(2)
        output = null_output + guidance_scale * (output - null_output)
    for axis, side in enumerate(sample.shape[2:], start=2):
        output = output.narrow(axis, 0, side)
    return output


def _call(unet: nn.Module, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
    output = unet(*args, **kwargs)
    return output if isinstance(output, torch.Tensor) else output.sample


class TimeRows(nn.Module):
    """Embeddings of the timesteps of a loop; called with those of a batch, it gives row `step` to every sample."""

    def __init__(self, table: torch.Tensor | None = None):
        super().__init__()
        self.table, self.step = table, 0

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        assert self.table is not None
        return self.table[self.step].expand(len(timesteps), -1)


def embed_timesteps(unet: nn.Module, timesteps: torch.Tensor) -> tuple[nn.Module, TimeRows]:
    """
    Embed all timesteps of a loop at once: every call would compute the same for all samples of its batch.

    The network given back has the same weights, and the rows where `time_proj` and `time_embedding` were; the one that
    was given stays as it is, whoever else uses it at the same time. Networks other than `UNet2DModel` and
    [`CodeUNet2DModel`] come back themselves, and so do those that are compiled (a replayed graph gains nothing) or
    have Accelerate's hooks.

    Args:
        unet (`nn.Module`): the network.
        timesteps (`torch.Tensor`): (n,), on its device.

    Returns:
        `(unet, rows)`: set `rows.step` to 0..n-1 before each call.
    """
    network: Any = unet
    if (
        type(network) not in (UNet2DModel, CodeUNet2DModel)
        or network.config.class_embed_type == "timestep"  # time_proj has another use then
        or network._compiled_call_impl is not None
        or "forward" in vars(network)
    ):
        return network, TimeRows()
    rows = TimeRows(network.time_embedding(network.time_proj(timesteps).to(network.dtype)))
    embedded = copy.copy(network)
    embedded._modules = network._modules | {"time_proj": rows, "time_embedding": nn.Identity()}
    return embedded, rows


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
