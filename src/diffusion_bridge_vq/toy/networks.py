"""
Models for the bridge on sequences (B, d, N), whose elements are latents already: the toy of section 4.1.
"""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.autoencoders.vq_model import VQEncoderOutput
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import nn

from ..evaluation.arguments import check_floats, check_model, check_number
from ..models.latent_normalizer import LatentNormalizer
from ..models.quantizers_trained import GumbelSoftmaxQuantizer
from ..schedulers import OUBridgeScheduler


class SequenceVQModel(ModelMixin, ConfigMixin):
    """
    A [`GumbelVQModel`] without encoder and decoder: sequences are their own latents, z_e = x and x = z_q.

    Args:
        vq_embed_dim (`int`, *optional*, defaults to 2): d.
        num_vq_embeddings (`int`, *optional*, defaults to 8): K.
        temperature (`float`, *optional*, defaults to 1.0), commitment_weight (`float`, *optional*, defaults to 0.25):
            see [`GumbelSoftmaxQuantizer`].
    """

    @register_to_config
    def __init__(
        self,
        vq_embed_dim: int = 2,
        num_vq_embeddings: int = 8,
        temperature: float = 1.0,
        commitment_weight: float = 0.25,
    ):
        super().__init__()
        self.quantize = GumbelSoftmaxQuantizer(
            num_vq_embeddings, vq_embed_dim, temperature=temperature, commitment_weight=commitment_weight
        )
        self.normalizer = LatentNormalizer(vq_embed_dim)
        self.normalizer.freeze()

    def encode(self, x: torch.Tensor) -> VQEncoderOutput:
        """x (B, d, N) -> `.latents`: z_e, the same."""
        return VQEncoderOutput(latents=x)

    def decode(self, h: torch.Tensor, force_not_quantize: bool = False) -> DecoderOutput:
        """z_e (B, d, N) -> `.sample`: z_q; with `force_not_quantize`, `h` is z_q already."""
        return DecoderOutput(sample=h if force_not_quantize else self.quantize(h)[0])


class SequenceDenoiser(ModelMixin, ConfigMixin):
    """
    A residual MLP over all positions at once, which predicts z_0 (`prediction_type="sample"`).

    The posterior mean of a discrete sequence is a weighted mean of code vectors at each position. So the last layer
    is a softmax over `num_vectors` learned vectors, which no other position shares weights with.

    Args:
        channels (`int`, *optional*, defaults to 2): d.
        length (`int`, *optional*, defaults to 5): N.
        width (`int`, *optional*, defaults to 64), num_blocks (`int`, *optional*, defaults to 3): of the residual
            blocks.
        num_vectors (`int`, *optional*, defaults to 16): vectors that the output is a mean of.
    """

    @register_to_config
    def __init__(
        self, channels: int = 2, length: int = 5, width: int = 64, num_blocks: int = 3, num_vectors: int = 16
    ):
        super().__init__()
        self.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(width, width)
        self.linear_in = nn.Linear(channels * length, width)
        self.blocks = nn.ModuleList([_ResidualBlock(width) for _ in range(num_blocks)])
        self.norm_out = nn.LayerNorm(width)
        self.logits = nn.Linear(width, length * num_vectors)
        self.vectors = nn.Linear(num_vectors, channels)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Unit-variance x_t (B, d, N) and timesteps () or (B,) -> z_0 (B, d, N)."""
        time = self.time_embedding(self.time_proj(timestep.reshape(-1)).to(sample.dtype))
        hidden = self.linear_in(sample.flatten(1))
        for block in self.blocks:
            hidden = block(hidden, time)
        weights = self.logits(self.norm_out(hidden)).unflatten(1, (sample.shape[2], -1)).softmax(dim=-1)
        return self.vectors(weights).movedim(-1, 1)


class _ResidualBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear1, self.time, self.linear2 = (nn.Linear(width, width) for _ in range(3))

    def forward(self, hidden: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return hidden + self.linear2(F.silu(self.linear1(self.norm(hidden)) + self.time(time)))


class PaperSequenceDenoiser(ModelMixin, ConfigMixin):
    """
    The kind of network that appendix 10 describes: time embedding, linear layer, two convolutions of kernel 3, tanh.

    Figure 10 gives no sizes; with these it has 4,994 weights, the text's "around 5000".
    """

    @register_to_config
    def __init__(self, channels: int = 2, width: int = 32):
        super().__init__()
        self.time_proj = Timesteps(width // 2, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(width // 2, width)
        self.conv_in = nn.Conv1d(channels, width, 1)
        self.conv1 = nn.Conv1d(width, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, channels, 3, padding=1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """x_t (B, d, N) and timesteps () or (B,) -> prediction (B, d, N)."""
        time = self.time_embedding(self.time_proj(timestep.reshape(-1)).to(sample.dtype))
        hidden = torch.tanh(self.conv_in(sample) + time[:, :, None])
        return self.conv2(torch.tanh(self.conv1(hidden)))


class MixtureDenoiser(nn.Module):
    r"""
    The exact posterior mean E[z_0 | z_t] for z_0 = a sequence of `sequences` (equally likely) + Gaussian noise.

    No weights and nothing to train: the truth that trained networks and samplers are held against. It predicts z_0
    (`prediction_type="sample"`).

    Args:
        means (`torch.Tensor`): the code vectors of the sequences, (S, d, N).
        std (`float`): standard deviation of the noise around them.
        scheduler ([`OUBridgeScheduler`]): its input is in the coordinates of this process, with z* = 0.

    Raises:
        TypeError, ValueError: values of another kind or shape, or that aren't finite.
    """

    means: torch.Tensor

    def __init__(self, means: torch.Tensor, std: float, scheduler: OUBridgeScheduler):
        super().__init__()
        check_floats("means", means, "(S, d, N)", (3,))
        check_number("std", std, 0)
        check_model("scheduler", scheduler, OUBridgeScheduler)
        self.register_buffer("means", means.flatten(1))
        self.std, self.scheduler = std, scheduler

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Unit-variance x_t (B, d, N) and timesteps () or (B,) -> z_0 (B, d, N)."""
        snr = self.scheduler.signal_to_noise(timestep.reshape(-1)).to(sample.dtype)[:, None]
        # z_0 + noise of variance 1 / SNR
        observed = sample.flatten(1) * ((1 + snr) / snr).sqrt()
        distances = torch.cdist(observed, self.means).square()  # (B, S)
        means = (-distances / (2 * (self.std**2 + 1 / snr))).softmax(dim=1) @ self.means
        return (means + self.std**2 / (self.std**2 + 1 / snr) * (observed - means)).view_as(sample)
