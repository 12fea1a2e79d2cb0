"""Autoencoder, quantizer and the one function through which every network is called."""

from .autoencoder_gumbel_vq import GumbelVQModel, LatentNormalizer
from .denoiser import check_channels, denoise
from .quantizer import GumbelQuantizer

__all__ = ["GumbelQuantizer", "GumbelVQModel", "LatentNormalizer", "check_channels", "denoise"]
