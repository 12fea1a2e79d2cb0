"""Pipelines."""

from .denoising_chain import DenoisingChain
from .pipeline_diffusion_bridge_vq import DiffusionBridgeVQPipeline
from .pipeline_diffusion_bridge_vq_inpaint import DiffusionBridgeVQInpaintPipeline

__all__ = ["DenoisingChain", "DiffusionBridgeVQInpaintPipeline", "DiffusionBridgeVQPipeline"]
