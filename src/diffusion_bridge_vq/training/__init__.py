"""Training: settings, objectives, and the Accelerate loop."""

from .config import E2EConfig, PriorConfig, VQConfig, parse_config
from .loop import TrainedComponents, build_objective, train
from .objectives import E2EObjective, Objective, ObjectiveOutput, PriorObjective, VQObjective
from .presets import PRESETS

__all__ = [
    "PRESETS",
    "E2EConfig",
    "E2EObjective",
    "Objective",
    "ObjectiveOutput",
    "PriorConfig",
    "PriorObjective",
    "TrainedComponents",
    "VQConfig",
    "VQObjective",
    "build_objective",
    "parse_config",
    "train",
]
