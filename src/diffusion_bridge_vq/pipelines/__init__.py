"""Pipelines."""

from .pipeline_diffusion_bridge_vq import DiffusionBridgeVQPipeline

__all__ = ["DiffusionBridgeVQPipeline"]
