"""Training: settings, objectives, and the Accelerate loop."""

from .build import build_objective
from .config import E2EConfig, PixelCNNConfig, PriorConfig, VQConfig, parse_config
from .loop import TrainedComponents, train
from .objectives import E2EObjective, Objective, ObjectiveOutput, PixelCNNObjective, PriorObjective, VQObjective
from .presets import PRESETS
from .reconstruction import ReconstructionLoss

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
    "parse_config",
    "train",
]
