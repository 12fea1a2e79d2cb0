"""Closed choices that settings, losses and metrics share. Importing it takes no time, so that `--help` is fast."""

from typing import Literal

Weighting = Literal["elbo", "simple", "min_snr", "clamped_snr"]
"""Weight of L_t over the noise levels, see [`prior_loss`]."""

Regularization = Literal["gamma", "kl", "none"]
"""Form of L_t^reg, see [`regularization_loss`]."""

PerceptualFeatures = Literal["efficientnet-lite0", "lpips"]
"""Network of the perceptual loss, see [`ReconstructionLoss`]."""

Extractor = Literal["inception", "dinov2", "efficientnet-lite0", "efficientnet-lite2"]
"""Features of a Frechet distance, see [`load_extractor`]."""
