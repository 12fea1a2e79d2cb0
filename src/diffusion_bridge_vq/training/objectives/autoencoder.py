"""Stage 1: the autoencoder alone."""

from collections.abc import Sequence

import torch

from ...losses import ReconstructionLoss
from ...models import GumbelVQModel
from ..build import build_autoencoder, build_reconstruction_loss
from ..kinds import VQConfig
from .base import Objective, ObjectiveOutput, root_mean_square, trains


@trains(VQConfig)
class VQObjective(Objective):
    """
    Stage 1: reconstruction and codebook, the T = 0 case of the paper.

    Args:
        vqvae ([`GumbelVQModel`]): trained.
        reconstruction ([`ReconstructionLoss`], *optional*): the terms of decoded images; defaults to the squared error
            alone.
    """

    trained = ("vqvae", "discriminator")
    saved = ("vqvae",)

    def __init__(self, vqvae: GumbelVQModel, reconstruction: ReconstructionLoss | None = None):
        super().__init__()
        self.vqvae, self.reconstruction = vqvae, reconstruction or ReconstructionLoss()
        self.discriminator = self.reconstruction.discriminator

    @classmethod
    def from_config(
        cls, config: VQConfig, num_classes: int | None, class_names: Sequence[str] | None = None
    ) -> "VQObjective":
        return cls(build_autoencoder(config), build_reconstruction_loss(config))

    @property
    def has_unused_parameters(self) -> bool:
        return self.discriminator is not None  # until it joins

    def phases(self) -> dict[int, str]:
        phases = {0: "vqvae"}
        if self.discriminator is not None:
            phases[self.reconstruction.adversarial_from] = "vqvae and discriminator"
        return phases

    def set_step(self, step: float) -> None:
        self.reconstruction.set_step(step)

    def forward(self, images: torch.Tensor, class_labels: torch.Tensor | None = None) -> ObjectiveOutput:
        latents = self.vqvae.encode(images).latents
        z_q, codebook, (perplexity, _, _) = self.vqvae.quantize(latents)
        losses = self.reconstruction(images, self.vqvae.decode(z_q, True).sample) | {"codebook": codebook}
        return ObjectiveOutput(losses, {"latent_rms": root_mean_square(latents), "batch_perplexity": perplexity})
