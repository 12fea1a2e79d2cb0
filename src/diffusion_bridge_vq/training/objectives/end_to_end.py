"""Autoencoder and diffusion prior in one run: Algorithm 1, and two ways that don't collapse."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from diffusers import UNet2DModel
from diffusers.utils import logging

from ...losses import ReconstructionLoss, Regularization, Weighting, regularization_loss, terminal_loss
from ...models import ConditionedUNet, GumbelVQModel, condition_map, denoise
from ...schedulers import OUBridgeScheduler
from ..build import build_autoencoder, build_diffusion_prior, build_reconstruction_loss, read_condition
from ..kinds import E2EConfig
from .base import ObjectiveOutput, root_mean_square, trains
from .bridge import BridgeObjective

logger = logging.get_logger(__name__)


@trains(E2EConfig)
class E2EObjective(BridgeObjective):
    r"""
    Encoder, decoder, codebook and prior in one run: L_rec + L_t + L_t^reg with one t per sample (Algorithm 1).

    `mode` decides what may move the encoder:

    - "paper": as printed. Every gradient flows, also the prior's into the encoder, with its full weight. Algorithm 1
      draws one of t = 0..T. Here it is one of the T steps of the bridge; L_T and L_0^reg, the terms without a step,
      are added every time with weight 1 / T. Latents keep the scale they came with (the normalizer is frozen). The
      sum can be made small by shrinking the latents.
    - "decoder": no loss of the prior moves it. From `joint_from` on encoder and codebook are frozen, so the prior's
      target doesn't move, and the decoder learns on with the prior: from the codes of a fraction `decoder_fraction` of
      each batch. With `decoder_noise` every second of these images is decoded from the codes that the prior predicts
      from z_t, in one step from a random t below `decoder_noise` T (the likelihood of an image given a z_e^0 that the
      diffusion reconstructed, appendix 10); on digits that made samples worse.
    - "stable": latents have unit variance, batch by batch. The prior's gradient reaches the encoder through frozen
      prior weights, times `encoder_gradient_weight`, which rises linearly from 0 over the joint phase's first
      `ramp_steps`. Until `joint_from` the autoencoder learns alone; from `freeze_from` on only the prior does.

    Args:
        vqvae ([`GumbelVQModel`]): trained.
        unet (`UNet2DModel`): trained.
        scheduler ([`OUBridgeScheduler`]): the bridge.
        mode (`str`): "decoder", "stable" or "paper". "decoder" with a `joint_from` of 0 is for a trained autoencoder:
            its encoder and codebook stay as they are.
        weighting (`str`, *optional*, defaults to `"simple"`): weight of L_t, see [`prior_loss`].
        class_dropout (`float`, *optional*, defaults to 0.1): fraction of labels replaced by the null class.
        reconstruction_weight (`float`, *optional*, defaults to 1.0): w of `losses`: a Gaussian decoder of variance
            D / (2 w T N d) with `weighting="elbo"`.
        reconstruction ([`ReconstructionLoss`], *optional*): see [`VQObjective`].
        regularization (`str`, *optional*, defaults to `"gamma"`): form of L_t^reg, see [`regularization_loss`].
        regularization_weight (`float`, *optional*, defaults to 1.0): weight of L_t^reg.
        encoder_gradient_weight (`float`, *optional*, defaults to 0.1): see "stable".
        ramp_steps (`int`, *optional*, defaults to 0): steps over which this weight rises from 0.
        joint_from (`int`, *optional*, defaults to 0): step at which the prior joins.
        freeze_from (`int`, *optional*): step from which the autoencoder is frozen ("stable").
        decoder_fraction (`float`, *optional*, defaults to 0.2): see "decoder", in (0, 1].
        decoder_noise (`float`, *optional*, defaults to 0.0): see "decoder", in [0, 1]; 0 decodes the images' own codes
            alone.

    Raises:
        ValueError: an unknown mode.
    """

    trained = ("vqvae", "unet", "discriminator")
    encoder_gradient_scale: torch.Tensor

    def __init__(
        self,
        vqvae: GumbelVQModel,
        unet: UNet2DModel,
        scheduler: OUBridgeScheduler,
        mode: Literal["decoder", "stable", "paper"],
        weighting: Weighting = "simple",
        class_dropout: float = 0.1,
        reconstruction_weight: float = 1.0,
        reconstruction: ReconstructionLoss | None = None,
        regularization: Regularization = "gamma",
        regularization_weight: float = 1.0,
        encoder_gradient_weight: float = 0.1,
        ramp_steps: int = 0,
        joint_from: int = 0,
        freeze_from: int | None = None,
        decoder_fraction: float = 0.2,
        decoder_noise: float = 0.0,
    ):
        super().__init__(vqvae, unet, scheduler, weighting, class_dropout)
        if mode not in ("decoder", "stable", "paper"):
            raise ValueError(f"`mode` must be decoder, stable or paper, got {mode!r}.")
        self.mode, self.reconstruction_weight = mode, reconstruction_weight
        self.reconstruction = reconstruction or ReconstructionLoss()
        self.discriminator = self.reconstruction.discriminator
        self.regularization, self.regularization_weight = regularization, regularization_weight
        self.encoder_gradient_weight, self.ramp_steps = encoder_gradient_weight, ramp_steps
        self.joint_from, self.freeze_from = joint_from, freeze_from
        self.decoder_fraction, self.decoder_noise = decoder_fraction, decoder_noise
        self.samples_from = 0 if mode == "paper" else joint_from
        if mode == "paper":
            vqvae.normalizer.freeze()
        # a tensor, so that a compiled forward isn't compiled again for every value
        self.register_buffer("encoder_gradient_scale", torch.zeros(()), persistent=False)
        self.set_step(0)

    @classmethod
    def from_config(
        cls, config: E2EConfig, num_classes: int | None, class_names: Sequence[str] | None = None
    ) -> "E2EObjective":
        vqvae = build_autoencoder(config)
        if config.mode == "paper" and config.autoencoder_from is not None and vqvae.config.quantizer_type != "gumbel":
            logger.warning(
                f"The autoencoder in {config.autoencoder_from} keeps its `quantizer_type` "
                f"{vqvae.config.quantizer_type!r}; the paper's is 'gumbel'."
            )
        unet, scheduler, start = build_diffusion_prior(config, vqvae, num_classes, class_names)
        steps = config.max_train_steps
        if config.mode != "paper" and round(config.joint_fraction * steps) >= steps:
            raise ValueError(
                f"`joint_fraction` {config.joint_fraction} of {steps} steps leaves none for the prior. Take a smaller "
                "`joint_fraction`, or more `max_train_steps`."
            )
        objective = cls(
            vqvae,
            unet,
            scheduler,
            mode=config.mode,
            weighting=config.weighting,
            class_dropout=config.class_dropout,
            reconstruction_weight=config.reconstruction_weight,
            reconstruction=build_reconstruction_loss(config),
            regularization=config.regularization,
            regularization_weight=config.regularization_weight,
            encoder_gradient_weight=config.encoder_gradient_weight,
            ramp_steps=round(config.ramp_fraction * steps),
            joint_from=round(config.joint_fraction * steps),
            freeze_from=round(config.freeze_fraction * steps) if config.freeze_fraction < 1 else None,
            decoder_fraction=config.decoder_fraction,
            decoder_noise=config.decoder_noise,
        )
        objective.draw_from(read_condition(config), config.condition_dropout)
        objective.start = start
        return objective

    @property
    def has_unused_parameters(self) -> bool:
        return True  # phases leave the U-Net, the autoencoder or the discriminator without gradient

    def set_step(self, step: float) -> None:
        self.reconstruction.set_step(step)
        self.joint, self.codes_frozen, self.frozen = self._phase(step)
        scale = 1.0 if self.mode == "paper" else 0.0
        if self.mode == "stable" and self.joint:
            ramp = min(1.0, (step - self.joint_from) / self.ramp_steps) if self.ramp_steps else 1.0
            scale = self.encoder_gradient_weight * ramp
        self.encoder_gradient_scale.fill_(scale)
        if self.vqvae.training != (self.training and not self.codes_frozen):
            self.vqvae.train(self.training and not self.codes_frozen)

    def _phase(self, step: float) -> tuple[bool, bool, bool]:
        """Whether at this step the prior learns, encoder and codebook are frozen, and the whole autoencoder is."""
        if self.mode == "paper":
            return True, False, False
        joint = step >= self.joint_from
        if self.mode == "decoder":
            return joint, joint, False
        frozen = self.freeze_from is not None and step >= self.freeze_from
        return joint, frozen, frozen

    def phases(self) -> dict[int, str]:
        adversarial_from = self.reconstruction.adversarial_from if self.discriminator is not None else None
        phases: dict[int, str] = {}
        for start in sorted({0, self.joint_from, self.freeze_from or 0, adversarial_from or 0}):
            joint, codes_frozen, frozen = self._phase(start)
            parts = {
                "vqvae": not codes_frozen,
                "decoder": codes_frozen and not frozen,
                "discriminator": adversarial_from is not None and start >= adversarial_from and not frozen,
                "unet": joint,
            }
            trained = " and ".join(name for name, learns in parts.items() if learns)
            if trained != next(reversed(phases.values()), None):
                phases[start] = trained
        return phases

    def train(self, mode: bool = True) -> "E2EObjective":
        super().train(mode)
        self.vqvae.train(mode and not self.codes_frozen)
        return self

    def forward(
        self,
        images: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        condition: torch.Tensor | None = None,
    ) -> ObjectiveOutput:
        """As the base class, with a `condition` (B, C, s, s) in [-1, 1] for each image, if it isn't made of them."""
        condition = self.find_condition(images, condition)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.codes_frozen):
            latents = self.vqvae.encode(images).latents  # z_e^0
            z_q, codebook, (perplexity, _, _) = self.vqvae.quantize(latents)
        losses, metrics = {}, {"latent_rms": root_mean_square(latents), "batch_perplexity": perplexity}
        if self.joint:
            timesteps, noise = self.draw(latents)
        if not self.frozen:
            if self.codes_frozen:
                z_q = self._decoder_inputs(latents, z_q, class_labels, condition)
            for name, loss in self.reconstruction(images[: len(z_q)], self.vqvae.decode(z_q, True).sample).items():
                losses[name] = loss if name == "discriminator" else self.reconstruction_weight * loss
        # Algorithm 1 has no codebook term: there L_t^reg moves the codes, if losses move them at all.
        if not self.codes_frozen and (self.mode != "paper" or not self.vqvae.quantize.learns_by_gradient):
            losses["codebook"] = codebook
        if self.joint:
            z_0 = _ScaleGradient.apply(latents, self.encoder_gradient_scale)
            losses["prior"] = self.bridge_loss(z_0, timesteps, noise, class_labels, condition)
            if not self.codes_frozen and self.regularization != "none":
                z_t = self.scheduler.add_noise(latents, noise, timesteps)
                regularization = self._regularization(z_t, timesteps)
                if self.mode == "paper":
                    clean = self._regularization(latents, torch.full_like(timesteps, -1))  # L_0^reg
                    regularization = regularization + clean / len(self.scheduler)
                losses["regularization"] = self.regularization_weight * regularization
            if self.mode == "paper":
                losses["terminal"] = terminal_loss(self.scheduler, z_0) / len(self.scheduler)
        return ObjectiveOutput(losses, metrics)

    def draw_samples(self, components: Mapping[str, Any], count: int, num_inference_steps: int) -> torch.Tensor | None:
        """As the base class; None until the prior joins, since a fresh U-Net draws noise."""
        return super().draw_samples(components, count, num_inference_steps) if self.joint else None

    def draw_rows(
        self, components: Mapping[str, Any], inputs: Mapping[str, torch.Tensor], num_inference_steps: int
    ) -> torch.Tensor | None:
        """As the base class; None until the prior joins."""
        return super().draw_rows(components, inputs, num_inference_steps) if self.joint else None

    @torch.no_grad()
    def _decoder_inputs(
        self,
        latents: torch.Tensor,
        z_q: torch.Tensor,
        class_labels: torch.Tensor | None,
        condition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Code vectors of the first images of a batch; those of every second one as the prior predicts them."""
        count = max(1, round(self.decoder_fraction * len(latents)))
        highest = round(self.decoder_noise * len(self.scheduler))
        if highest < 1:
            return z_q[:count]
        timesteps = torch.randint(highest, (count,), device=latents.device)
        z_t = self.scheduler.add_noise(latents[:count], torch.randn_like(latents[:count]), timesteps)
        labels, unet = self.prior_labels(class_labels), self.unet
        if condition is not None:
            unet = ConditionedUNet(unet, condition_map(condition[:count], latents.shape[-1]))
        output = denoise(unet, self.scheduler, z_t, timesteps, None if labels is None else labels[:count])
        predicted = self.vqvae.quantize(self.scheduler.predict_original_sample(output, timesteps, z_t))[0]
        odd = (torch.arange(count, device=latents.device) % 2 == 1).reshape(-1, 1, 1, 1)
        return torch.where(odd, predicted.to(z_q.dtype), z_q[:count])

    def _regularization(self, z_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return regularization_loss(self.scheduler, self.vqvae.quantize, z_t, timesteps, self.regularization)


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by `scale`: only the encoder's gradient shrinks, not the prior's."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(scale)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        (scale,) = ctx.saved_tensors
        return grad_outputs[0] * scale.to(grad_outputs[0].dtype), None
