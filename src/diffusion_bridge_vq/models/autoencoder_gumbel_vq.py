"""VQ autoencoder with normalized latents: pixels in [-1, 1] -> z_e -> z_q -> pixels."""

import math
from typing import Any

import torch
from diffusers import VQModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import SpatialNorm
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.autoencoders.vq_model import VQEncoderOutput

# A pipeline finds out how to load a component from the names in the module that defines it: this one must be here.
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401
from diffusers.utils.accelerate_utils import apply_forward_hook

from .arguments import (
    MAX_SIDE,
    Choice,
    Flag,
    Integer,
    ListOf,
    Number,
    OrNone,
    Rule,
    check_arguments,
    check_same_length,
)
from .bounded_loading import SafeLoadingMixin
from .inputs import check_tensor, explain_dtype
from .latent_normalizer import LatentNormalizer
from .quantizers_trained import find_quantizer

_AUTOENCODER_RULES: dict[str, Rule] = {
    "in_channels": Integer(),
    "out_channels": Integer(),
    "down_block_types": ListOf(Choice()),
    "up_block_types": ListOf(Choice()),
    "block_out_channels": ListOf(Integer()),
    "layers_per_block": Integer(),
    "act_fn": Choice(),
    "latent_channels": Integer(),
    "sample_size": Integer(1, MAX_SIDE),
    "num_vq_embeddings": Integer(),
    "norm_num_groups": Integer(),
    "vq_embed_dim": OrNone(Integer()),
    "scaling_factor": Number(),
    "norm_type": Choice(("group", "spatial")),
    "mid_block_add_attention": Flag(),
    "lookup_from_codebook": Flag(),
    "force_upcast": Flag(),
    "normalize_latents": Flag(),
}


class GumbelVQModel(SafeLoadingMixin, VQModel):
    r"""
    diffusers' `VQModel` with normalized latents and a quantizer of [`QUANTIZERS`].

    Encoder, decoder and constructor keys are VQModel's, so that stock checkpoints load here
    (`GumbelVQModel.from_pretrained`) and `to_vq_model` gives back a stock model that decodes and reconstructs alike.

    Spaces: `encode` goes from pixels (B, C, H, W) in [-1, 1] to z_e (B, d, h, w) of unit variance, `encode_codes`
    from z_e to codes (B, h, w), `decode_codes` from codes to z_q, `decode` from z_e (which it quantizes) or, with
    `force_not_quantize=True`, from z_q to pixels.

    Args beyond those of VQModel:
        quantizer_type (`str`, *optional*, defaults to `"gumbel"`): a name of [`QUANTIZERS`]: "gumbel", "ste" or "ema".
        temperature (`float`, *optional*, defaults to 1.0), commitment_weight (`float`, *optional*, defaults to 0.25),
        ema_decay (`float`, *optional*, defaults to 0.99): see [`VectorQuantizer`].
        normalize_latents (`bool`, *optional*, defaults to `True`): bring latents to unit variance before codebook and
            diffusion. If `False`, the statistics stay at mean 0 and variance 1.

    Raises:
        ValueError: an argument outside its range; from `encode`, images of another channel count or whose sides the
            encoder can't halve.
    """

    _supports_gradient_checkpointing = True
    _stock_class = "VQModel"
    _may_lack = ("normalizer.", "quantize.ema_count")

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 3,
        sample_size: int = 32,
        num_vq_embeddings: int = 256,
        norm_num_groups: int = 32,
        vq_embed_dim: int | None = None,
        scaling_factor: float = 0.18215,
        norm_type: str = "group",
        mid_block_add_attention: bool = True,
        lookup_from_codebook: bool = False,
        force_upcast: bool = False,
        quantizer_type: str = "gumbel",
        temperature: float = 1.0,
        commitment_weight: float = 0.25,
        ema_decay: float = 0.99,
        normalize_latents: bool = True,
    ):
        check_arguments("GumbelVQModel", self.config, _AUTOENCODER_RULES)
        check_same_length("GumbelVQModel", self.config, ("block_out_channels", "down_block_types", "up_block_types"))
        quantizer = find_quantizer(quantizer_type)
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            act_fn=act_fn,
            latent_channels=latent_channels,
            sample_size=sample_size,
            num_vq_embeddings=num_vq_embeddings,
            norm_num_groups=norm_num_groups,
            vq_embed_dim=vq_embed_dim,
            scaling_factor=scaling_factor,
            norm_type=norm_type,
            mid_block_add_attention=mid_block_add_attention,
            lookup_from_codebook=lookup_from_codebook,
            force_upcast=force_upcast,
        )
        embed_dim = vq_embed_dim if vq_embed_dim is not None else latent_channels
        self.quantize = quantizer(num_vq_embeddings, embed_dim, temperature, commitment_weight, ema_decay)
        self.normalizer = LatentNormalizer(embed_dim)
        self.normalizer.freeze(not normalize_latents)

    @property
    def downsampling_factor(self) -> int:
        """Pixels per latent position and side."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    @apply_forward_hook
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple[torch.Tensor]:
        """Pixels (B, C, H, W) in [-1, 1] -> `.latents`: z_e (B, d, h, w), normalized, not quantized."""
        factor, channels = self.downsampling_factor, self.config.in_channels
        check_tensor("x", x)
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(
                f"Images must have shape (B, {channels}, H, W) with sides divisible by {factor}, got {tuple(x.shape)}."
            )
        with explain_dtype("x", x, self.dtype):
            latents = self.normalizer(self.quant_conv(self.encoder(x)))
        return VQEncoderOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def decode(
        self, h: torch.Tensor, force_not_quantize: bool = False, return_dict: bool = True, shape: Any = None
    ) -> DecoderOutput | tuple[torch.Tensor, torch.Tensor]:
        """
        z_e (B, d, h, w) -> `.sample`: pixels (B, C, H, W), `.commit_loss`: the quantizer's loss.

        With `force_not_quantize`, `h` is z_q already or, as in a VQModel with `lookup_from_codebook`, flat codes of
        the given `shape` (B, h, w, d); the loss is 0 then.
        """
        if not force_not_quantize:
            z_q, commit_loss, _ = self.quantize(h)
        else:
            z_q = self._check_quantized(h, shape)
            commit_loss = torch.zeros(len(z_q), device=z_q.device, dtype=z_q.dtype)
        with explain_dtype("h", z_q, self.dtype):
            sample = self.decoder(self.post_quant_conv(z_q), z_q if self.config.norm_type == "spatial" else None)
        return DecoderOutput(sample=sample, commit_loss=commit_loss) if return_dict else (sample, commit_loss)

    def _check_quantized(self, h: torch.Tensor, shape: Any) -> torch.Tensor:
        """z_q (B, d, h, w), or flat codes and (B, h, w, d) -> z_q."""
        d = self.quantize.vq_embed_dim
        is_codes = isinstance(h, torch.Tensor) and not h.is_floating_point()
        check_tensor("h", h, integers=is_codes)
        if not is_codes:
            if h.ndim != 4 or h.shape[1] != d:
                raise ValueError(f"`h` must be z_q of shape (B, {d}, h, w), got {tuple(h.shape)}.")
            return h
        if shape is None or len(shape) != 4 or math.prod(shape) != h.numel() * d:
            raise ValueError(
                f"`h` has {h.numel()} codes, so `shape` must be (B, h, w, {d}) with B h w = {h.numel()}, got {shape}."
            )
        return self.quantize.get_codebook_entry(h, shape)

    @apply_forward_hook
    def encode_codes(self, latents: torch.Tensor) -> torch.Tensor:
        """z_e (B, d, h, w) -> nearest codes (B, h, w), int64."""
        return self.quantize.encode_codes(latents)

    @apply_forward_hook
    def sample_codes(
        self, latents: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None = None
    ) -> torch.Tensor:
        """
        z_0 (B, d, h, w) -> codes (B, h, w) drawn from softmax(-||z_0 - e_k||^2), as those of training are. A list has
        one generator per sample.
        """
        return self.quantize.sample_codes(latents, generator=generator)

    @apply_forward_hook
    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, h, w) -> z_q (B, d, h, w), for `decode(..., force_not_quantize=True)`."""
        return self.quantize.decode_codes(codes)

    @property
    def has_statistics(self) -> bool:
        """Whether the normalizer knows the latents. That of a stock VQModel doesn't, see [`use_statistics`]."""
        normalizer = self.normalizer
        fresh = bool((normalizer.running_mean == 0).all() and (normalizer.running_var == 1).all())
        return not fresh or bool(normalizer.num_batches_tracked > 0)

    @torch.no_grad()
    def use_statistics(self, mean: torch.Tensor, std: float) -> None:
        """
        Normalize latents by measured statistics, without another code or pixel: codebook, `post_quant_conv` and
        spatial norms, which take code vectors, are changed along. `std` is one number for all channels, since the
        nearest code would be another one if channels were scaled apart.

        Args:
            mean (`torch.Tensor`): of each channel of the latents that `encode` gives now, (d,).
            std (`float`): root of the mean variance of these channels, > 0.

        Raises:
            ValueError: numbers that aren't finite, another number of channels, a variance below the normalizer's
                least.
        """
        normalizer, mean = self.normalizer, torch.as_tensor(mean, dtype=torch.float32)
        if mean.shape != normalizer.running_mean.shape or not bool(mean.isfinite().all()) or not math.isfinite(std):
            raise ValueError(
                f"`mean` must be {len(normalizer.running_mean)} finite numbers and `std` one, got "
                f"{mean.tolist()} and {std}."
            )
        before = normalizer.running_var.float().clamp(min=normalizer.eps).sqrt()
        variance = (before * std).square()
        if std <= 0 or bool((variance < normalizer.eps).any()):
            raise ValueError(
                f"The latents' variance is {variance.min().item():.3g}; less than {normalizer.eps:g} can't be "
                "normalized: is the encoder trained?"
            )
        mean = mean.to(normalizer.running_mean.device)
        normalizer.running_mean += (mean * before).to(normalizer.running_mean.dtype)
        normalizer.running_var.copy_(variance)
        normalizer.num_batches_tracked.fill_(round(1 / normalizer.momentum))  # as after many batches
        codebook = self.quantize.embedding.weight
        codebook.copy_((codebook.float() - mean) / std)
        takers = [self.post_quant_conv]
        takers += [conv for m in self.decoder.modules() if isinstance(m, SpatialNorm) for conv in (m.conv_y, m.conv_b)]
        for conv in takers:
            weight = conv.weight.float()
            conv.bias += (weight[:, :, 0, 0] @ mean).to(conv.bias.dtype)
            conv.weight.copy_(weight * std)

    @torch.no_grad()
    def to_vq_model(self) -> VQModel:
        """A stock VQModel with the same weights; the running normalizer is folded into its `quant_conv`."""
        config: dict[str, Any] = {k: v for k, v in self.config.items() if k in VQModel._get_init_keys(VQModel)}
        model = VQModel(**config).to(self.device, self.dtype)
        own = {k: v for k, v in self.state_dict().items() if k in model.state_dict()}
        scale = self.normalizer.running_var.float().clamp(min=self.normalizer.eps).rsqrt()
        weight, bias = self.quant_conv.weight, self.quant_conv.bias
        own["quant_conv.weight"] = (weight.float() * scale[:, None, None, None]).to(weight.dtype)
        own["quant_conv.bias"] = ((bias.float() - self.normalizer.running_mean.float()) * scale).to(bias.dtype)
        model.load_state_dict(own)
        return model.train(self.training)
