"""A U-Net that knows that z_0 is a code: it returns the mean of the code vectors under its posterior of the codes."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel, VQModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .arguments import Choice, Flag, Integer, ListOf, Number, OrNone, Rule, Sides, check_arguments, check_same_length
from .bounded_loading import SafeLoadingMixin
from .inputs import check_tensor
from .quantizer import VectorQuantizer

# What arguments of diffusers' UNet2DModel may be.
_UNET_RULES: dict[str, Rule] = {
    "sample_size": OrNone(Sides()),
    "in_channels": Integer(),
    "out_channels": Integer(),
    "center_input_sample": Flag(),
    "time_embedding_type": Choice(("positional", "fourier", "learned")),
    "time_embedding_dim": OrNone(Integer()),
    "freq_shift": Integer(0),
    "flip_sin_to_cos": Flag(),
    "down_block_types": ListOf(Choice()),
    "mid_block_type": OrNone(Choice()),
    "up_block_types": ListOf(Choice()),
    "block_out_channels": ListOf(Integer()),
    "layers_per_block": Integer(),
    "mid_block_scale_factor": Number(0.0, without_low=True),
    "downsample_padding": Integer(0, 1),
    "downsample_type": Choice(("conv", "resnet")),
    "upsample_type": Choice(("conv", "resnet")),
    "dropout": Number(0.0, 1.0, without_high=True),
    "act_fn": Choice(),
    "attention_head_dim": OrNone(Integer()),
    "norm_num_groups": Integer(),
    "attn_norm_num_groups": OrNone(Integer()),
    "norm_eps": Number(0.0, without_low=True),
    "resnet_time_scale_shift": Choice(("default", "scale_shift")),
    "add_attention": Flag(),
    "class_embed_type": OrNone(Choice(("timestep", "identity"))),
    "num_class_embeds": OrNone(Integer()),
    "num_train_timesteps": OrNone(Integer()),
}
_LEVELS = ("block_out_channels", "down_block_types", "up_block_types")

_LEAST_LOG_SNR = -60.0  # of a schedule whose last level is noise alone


def check_unet_config(config: Mapping[str, Any], owner: str = "UNet2DModel") -> None:
    """
    Check a configuration of diffusers' `UNet2DModel`, which it would fail with later or build a wrong network from.

    Raises:
        ValueError: an argument outside its range.
    """
    check_arguments(owner, config, _UNET_RULES)
    check_same_length(owner, config, _LEVELS)
    width, shift = config.get("block_out_channels", (224,))[0], config.get("freq_shift", 0)
    if config.get("time_embedding_type", "positional") == "positional" and shift >= max(width // 2, 1):
        raise ValueError(
            f"`freq_shift` of {owner} must be below half of the first of `block_out_channels`, {width}, got {shift}."
        )


class CodeUNet2DModel(SafeLoadingMixin, UNet2DModel):
    r"""
    diffusers' `UNet2DModel` as a z_0-network ("sample") for a bridge that starts from code vectors, z_0 = z_q.

    With c_k = e_k - z* and x_t = sqrt(abar') (z_0 - z*) + sqrt(1 - abar') eps, what the scheduler gives the network,

        p(k | x_t) ~ exp(l_k) N(x_t; sqrt(abar') c_k, 1 - abar')   at each position,    z_theta = sum_k p(k | x_t) e_k.

    The second factor is exact: it says all that x_t says about its own position, and at little noise it is all there
    is to know. The convolutions have K output channels, l_k, for what the surroundings say. On words this is called
    categorical reparametrisation with an output prior (Gulrajani and Hashimoto 2023, "Likelihood-based diffusion
    language models"). To samplers, stock schedulers and guidance it is a network as any other: they see z_theta alone.

    Args beyond those of UNet2DModel:
        num_codes (`int`): K.
        num_noise_levels (`int`): T of the scheduler.

    Buffers, saved with the weights and filled by [`set_process`]: `codebook` (K, d), `z_star` (d,), `log_snr` (T,).

    Raises:
        ValueError: an argument outside its range, or `in_channels` and `out_channels` differ: both are d.
    """

    codebook: torch.Tensor
    z_star: torch.Tensor
    log_snr: torch.Tensor

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
        num_codes: int = 256,
        num_noise_levels: int = 1000,
    ):
        check_unet_config(self.config, "CodeUNet2DModel")
        check_arguments("CodeUNet2DModel", self.config, {"num_codes": Integer(), "num_noise_levels": Integer()})
        if in_channels != out_channels:
            raise ValueError(
                f"`in_channels` and `out_channels` are both the latents' channels, got {in_channels} and "
                f"{out_channels}; the number of codes is `num_codes`."
            )
        own: dict[str, Any] = dict(self.config)
        super().__init__(
            **{k: v for k, v in own.items() if k in UNet2DModel._get_init_keys(UNet2DModel)}
            | {"out_channels": num_codes}
        )
        self.register_to_config(out_channels=out_channels)
        self.register_buffer("codebook", torch.randn(num_codes, in_channels))
        self.register_buffer("z_star", torch.zeros(in_channels))
        self.register_buffer("log_snr", torch.linspace(5, -5, num_noise_levels))

    @torch.no_grad()
    def set_process(self, codebook: torch.Tensor, log_snr: torch.Tensor, z_star: torch.Tensor | float = 0.0) -> None:
        """
        Take over the codebook (K, d), the process's log(abar' / (1 - abar')) (T,) and z*, a number or (d,).

        Raises:
            ValueError: another number of codes, channels or noise levels than the network's, or NaN.
        """
        z_star = torch.as_tensor(z_star, dtype=self.z_star.dtype)
        check_tensor("codebook", codebook)
        check_tensor("log_snr", log_snr)
        if bool(codebook.isnan().any()) or bool(log_snr.isnan().any()) or bool(z_star.isnan().any()):
            raise ValueError("Codebook, log_snr and z_star must be numbers, but one of them has NaN.")
        if z_star.numel() not in (1, len(self.z_star)) or z_star.ndim > 1:
            raise ValueError(
                f"`z_star` must be a number or one per channel, {len(self.z_star)}, got shape {tuple(z_star.shape)}."
            )
        for name, given, own in (("codes", codebook, self.codebook), ("noise levels", log_snr, self.log_snr)):
            if given.shape != own.shape:
                raise ValueError(
                    f"The network is made for {name} of shape {tuple(own.shape)}, got {tuple(given.shape)}."
                )
        self.codebook.copy_(codebook)
        self.log_snr.copy_(log_snr.clamp(min=_LEAST_LOG_SNR))
        self.z_star.copy_(z_star)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """
        x_t (B, d, h, w), timestep (a number or (B,)), optional classes (B,) -> `.sample`: z_theta (B, d, h, w).

        Raises:
            ValueError: x_t of another shape.
        """
        check_tensor("sample", sample)
        if sample.ndim != 4 or sample.shape[1] != self.config.in_channels:
            raise ValueError(
                f"`sample` must have shape (B, {self.config.in_channels}, h, w), got {tuple(sample.shape)}."
            )
        logits = super().forward(sample, timestep, class_labels, return_dict=False)[0]
        with torch.autocast(sample.device.type, enabled=False):
            codebook = self.codebook.float()
            posterior = (logits.movedim(1, -1).float() + self._evidence(sample, timestep)).softmax(dim=-1)
            z_0 = (posterior @ codebook).movedim(-1, 1).to(sample.dtype)
        return UNet2DOutput(sample=z_0) if return_dict else (z_0,)

    def _evidence(self, sample: torch.Tensor, timestep: torch.Tensor | float | int) -> torch.Tensor:
        """log N(x_t; sqrt(abar') c_k, 1 - abar') up to what k doesn't change: (B, d, h, w) -> (B, h, w, K) float32."""
        c = self.codebook.float() - self.z_star.float()
        # stock solvers may ask between two levels
        t = torch.as_tensor(timestep, device=sample.device, dtype=torch.float32).reshape(-1)
        low = t.floor().long().clamp(0, len(self.log_snr) - 1)
        high = (low + 1).clamp(max=len(self.log_snr) - 1)
        table = self.log_snr.float()
        snr = torch.lerp(table[low], table[high], t - low).exp().reshape(-1, *[1] * (sample.ndim - 1))
        x = sample.movedim(1, -1).float()
        return (snr * (1 + snr)).sqrt() * F.linear(x, c) - 0.5 * snr * c.square().sum(dim=-1)


def check_process(unet: UNet2DModel, vqvae: VQModel, scheduler: SchedulerMixin) -> None:
    """
    Check that a scheduler's z* has the network's channels, and that a [`CodeUNet2DModel`] belongs to autoencoder and
    scheduler; other networks fit any.

    Raises:
        ValueError: another number of channels, codes or noise levels.
    """
    z_star, channels = scheduler.config.get("z_star", 0.0), unet.config.out_channels
    if isinstance(z_star, (list, tuple)) and not (len(z_star) == channels and all(map(Number().accepts, z_star))):
        raise ValueError(f"`z_star` of the scheduler must be a number or one per channel, {channels}, got {z_star}.")
    if not isinstance(unet, CodeUNet2DModel):
        return
    for name, own, other, where in (
        ("num_codes", unet.config.num_codes, vqvae.config.num_vq_embeddings, "autoencoder's codebook"),
        ("num_noise_levels", unet.config.num_noise_levels, scheduler.config.num_train_timesteps, "scheduler"),
    ):
        if own != other:
            raise ValueError(
                f"The U-Net has `{name}` {own}, but the {where} has {other}. Take components of one training run."
            )


def bridge_start_latents(unet: torch.nn.Module, quantizer: VectorQuantizer, latents: torch.Tensor) -> torch.Tensor:
    """z_e (B, d, h, w) -> z_0 of the process that `unet` knows: z_q for a [`CodeUNet2DModel`], z_e for others."""
    if not isinstance(unet, CodeUNet2DModel):
        return latents
    return quantizer.decode_codes(quantizer.encode_codes(latents)).to(latents.dtype)
