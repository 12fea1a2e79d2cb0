"""Unconditional and class-conditional generation: noise -> reverse bridge -> codes -> pixels."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..models import GumbelVQModel, check_channels
from ..sampling import sample_latents


class DiffusionBridgeVQPipeline(DiffusionPipeline):
    r"""
    Generate images with a diffusion bridge VQ-VAE (Algorithm 2 of Cohen et al., ICML 2022).

    Example:

    ```py
    >>> from diffusion_bridge_vq import DiffusionBridgeVQPipeline

    >>> pipe = DiffusionBridgeVQPipeline.from_pretrained("outputs/demo/pipeline")
    >>> images = pipe(batch_size=16).images
    ```

    Args:
        vqvae ([`GumbelVQModel`]): the autoencoder.
        unet (`UNet2DModel`): the eps-network on latents (B, d, h, w); with `num_class_embeds` it is
            class-conditional, its last class being the null class of guidance.
        scheduler ([`OUBridgeScheduler`]): or a stock scheduler from `OUBridgeScheduler.to_diffusers`.

    Raises:
        ValueError: the U-Net's channels don't fit the codebook.
    """

    model_cpu_offload_seq = "unet->vqvae"
    _callback_tensor_inputs = ["latents"]

    def __init__(self, vqvae: GumbelVQModel, unet: UNet2DModel, scheduler: SchedulerMixin):
        super().__init__()
        check_channels(unet, vqvae)
        self.register_modules(vqvae=vqvae, unet=unet, scheduler=scheduler)
        self.image_processor = VaeImageProcessor(do_resize=False)

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the last call (some solvers take more than were asked for)."""
        return len(self.scheduler.timesteps)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        latents: torch.Tensor | None = None,
        class_labels: torch.Tensor | list[int] | int | None = None,
        guidance_scale: float = 1.0,
        sample_codes: bool = False,
        callback_on_step_end: Callable[["DiffusionBridgeVQPipeline", int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
    ) -> ImagePipelineOutput | tuple:
        r"""
        Generate images.

        Args:
            batch_size (`int`): number of images.
            num_inference_steps (`int`): network calls, 1 to `num_train_timesteps`.
            generator (`torch.Generator` or a list with one per image, *optional*): makes the images repeatable.
            output_type (`str`): "pil", "np" (B, H, W, C) in [0, 1], "pt" (B, C, H, W) in [0, 1], or "latent", which is
                z_0 (B, d, h, w) before quantization.
            return_dict (`bool`): return an `ImagePipelineOutput` or a tuple.
            latents (`torch.Tensor`, *optional*): standard normal noise (B, d, h, w) to start from.
            class_labels (`torch.Tensor`, `list[int]` or `int`, *optional*): one class per image, or one for all.
            guidance_scale (`float`): 1 is no guidance; larger follows the class more closely.
            sample_codes (`bool`): draw the codes from softmax(-||z_0 - e_k||^2) (last lines of Algorithm 2) instead of
                taking the nearest.
            callback_on_step_end (`Callable`, *optional*): called as callback(pipe, step, timestep, kwargs) after each
                step; `latents` in the dict it returns are used.
            callback_on_step_end_tensor_inputs (`list[str]`): names in that `kwargs`, from `_callback_tensor_inputs`.

        Returns:
            `ImagePipelineOutput` or `tuple`: `.images`.

        Raises:
            ValueError: a number outside its range, an unknown output type or callback input, labels for a network
                without classes (or none for one with), latents of another shape.
        """
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"Got {len(generator)} generators for a batch of {batch_size}; give one per image or one."
            )
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"`output_type` must be pil, np, pt or latent, got {output_type!r}.")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` may have {self._callback_tensor_inputs}, got {sorted(unknown)}."
            )
        device = self._execution_device
        labels = self._check_class_labels(class_labels, guidance_scale, batch_size, device)
        height, width = self._latent_size()
        dtype = self.unet.dtype

        def callback(step: int, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor | None:
            inputs = dict.fromkeys(callback_on_step_end_tensor_inputs, latents)
            returned = callback_on_step_end(self, step, timestep, inputs)  # type: ignore[misc]
            return returned.get("latents") if returned else None

        z_0 = sample_latents(
            self.unet,
            self.scheduler,
            (batch_size, self.unet.config.in_channels, height, width),
            num_inference_steps,
            generator=generator,
            device=device,
            dtype=dtype,
            latents=latents,
            class_labels=labels,
            guidance_scale=guidance_scale,
            callback=callback if callback_on_step_end is not None else None,
            progress_bar=self.progress_bar,
        )
        if output_type == "latent":
            images: Any = z_0
        else:
            codes = self._sample_codes(z_0, generator) if sample_codes else self.vqvae.encode_codes(z_0)
            z_q = self.vqvae.decode_codes(codes).to(self.vqvae.dtype)
            decoded = self.vqvae.decode(z_q, force_not_quantize=True).sample
            images = self.image_processor.postprocess(decoded.float(), output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _sample_codes(
        self, z_0: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None
    ) -> torch.Tensor:
        if isinstance(generator, list):
            return torch.cat([self.vqvae.sample_codes(z[None], g) for z, g in zip(z_0, generator, strict=True)])
        return self.vqvae.sample_codes(z_0, generator)

    def _latent_size(self) -> tuple[int, int]:
        size = self.unet.config.sample_size
        if size is None:
            size = self.vqvae.config.sample_size // self.vqvae.downsampling_factor
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def _check_class_labels(
        self,
        class_labels: torch.Tensor | list[int] | int | None,
        guidance_scale: float,
        batch_size: int,
        device: torch.device,
    ) -> torch.Tensor | None:
        num_embeds = self.unet.config.num_class_embeds
        if num_embeds is None:
            if class_labels is not None or guidance_scale != 1.0:
                raise ValueError("This model has no classes: leave out `class_labels` and `guidance_scale`.")
            return None
        if class_labels is None:
            if guidance_scale != 1.0:
                raise ValueError(f"`guidance_scale` needs `class_labels` in 0..{num_embeds - 2}.")
            return torch.full((batch_size,), num_embeds - 1, device=device)  # the null class
        labels = torch.as_tensor(class_labels).reshape(-1)
        labels = labels.expand(batch_size) if len(labels) == 1 else labels
        if len(labels) != batch_size or labels.is_floating_point():
            raise ValueError(
                f"`class_labels` must be {batch_size} integers or one, got {len(labels)} of type {labels.dtype}."
            )
        if int(labels.min()) < 0 or int(labels.max()) > num_embeds - 2:
            raise ValueError(f"`class_labels` must lie in 0..{num_embeds - 2}, got {labels.tolist()}.")
        return labels.to(device, torch.long)
