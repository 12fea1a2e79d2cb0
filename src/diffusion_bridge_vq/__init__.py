"""Diffusion bridges VQ-VAE (Cohen et al., ICML 2022) in the manner of diffusers. Public names are imported lazily."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_EXPORTS = {
    "DenoisingChain": ".pipelines",
    "DiffusionBridgeVQInpaintPipeline": ".pipelines",
    "DiffusionBridgeVQPipeline": ".pipelines",
    "GumbelVQModel": ".models",
    "OUBridgeScheduler": ".schedulers",
    "PixelCNNPrior": ".models",
    "PixelCNNVQPipeline": ".pipelines",
}
__all__ = [
    "DenoisingChain",
    "DiffusionBridgeVQInpaintPipeline",
    "DiffusionBridgeVQPipeline",
    "GumbelVQModel",
    "OUBridgeScheduler",
    "PixelCNNPrior",
    "PixelCNNVQPipeline",
    "__version__",
]

if TYPE_CHECKING:
    from .models import GumbelVQModel, PixelCNNPrior
    from .pipelines import (
        DenoisingChain,
        DiffusionBridgeVQInpaintPipeline,
        DiffusionBridgeVQPipeline,
        PixelCNNVQPipeline,
    )
    from .schedulers import OUBridgeScheduler


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
