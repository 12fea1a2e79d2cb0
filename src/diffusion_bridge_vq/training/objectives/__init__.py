"""What each kind of run minimizes, and what it answers for itself. Importing this registers all of them."""

from .autoencoder import VQObjective
from .base import (
    EarlyStoppingRule,
    Objective,
    ObjectiveOutput,
    build_objective,
    config_classes,
    objective_class,
    trains,
)
from .bridge import BridgeObjective
from .distillation import DistillObjective
from .end_to_end import E2EObjective
from .priors import PixelCNNObjective, PriorObjective

__all__ = [
    "BridgeObjective",
    "DistillObjective",
    "E2EObjective",
    "EarlyStoppingRule",
    "Objective",
    "ObjectiveOutput",
    "PixelCNNObjective",
    "PriorObjective",
    "VQObjective",
    "build_objective",
    "config_classes",
    "objective_class",
    "trains",
]
