"""Training: settings, objectives, and the Accelerate loop."""

from ..losses import ReconstructionLoss
from .build import build_objective
from .config import E2EConfig, PixelCNNConfig, PriorConfig, VQConfig
from .objectives import E2EObjective, Objective, ObjectiveOutput, PixelCNNObjective, PriorObjective, VQObjective
from .presets import PRESETS
from .trainer import TrainedComponents, train

__all__ = [
    "PRESETS",
    "E2EConfig",
    "E2EObjective",
    "Objective",
    "ObjectiveOutput",
    "PixelCNNConfig",
    "PixelCNNObjective",
    "PriorConfig",
    "PriorObjective",
    "ReconstructionLoss",
    "TrainedComponents",
    "VQConfig",
    "VQObjective",
    "build_objective",
    "train",
]
