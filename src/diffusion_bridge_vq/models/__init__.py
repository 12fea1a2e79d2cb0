"""Autoencoder, quantizers, the baseline prior, and the one function through which every denoiser is called."""

from .autoencoder_gumbel_vq import GumbelVQModel
from .class_embedding import replace_classes
from .code_unet import CodeUNet2DModel, bridge_start_latents
from .conditions import (
    choose_examples,
    condition_map,
    count_condition_channels,
    find_vocabulary,
    null_labels,
    replace_condition,
    take_several_classes,
    words_to_labels,
)
from .denoiser import ConditionedUNet, check_channels, denoise, refuse_image_condition
from .latent_normalizer import LatentNormalizer
from .pixelcnn import PixelCNNOutput, PixelCNNPrior, check_num_codes
from .quantizer import VectorQuantizer
from .quantizers_trained import QUANTIZERS, EMAQuantizer, GumbelSoftmaxQuantizer, StraightThroughQuantizer

__all__ = [
    "QUANTIZERS",
    "CodeUNet2DModel",
    "ConditionedUNet",
    "EMAQuantizer",
    "GumbelSoftmaxQuantizer",
    "GumbelVQModel",
    "LatentNormalizer",
    "PixelCNNOutput",
    "PixelCNNPrior",
    "StraightThroughQuantizer",
    "VectorQuantizer",
    "bridge_start_latents",
    "check_channels",
    "check_num_codes",
    "choose_examples",
    "condition_map",
    "count_condition_channels",
    "denoise",
    "find_vocabulary",
    "null_labels",
    "refuse_image_condition",
    "replace_classes",
    "replace_condition",
    "take_several_classes",
    "words_to_labels",
]
