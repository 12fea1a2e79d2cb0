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
        decoder_only (`bool`, *optional*, defaults to `False`): encoder, codebook and normalizer stay as they are.
    """

    trained = ("vqvae", "discriminator")
    saved = ("vqvae",)

    def __init__(
        self, vqvae: GumbelVQModel, reconstruction: ReconstructionLoss | None = None, decoder_only: bool = False
    ):
        super().__init__()
        self.vqvae, self.reconstruction = vqvae, reconstruction or ReconstructionLoss()
        self.discriminator, self.decoder_only = self.reconstruction.discriminator, decoder_only
        if decoder_only:
            vqvae.requires_grad_(False)
            for part in (vqvae.post_quant_conv, vqvae.decoder):
                part.requires_grad_(True)
        self.train()

    @classmethod
    def from_config(
        cls, config: VQConfig, num_classes: int | None, class_names: Sequence[str] | None = None
    ) -> "VQObjective":
        return cls(build_autoencoder(config), build_reconstruction_loss(config), config.decoder_only)

    @property
    def has_unused_parameters(self) -> bool:
        return self.discriminator is not None  # until it joins

    def phases(self) -> dict[int, str]:
        part = "decoder" if self.decoder_only else "vqvae"
        phases = {0: part}
        if self.discriminator is not None:
            phases[self.reconstruction.adversarial_from] = f"{part} and discriminator"
        return phases

    def set_step(self, step: float) -> None:
        self.reconstruction.set_step(step)

    def train(self, mode: bool = True) -> "VQObjective":
        """As the base class; an encoder that is kept stays in evaluation mode, so that its codes do, too."""
        super().train(mode)
        self.vqvae.train(mode and not self.decoder_only)
        return self

    def forward(self, images: torch.Tensor, class_labels: torch.Tensor | None = None) -> ObjectiveOutput:
        latents = self.vqvae.encode(images).latents
        z_q, codebook, (perplexity, _, _) = self.vqvae.quantize(latents)
        losses = self.reconstruction(images, self.vqvae.decode(z_q, True).sample)
        if not self.decoder_only:
            losses["codebook"] = codebook
        return ObjectiveOutput(losses, {"latent_rms": root_mean_square(latents), "batch_perplexity": perplexity})
