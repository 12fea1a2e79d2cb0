"""Autoencoder, quantizer, the baseline prior, and the one function through which every eps-network is called."""

from .autoencoder_gumbel_vq import GumbelVQModel, LatentNormalizer
from .denoiser import check_channels, denoise
from .pixelcnn import PixelCNNOutput, PixelCNNPrior, check_num_codes
from .quantizer import GumbelQuantizer

__all__ = [
    "GumbelQuantizer",
    "GumbelVQModel",
    "LatentNormalizer",
    "PixelCNNOutput",
    "PixelCNNPrior",
    "check_channels",
    "check_num_codes",
    "denoise",
]
