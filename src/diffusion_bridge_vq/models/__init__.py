"""Autoencoder, quantizer, the baseline prior, and the one function through which every eps-network is called."""

from .autoencoder_gumbel_vq import GumbelVQModel, LatentNormalizer
from .code_unet import CodeUNet2DModel, bridge_start_latents
from .denoiser import check_channels, denoise
from .pixelcnn import PixelCNNOutput, PixelCNNPrior, check_num_codes
from .quantizer import GumbelQuantizer

__all__ = [
    "CodeUNet2DModel",
    "GumbelQuantizer",
    "GumbelVQModel",
    "LatentNormalizer",
    "PixelCNNOutput",
    "PixelCNNPrior",
    "bridge_start_latents",
    "check_channels",
    "check_num_codes",
    "denoise",
]
