"""What each kind of run minimises."""

from .autoencoder import VQObjective
from .base import Objective, ObjectiveOutput
from .end_to_end import E2EObjective
from .priors import PixelCNNObjective, PriorObjective

__all__ = ["E2EObjective", "Objective", "ObjectiveOutput", "PixelCNNObjective", "PriorObjective", "VQObjective"]
