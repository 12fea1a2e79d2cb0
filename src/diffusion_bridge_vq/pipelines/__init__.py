"""Pipelines."""

from .components import build_pipeline, load_pipeline, save_components, save_trained
from .denoising_chain import DenoisingChain
from .pipeline_diffusion_bridge_vq import DiffusionBridgeVQPipeline
from .pipeline_diffusion_bridge_vq_inpaint import DiffusionBridgeVQInpaintPipeline
from .pipeline_pixelcnn_vq import PixelCNNVQPipeline

__all__ = [
    "DenoisingChain",
    "DiffusionBridgeVQInpaintPipeline",
    "DiffusionBridgeVQPipeline",
    "PixelCNNVQPipeline",
    "build_pipeline",
    "load_pipeline",
    "save_components",
    "save_trained",
]
