"""Unconditional and class-conditional generation: noise -> reverse bridge -> codes -> pixels."""

from typing import Literal

import torch
from diffusers import ImagePipelineOutput
from diffusers.image_processor import PipelineImageInput

from ..sampling.chain import sample_latents
from ..sampling.steppers import Solver, Spacing
from .bridge import BridgePipeline, StepCallback, check_drawn
from .class_labels import ClassLabels, count_images, split_first_argument


class DiffusionBridgeVQPipeline(BridgePipeline):
    r"""
    Generate images with a diffusion bridge VQ-VAE (Cohen et al., ICML 2022): by default in 20 steps of
    DPM-Solver++(2M), and with `solver="ancestral"` by the paper's Algorithm 2.

    Example:

    ```py
    >>> from diffusion_bridge_vq import DiffusionBridgeVQPipeline

    >>> pipe = DiffusionBridgeVQPipeline.from_pretrained("outputs/demo/pipeline")
    >>> images = pipe(batch_size=16).images
    >>> images = pipe(["ship", "horse"]).images  # of a model with classes
    ```

    Args:
        vqvae ([`GumbelVQModel`]): the autoencoder.
        unet (`UNet2DModel`): the denoiser on latents (B, d, h, w); with `num_class_embeds` it is
            class-conditional, its last class being the null class of guidance.
        scheduler ([`OUBridgeScheduler`]): or a stock scheduler from `OUBridgeScheduler.to_diffusers`.
        id2label (`dict[int, str]`, *optional*): a name for each class, so that calls take names.
        default_guidance_scale (`float`, *optional*): of calls with classes; 1 without it.
        default_num_inference_steps (`int`, *optional*): of calls that generate; without it 20, or the fewest that a
            student takes.
        label_words (`bool`, *optional*): the classes are words. A label is then a text, such as "purple heart", and
            means all of its words.
        condition (`str`, *optional*): what the model draws from, so that calls take images: "gray" (colorization),
            "low-resolution:SIDE", or "column:NAME", other images of the same size.
        label_examples (`dict[int, str]`, *optional*): with `label_words`, a few labels that the model draws well, by
            number, for its page and its card.

    Raises:
        ValueError: the U-Net's channels don't fit the codebook, or names or defaults that don't fit the U-Net's
            classes or the scheduler.
    """

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | str | list[str] | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        latents: torch.Tensor | None = None,
        class_labels: ClassLabels = None,
        guidance_scale: float | None = None,
        solver: Solver | None = None,
        timestep_spacing: Spacing | None = None,
        sample_codes: bool = False,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
        condition: PipelineImageInput | None = None,
    ) -> ImagePipelineOutput | tuple:
        r"""
        Generate images.

        Args:
            batch_size (`int`, *optional*): number of images; defaults to the number of `class_labels` or conditions,
                or 1. A text or a list of texts is taken for `class_labels`: `pipe("ship")`.
            num_inference_steps (`int`, *optional*): network calls, 1 to `num_train_timesteps`; defaults to the
                pipeline's `default_num_inference_steps`, or 20.
            generator (`torch.Generator` or a list with one per image, *optional*): makes the images repeatable.
            output_type (`str`, *optional*, defaults to `"pil"`): "pil", "np" (B, H, W, C) in [0, 1], "pt" (B, C, H, W)
                in [0, 1], or "latent", which is z_0 (B, d, h, w) before quantization.
            return_dict (`bool`, *optional*, defaults to `True`): return an `ImagePipelineOutput` or a tuple.
            latents (`torch.Tensor`, *optional*): standard normal noise (B, d, h, w) to start from.
            class_labels (`torch.Tensor`, `list` of `int` or `str`, `int` or `str`, *optional*): numbers or names of
                classes (`pipe.id2label`), one per image or one for all. Without them no class is asked for. Where
                classes are words, any text of them.
            guidance_scale (`float`, *optional*): 1 is no guidance; larger follows the class more closely. With
                `class_labels` it defaults to the pipeline's `default_guidance_scale`, or 1.
            solver (`str`, *optional*): "dpmsolver++" (the default: DPM-Solver++(2M), made for about 20 steps), "ddim",
                or "ancestral", the paper's, which wants 50 to `num_train_timesteps` steps. A stock scheduler is a
                solver itself and takes none.
            timestep_spacing (`str`, *optional*): see [`sample_latents`].
            sample_codes (`bool`, *optional*, defaults to `False`): draw the codes from softmax(-||z_0 - e_k||^2) (last
                lines of Algorithm 2) instead of taking the nearest.
            callback_on_step_end (`Callable`, *optional*): called as callback(pipe, step, timestep, kwargs) after each
                step; `latents` in the dict it returns are used. They are what the scheduler works in: z_t with an
                [`OUBridgeScheduler`], `to_latents(pipe.scheduler, latents)` with a stock scheduler. After
                `pipe._interrupt = True` no step follows, and the images are of what is drawn so far.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*, defaults to `["latents"]`): names in that
                `kwargs`, from `_callback_tensor_inputs`.
            condition (`PIL.Image`, `np.ndarray`, `torch.Tensor` or a list of these, *optional*): what is drawn from,
                of a model that was trained for it (`pipe.config.condition`): one per image or one for all, of the size
                that it was trained with. PIL images become gray where that is wanted; numbers are uint8, or in
                [0, 1]. `guidance_scale` follows it more closely, together with `class_labels`.

        Returns:
            `ImagePipelineOutput` or `tuple`: `.images`.

        Raises:
            ValueError: a number outside its range, an unknown output type or callback input, labels for a network
                without classes, latents of another shape, `sample_codes` of latents, or a condition that is missing,
                of another size or number, or for a model without one.
        """
        batch_size, class_labels = split_first_argument(batch_size, class_labels)
        given = self._read_condition(condition)
        batch_size = count_images(batch_size, class_labels, 1 if given is None else len(given))
        if num_inference_steps is None:
            num_inference_steps = self.config.get("default_num_inference_steps", 20)
        self._check_call(batch_size, generator, output_type, callback_on_step_end_tensor_inputs)
        if sample_codes and output_type == "latent":
            raise ValueError("`output_type` 'latent' is z_0, before any code is drawn: leave out `sample_codes`.")
        device = self._execution_device
        labels, guidance_scale = self._read_classes(class_labels, guidance_scale, batch_size)
        height, width = self._latent_size()
        z_0 = sample_latents(
            self._show(given, batch_size),
            self.scheduler,
            (batch_size, self.unet.config.out_channels, height, width),
            num_inference_steps,
            generator=generator,
            device=device,
            dtype=self.unet.dtype,
            latents=latents,
            class_labels=labels,
            guidance_scale=guidance_scale,
            solver=solver,
            timestep_spacing=timestep_spacing,
            callback=self._step_callback(callback_on_step_end, callback_on_step_end_tensor_inputs),
            progress_bar=self._steps,
        )
        check_drawn(z_0)
        codes = self.vqvae.sample_codes(z_0, generator) if sample_codes else None
        images = self.decode_latents(z_0, output_type, codes)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
