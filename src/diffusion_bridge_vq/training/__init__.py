"""Training: settings, objectives, and the trainer on Accelerate."""

from ..losses import ReconstructionLoss
from .config import E2EConfig, PixelCNNConfig, PriorConfig, RunConfig, VQConfig
from .objectives import (
    E2EObjective,
    EarlyStoppingRule,
    Objective,
    ObjectiveOutput,
    PixelCNNObjective,
    PriorObjective,
    VQObjective,
    build_objective,
    trains,
)
from .options import option
from .presets import PRESETS
from .trainer import Trainer, train

__all__ = [
    "PRESETS",
    "E2EConfig",
    "E2EObjective",
    "EarlyStoppingRule",
    "Objective",
    "ObjectiveOutput",
    "PixelCNNConfig",
    "PixelCNNObjective",
    "PriorConfig",
    "PriorObjective",
    "ReconstructionLoss",
    "RunConfig",
    "Trainer",
    "VQConfig",
    "VQObjective",
    "build_objective",
    "option",
    "train",
    "trains",
]
