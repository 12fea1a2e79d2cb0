"""Drawing as blocks of diffusers' modular pipelines, so that its guiders and other blocks work with a bridge."""

from typing import Any

import torch
from diffusers import ClassifierFreeGuidance, UNet2DModel
from diffusers.configuration_utils import FrozenDict
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.image_processor import VaeImageProcessor
from diffusers.modular_pipelines import (
    ComponentSpec,
    InputParam,
    ModularPipelineBlocks,
    OutputParam,
    SequentialPipelineBlocks,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn

from ..models import GumbelVQModel, null_labels, refuse_image_condition
from ..models.network_sizes import count_classes, latent_sides
from ..sampling.arguments import check_guidance, check_latents
from ..sampling.chain import sample_latents
from ..schedulers import OUBridgeScheduler
from ..schedulers.few_steps import is_student
from .bridge import BridgePipeline, check_drawn
from .class_labels import count_images, read_class_labels

_NAME = "diffusion-bridge-vq"


class GuidedUNet(nn.Module):
    """
    A U-Net whose predictions a guider of diffusers combines: that for the given classes and that for the null class.

    Args:
        unet (`UNet2DModel`): with classes.
        guider (`BaseGuidance`): one whose only inputs are the predictions, such as `ClassifierFreeGuidance`.
        scheduler: of the call, with its timesteps when the first prediction is made.
    """

    def __init__(self, unet: UNet2DModel, guider: BaseGuidance, scheduler: SchedulerMixin):
        super().__init__()
        self.unet, self.guider, self.scheduler = unet, guider, scheduler
        self.config, self._step = unet.config, 0

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        """x_t (B, d, h, w), timestep, classes (B,) -> the guided prediction (B, d, h, w)."""
        # some solvers take more steps than were asked for, and a guider counts those that there are
        steps = len(self.scheduler.timesteps)
        self.guider.set_state(step=self._step, num_inference_steps=steps, timestep=timestep)
        self._step += 1
        null = null_labels(class_labels, self.config.num_class_embeds)
        batches = self.guider.prepare_inputs({"class_labels": (class_labels, null)})
        for batch in batches:
            self.guider.prepare_models(self.unet)
            batch.noise_pred = self.unet(sample, timestep, class_labels=batch.class_labels, return_dict=False)[0]
            self.guider.cleanup_models(self.unet)
        return self.guider(batches)[0]


class BridgeDenoiseStep(ModularPipelineBlocks):
    """Noise -> reverse bridge -> `latents`, with the guider for models of classes."""

    model_name = _NAME

    @property
    def description(self) -> str:
        return "Draws the latents z_0 with a diffusion bridge."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        guider = ComponentSpec(
            "guider",
            ClassifierFreeGuidance,
            config=FrozenDict({"guidance_scale": 1.0}),
            default_creation_method="from_config",
        )
        return [ComponentSpec("unet", UNet2DModel), ComponentSpec("scheduler", OUBridgeScheduler), guider]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("batch_size", type_hint=int, description="number of images; that of the labels, or 1"),
            InputParam("num_inference_steps", default=20, type_hint=int, description="network calls"),
            InputParam("generator", description="torch.Generator, or one per image"),
            InputParam("class_labels", description="numbers of classes, one per image or one for all"),
            InputParam("solver", type_hint=str, description="see `sample_latents`"),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("latents", type_hint=torch.Tensor, description="z_0 (B, d, h, w)")]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        block = self.get_block_state(state)
        unet, size = components.unet, components.unet.config.sample_size
        refuse_image_condition(unet, "these blocks don't take")
        if size is None:
            raise ValueError(
                "`sample_size` of the U-Net's config is None, but says here how large latents are: set it by "
                "`unet.register_to_config(sample_size=...)`."
            )
        batch_size = count_images(block.batch_size, block.class_labels)
        labels = read_class_labels(block.class_labels, batch_size, count_classes(unet), None, unet.device)
        guided = block.class_labels is not None
        if guided and is_student(components.scheduler):  # whose guidance is learned
            check_guidance(components.scheduler, getattr(components.guider, "guidance_scale", 1.0))
            guided = False
        block.latents = sample_latents(
            GuidedUNet(unet, components.guider, components.scheduler) if guided else unet,
            components.scheduler,
            (batch_size, unet.config.in_channels, *latent_sides(size)),
            block.num_inference_steps,
            generator=block.generator,
            device=unet.device,
            dtype=unet.dtype,
            class_labels=labels,
            solver=block.solver,
        )
        check_drawn(block.latents)
        self.set_block_state(state, block)
        return components, state


class BridgeDecodeStep(ModularPipelineBlocks):
    """`latents` -> nearest codes -> `images`."""

    model_name = _NAME

    @property
    def description(self) -> str:
        return "Takes the nearest codes of the latents and decodes them."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        processor = ComponentSpec(
            "image_processor",
            VaeImageProcessor,
            config=FrozenDict({"do_resize": False}),
            default_creation_method="from_config",
        )
        return [ComponentSpec("vqvae", GumbelVQModel), processor]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("latents", required=True, type_hint=torch.Tensor, description="z_0 (B, d, h, w)"),
            InputParam("output_type", default="pil", type_hint=str, description="pil, np, pt or latent"),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("images", description="of the output type")]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        block, vqvae = self.get_block_state(state), components.vqvae
        BridgePipeline._check_output_type(block.output_type)
        check_latents("latents", block.latents)
        if block.output_type == "latent":
            block.images = block.latents
        else:
            z_q = vqvae.decode_codes(vqvae.encode_codes(block.latents)).to(vqvae.dtype)
            pixels = vqvae.decode(z_q, force_not_quantize=True).sample.float()
            block.images = components.image_processor.postprocess(pixels, output_type=block.output_type)
        self.set_block_state(state, block)
        return components, state


class DiffusionBridgeVQBlocks(SequentialPipelineBlocks):
    r"""
    Both steps in a row.

    Example:

    ```py
    >>> pipe = DiffusionBridgeVQPipeline.from_pretrained("checkpoints/cifar10-small")
    >>> modular = DiffusionBridgeVQBlocks().init_pipeline()
    >>> modular.update_components(unet=pipe.unet, scheduler=pipe.scheduler, vqvae=pipe.vqvae)
    >>> modular.update_components(guider=ClassifierFreeGuidance(guidance_scale=2.5, stop=0.7))
    >>> images = modular(batch_size=8, class_labels=8, output="images")
    ```
    """

    model_name = _NAME
    block_classes = [BridgeDenoiseStep, BridgeDecodeStep]
    block_names = ["denoise", "decode"]

    @property
    def description(self) -> str:
        return "Draws images with a diffusion bridge VQ-VAE."
