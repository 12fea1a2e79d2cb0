"""What metrics ask of a prior, answered by each kind of pipeline."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from ..data import ImageCondition
from ..data.pixels import to_pixels
from ..models import ConditionedUNet, bridge_start_latents, condition_map
from ..models.conditions import split_words
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
        image_condition ([`ImageCondition`], *optional*): what it draws from. Methods with `conditions` then need them,
            uint8 (n, C, s, s), one for each image.

    Raises:
        ValueError: a guidance scale for a model without classes and images to draw from; more steps than noise
            levels, where steps matter.
    """

    abilities = frozenset({"samples", "masked_bits", "code_bits"})
    image_condition: ImageCondition | None = None
    num_class_embeds: int | None  # the last of them is the null class

    def __init__(self, model: str, pipe: Any, config: EvaluationConfig):
        self.pipe, self.vqvae, self.config = pipe, pipe.vqvae.eval(), config
        self.model = model
        self._call: dict[str, Any] = {}
        if config.guidance_scale and not self._is_guided:
            raise ValueError(f"{model} has no classes: leave out `guidance_scale`.")
        if config.guidance_scale and self._takes_words and self.image_condition is None:
            raise ValueError(
                f"{model} draws from words, and with `guidance_scale` a sample would show one word: leave it out, to "
                "draw without words. benchmarks/study_words.py draws the labels of a test split."
            )
        pipe.set_progress_bar_config(disable=True)

    @property
    def drawing_facts(self) -> dict[str, Any]:
        """The settings that draws without classes depend on."""
        return {}

    @property
    def sampling_facts(self) -> dict[str, Any]:
        """The settings that samples depend on."""
        return self.drawing_facts | ({"guidance_scale": self.config.guidance_scale} if self._is_guided else {})

    @property
    def _is_guided(self) -> bool:
        """Whether it has classes or images that guidance can follow."""
        return self.num_class_embeds is not None or self.image_condition is not None

    @property
    def draws_classes(self) -> bool:
        """Whether samples are drawn for classes."""
        return self.num_class_embeds is not None and bool(self.config.guidance_scale)

    @property
    def num_classes(self) -> int:
        """Without the null class; 0 for a model without classes."""
        return (self.num_class_embeds or 1) - 1

    @property
    def class_names(self) -> list[str] | None:
        """In the order of the model's classes; None if they weren't saved."""
        names = self.pipe.id2label
        return None if names is None else [names[number] for number in range(self.num_classes)]

    def unknown_classes(self, names: Sequence[str]) -> list[str]:
        """Those of these names that it can't draw; none if its own weren't saved."""
        known = set(self.class_names or names)
        if self._takes_words:
            return [name for name in names if not split_words(name) or set(split_words(name)) - known]
        return [name for name in names if name not in known]

    @property
    def _takes_words(self) -> bool:
        return bool(self.pipe.config.get("label_words"))

    def draw_codes(
        self,
        generators: list[torch.Generator],
        labels: list[int | str] | None,
        conditions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Codes of one sample for each generator, (n, h, w)."""
        call = self._call | ({} if labels is None else {"class_labels": labels})
        call |= self._guidance(labels is not None, conditions)
        latents = self.pipe(len(generators), generator=generators, output_type="latent", **call).images
        return self.vqvae.encode_codes(latents)

    def draw_images(self, count: int) -> None:
        """Draw a batch and decode it, to be timed."""
        self.pipe(batch_size=count, output_type="pt", **self._call)

    def masked_bits(
        self,
        latents: torch.Tensor,
        codes: torch.Tensor,
        mask: torch.Tensor,
        generator: Generators,
        conditions: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Bits per masked code of each image, (n,) by the figure's name."""
        raise NotImplementedError

    def masked_facts(self) -> dict[str, Any]:
        """The settings that [`masked_bits`] depends on."""
        return {}

    def code_errors(
        self, codes: torch.Tensor, generator: Generators, conditions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What [`code_bits`] needs of each map (n, h, w), (n, ...) on the CPU."""
        raise NotImplementedError

    def code_bits(self, errors: torch.Tensor, num_positions: int) -> torch.Tensor:
        """Bits per code of each map, (n,), from what [`code_errors`] found of all."""
        raise NotImplementedError

    def elbo_terms(
        self,
        pixels: torch.Tensor,
        generator: Generators,
        timesteps_per_image: int,
        conditions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Terms of -ELBO of images (n, C, H, W) in [-1, 1], see [`elbo_terms`]."""
        raise NotImplementedError

    def _guidance(self, has_labels: bool, conditions: torch.Tensor | None) -> dict[str, Any]:
        """Arguments of the call for samples: what is drawn from, and how closely it is followed."""
        return {}

    def _null_classes(self, count: int) -> torch.Tensor | None:
        """What the pipelines take without labels."""
        if self.num_class_embeds is None:
            return None
        return torch.full((count,), self.num_class_embeds - 1, device=self.vqvae.device)


class BridgePrior(EvaluatedPrior):
    """[`EvaluatedPrior`] of a [`DiffusionBridgeVQPipeline`]."""

    def __init__(self, model: str, pipe: Any, config: EvaluationConfig):
        self.num_class_embeds, self.image_condition = pipe.unet.config.num_class_embeds, pipe.image_condition
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

    def _guidance(self, has_labels: bool, conditions: torch.Tensor | None) -> dict[str, Any]:
        if conditions is not None:  # without a scale the pipeline takes its own
            return {"condition": conditions, "guidance_scale": self.config.guidance_scale or 1.0}
        return {"guidance_scale": self.config.guidance_scale} if has_labels else {}

    def draw_images(self, count: int) -> None:
        call, wanted = dict(self._call), self.image_condition
        if wanted is not None:
            black = torch.zeros(1, wanted.channels, wanted.side, wanted.side)
            call |= {"condition": black, "guidance_scale": 1.0}
        self.pipe(batch_size=count, output_type="pt", **call)

    def _network(self, conditions: torch.Tensor | None, latent_side: int) -> nn.Module:
        """The U-Net, with what it is given."""
        unet = self.pipe.unet
        if conditions is None:
            return unet
        given = condition_map(to_pixels(conditions), latent_side)
        return ConditionedUNet(unet, given.to(unet.device, unet.dtype))

    def masked_facts(self) -> dict[str, Any]:
        facts = {"draws": self.config.num_nll_samples, "jump_n_sample": 1} | self.drawing_facts
        return facts | ({"solver": "ancestral"} if "solver" in facts else {})

    def masked_bits(
        self,
        latents: torch.Tensor,
        codes: torch.Tensor,
        mask: torch.Tensor,
        generator: Generators,
        conditions: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        found = bridge_nll(
            self._network(conditions, latents.shape[-1]),
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

    def code_errors(
        self, codes: torch.Tensor, generator: Generators, conditions: torch.Tensor | None = None
    ) -> torch.Tensor:
        labels = self._null_classes(len(codes))
        own = self._network(conditions, codes.shape[-1]), self.pipe.scheduler, self.vqvae.quantize
        return denoising_errors(*own, codes, generator, len(codes), labels)

    def code_bits(self, errors: torch.Tensor, num_positions: int) -> torch.Tensor:
        return bits_of_errors(errors, self.pipe.scheduler, self.vqvae.quantize, num_positions)

    def elbo_terms(
        self,
        pixels: torch.Tensor,
        generator: Generators,
        timesteps_per_image: int,
        conditions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        latent_side = pixels.shape[-1] // self.vqvae.downsampling_factor
        own = self.vqvae, self._network(conditions, latent_side), self.pipe.scheduler
        labels = self._null_classes(len(pixels))
        return elbo_terms(*own, pixels, generator, timesteps_per_image, len(pixels), labels)


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
        self,
        latents: torch.Tensor,
        codes: torch.Tensor,
        mask: torch.Tensor,
        generator: Generators,
        conditions: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        return {"nll": pixelcnn_nll(self.pipe.prior, codes, mask)}

    def code_errors(
        self, codes: torch.Tensor, generator: Generators, conditions: torch.Tensor | None = None
    ) -> torch.Tensor:
        return pixelcnn_nll(self.pipe.prior, codes, torch.ones(codes.shape[1:], dtype=torch.bool))

    def code_bits(self, errors: torch.Tensor, num_positions: int) -> torch.Tensor:
        return errors  # are bits already


def evaluated_prior(model: str, pipe: DiffusionPipeline, config: EvaluationConfig) -> EvaluatedPrior:
    """The prior of a pipeline of this package; arguments and errors as for [`EvaluatedPrior`]."""
    return (PixelCNNPriorOfCodes if "prior" in pipe.components else BridgePrior)(model, pipe, config)
