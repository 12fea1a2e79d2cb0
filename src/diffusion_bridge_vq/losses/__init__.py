"""Losses: the terms of the bridge (lemma 3.1), and what decoded images are compared by."""

from ..choices import PerceptualFeatures, Regularization, Weighting
from .bridge import (
    categorical_kl,
    prediction_target,
    prior_loss,
    prior_temperature,
    regularization_loss,
    terminal_loss,
)
from .reconstruction import (
    LPIPSLoss,
    PatchDiscriminator,
    PerceptualLoss,
    ReconstructionLoss,
    reconstruction_loss,
)

__all__ = [
    "LPIPSLoss",
    "PatchDiscriminator",
    "PerceptualFeatures",
    "PerceptualLoss",
    "ReconstructionLoss",
    "Regularization",
    "Weighting",
    "categorical_kl",
    "prediction_target",
    "prior_loss",
    "prior_temperature",
    "reconstruction_loss",
    "regularization_loss",
    "terminal_loss",
]
