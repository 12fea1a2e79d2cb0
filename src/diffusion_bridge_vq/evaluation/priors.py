"""What metrics ask of a prior, answered by each kind of pipeline."""

from typing import Any

import torch
from diffusers import DiffusionPipeline

from ..models import bridge_start_latents, refuse_image_condition
from ..sampling.generators import Generators
from ..schedulers import OUBridgeScheduler
from ..schedulers.few_steps import find_few_steps, is_student
from .code_bits import bits_of_errors, denoising_errors
from .config import EvaluationConfig
from .elbo import elbo_terms
from .nll import bridge_nll, pixelcnn_nll


class EvaluatedPrior:
    """
    A pipeline with a prior: how it is called for samples, and its likelihoods.

    Args:
        model (`str`): its name in errors.
        pipe (`DiffusionPipeline`): on its device.
        config ([`EvaluationConfig`]): the settings.

    Attributes:
        abilities (`frozenset[str]`): which of "samples", "masked_bits", "code_bits" and "elbo" it has.

    Raises:
        ValueError: a guidance scale for a model without classes; more steps than noise levels, where steps
            matter.
    """

    abilities = frozenset({"samples", "masked_bits", "code_bits"})
    num_class_embeds: int | None  # the last of them is the null class

    def __init__(self, model: str, pipe: Any, config: EvaluationConfig):
        self.pipe, self.vqvae, self.config = pipe, pipe.vqvae.eval(), config
        self.model = model
        self._call: dict[str, Any] = {}
        if config.guidance_scale and self.num_class_embeds is None:
            raise ValueError(f"{model} has no classes: leave out `guidance_scale`.")
        pipe.set_progress_bar_config(disable=True)

    @property
    def drawing_facts(self) -> dict[str, Any]:
        """The settings that draws without classes depend on."""
        return {}

    @property
    def sampling_facts(self) -> dict[str, Any]:
        """The settings that samples depend on."""
        classes = {} if self.num_class_embeds is None else {"guidance_scale": self.config.guidance_scale}
        return self.drawing_facts | classes

    def sample_labels(self, start: int, count: int) -> torch.Tensor | None:
        """Classes of the samples from number `start` on, in turn; None if samples have no class."""
        if self.num_class_embeds is None or not self.config.guidance_scale:
            return None
        return torch.arange(start, start + count) % self.num_classes

    @property
    def num_classes(self) -> int:
        """Without the null class; 0 for a model without classes."""
        return (self.num_class_embeds or 1) - 1

    @property
    def class_names(self) -> list[str] | None:
        """In the order of the model's classes; None if they weren't saved."""
        names = self.pipe.id2label
        return None if names is None else [names[number] for number in range(self.num_classes)]

    def draw_codes(self, count: int, generator: Generators, labels: torch.Tensor | None) -> torch.Tensor:
        """Codes of `count` samples, (count, h, w)."""
        call = self._call if labels is None else self._call | self._label_options(labels)
        latents = self.pipe(count, generator=generator, output_type="latent", **call).images
        return self.vqvae.encode_codes(latents)

    def draw_images(self, count: int) -> None:
        """Draw a batch and decode it, to be timed."""
        self.pipe(batch_size=count, output_type="pt", **self._call)

    def masked_bits(
        self, latents: torch.Tensor, codes: torch.Tensor, mask: torch.Tensor, generator: Generators
    ) -> dict[str, torch.Tensor]:
        """Bits per masked code of each image, (n,) by the figure's name."""
        raise NotImplementedError

    def masked_facts(self) -> dict[str, Any]:
        """The settings that [`masked_bits`] depends on."""
        return {}

    def code_errors(self, codes: torch.Tensor, generator: Generators, batch_size: int) -> torch.Tensor:
        """What [`code_bits`] needs of each map (n, h, w), (n, ...) on the CPU."""
        raise NotImplementedError

    def code_bits(self, errors: torch.Tensor, num_positions: int) -> torch.Tensor:
        """Bits per code of each map, (n,), from what [`code_errors`] found of all."""
        raise NotImplementedError

    def elbo_terms(
        self, pixels: torch.Tensor, generator: Generators, timesteps_per_image: int, batch_size: int
    ) -> torch.Tensor:
        """Terms of -ELBO of images (n, C, H, W) in [-1, 1], see [`elbo_terms`]."""
        raise NotImplementedError

    def _label_options(self, labels: torch.Tensor) -> dict[str, Any]:
        return {"class_labels": labels.tolist()}

    def _null_classes(self, count: int) -> torch.Tensor | None:
        """What the pipelines take without labels."""
        if self.num_class_embeds is None:
            return None
        return torch.full((count,), self.num_class_embeds - 1, device=self.vqvae.device)


class BridgePrior(EvaluatedPrior):
    """[`EvaluatedPrior`] of a [`DiffusionBridgeVQPipeline`]."""

    def __init__(self, model: str, pipe: Any, config: EvaluationConfig):
        refuse_image_condition(pipe.unet, "evaluation doesn't take")
        self.num_class_embeds = pipe.unet.config.num_class_embeds
        super().__init__(model, pipe, config)
        pipe.unet.eval()
        solver: dict[str, Any] = {}
        if isinstance(pipe.scheduler, OUBridgeScheduler):
            self.abilities = self.abilities | {"elbo"}
            solver = {"solver": "consistency" if is_student(pipe.scheduler) else config.solver}
        else:  # a stock scheduler is a solver itself, and has no noise levels of its own to integrate over
            self.abilities = self.abilities - {"code_bits"}
        if is_student(pipe.scheduler):  # it predicts ends of trajectories, not means: no likelihood, no completions
            self.abilities = frozenset({"samples"})
        self._call = {"num_inference_steps": config.num_inference_steps} | solver
        self._facts = {"steps": config.num_inference_steps} | solver

    @property
    def drawing_facts(self) -> dict[str, Any]:
        steps, levels = self.config.num_inference_steps, self.pipe.scheduler.config.num_train_timesteps
        if steps > levels:  # raised before features of real images are computed
            raise ValueError(f"`num_inference_steps` is {steps}, but {self.model} has {levels} noise levels.")
        find_few_steps(self.pipe.scheduler, steps)  # of a student: also raised before
        return self._facts

    def _label_options(self, labels: torch.Tensor) -> dict[str, Any]:
        return super()._label_options(labels) | {"guidance_scale": self.config.guidance_scale}

    def masked_facts(self) -> dict[str, Any]:
        facts = {"draws": self.config.num_nll_samples, "jump_n_sample": 1} | self.drawing_facts
        return facts | ({"solver": "ancestral"} if "solver" in facts else {})

    def masked_bits(
        self, latents: torch.Tensor, codes: torch.Tensor, mask: torch.Tensor, generator: Generators
    ) -> dict[str, torch.Tensor]:
        found = bridge_nll(
            self.pipe.unet,
            self.pipe.scheduler,
            self.vqvae.quantize,
            bridge_start_latents(self.pipe.unet, self.vqvae.quantize, latents),
            codes,
            mask,
            self.config.num_nll_samples,
            self.config.num_inference_steps,
            generator,
            class_labels=self._null_classes(len(latents)),
        )
        return {"nll": found.one_sample, "nll_joint": found.joint}

    def code_errors(self, codes: torch.Tensor, generator: Generators, batch_size: int) -> torch.Tensor:
        labels = self._null_classes(len(codes))
        own = self.pipe.unet, self.pipe.scheduler, self.vqvae.quantize
        return denoising_errors(*own, codes, generator, batch_size, labels)

    def code_bits(self, errors: torch.Tensor, num_positions: int) -> torch.Tensor:
        return bits_of_errors(errors, self.pipe.scheduler, self.vqvae.quantize, num_positions)

    def elbo_terms(
        self, pixels: torch.Tensor, generator: Generators, timesteps_per_image: int, batch_size: int
    ) -> torch.Tensor:
        own = self.vqvae, self.pipe.unet, self.pipe.scheduler
        labels = self._null_classes(len(pixels))
        return elbo_terms(*own, pixels, generator, timesteps_per_image, batch_size, labels)


class PixelCNNPriorOfCodes(EvaluatedPrior):
    """[`EvaluatedPrior`] of a [`PixelCNNVQPipeline`]."""

    def __init__(self, model: str, pipe: Any, config: EvaluationConfig):
        self.num_class_embeds = pipe.prior.config.num_class_embeds
        super().__init__(model, pipe, config)
        if config.guidance_scale not in (0, 1):
            raise ValueError(
                f"{model} is a PixelCNN, which has no guidance: `guidance_scale` is 0 or 1, not "
                f"{config.guidance_scale}."
            )

    def masked_bits(
        self, latents: torch.Tensor, codes: torch.Tensor, mask: torch.Tensor, generator: Generators
    ) -> dict[str, torch.Tensor]:
        return {"nll": pixelcnn_nll(self.pipe.prior, codes, mask)}

    def code_errors(self, codes: torch.Tensor, generator: Generators, batch_size: int) -> torch.Tensor:
        everything = torch.ones(codes.shape[1:], dtype=torch.bool)
        return torch.cat([pixelcnn_nll(self.pipe.prior, part, everything) for part in codes.split(batch_size)])

    def code_bits(self, errors: torch.Tensor, num_positions: int) -> torch.Tensor:
        return errors  # are bits already


def evaluated_prior(model: str, pipe: DiffusionPipeline, config: EvaluationConfig) -> EvaluatedPrior:
    """The prior of a pipeline of this package; arguments and errors as for [`EvaluatedPrior`]."""
    return (PixelCNNPriorOfCodes if "prior" in pipe.components else BridgePrior)(model, pipe, config)
