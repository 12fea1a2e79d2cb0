"""What the pipelines share: components, checks of the call, decoding."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..models import GumbelVQModel, check_channels
from ..sampling import Callback

StepCallback = Callable[[Any, int, torch.Tensor, dict], dict | None]
"""As everywhere in diffusers: callback(pipe, step, timestep, kwargs); `latents` in the dict it returns are used."""


class VQPipeline(DiffusionPipeline):
    """Base of all pipelines: what they draw are codes of `vqvae` in the end."""

    vqvae: GumbelVQModel

    def __init__(self) -> None:
        super().__init__()
        self.image_processor = VaeImageProcessor(do_resize=False)

    def _decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, h, w) -> pixels (B, C, H, W), about [-1, 1], float32."""
        z_q = self.vqvae.decode_codes(codes).to(self.vqvae.dtype)
        return self.vqvae.decode(z_q, force_not_quantize=True).sample.float()

    @staticmethod
    def _check_output(
        num_images: int, generator: torch.Generator | list[torch.Generator] | None, output_type: str
    ) -> None:
        if isinstance(generator, list) and len(generator) != num_images:
            raise ValueError(
                f"Got {len(generator)} generators for a batch of {num_images}; give one per image or one."
            )
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"`output_type` must be pil, np, pt or latent, got {output_type!r}.")

    @staticmethod
    def _read_class_labels(
        class_labels: torch.Tensor | list[int] | int | None,
        num_embeds: int | None,
        batch_size: int,
        device: torch.device,
    ) -> torch.Tensor | None:
        """One label per image, the null class (the last of `num_embeds`) if none is given; None without classes."""
        if num_embeds is None:
            if class_labels is not None:
                raise ValueError("This model has no classes: leave out `class_labels`.")
            return None
        if class_labels is None:
            return torch.full((batch_size,), num_embeds - 1, device=device)
        labels = torch.as_tensor(class_labels).reshape(-1)
        labels = labels.expand(batch_size) if len(labels) == 1 else labels
        if len(labels) != batch_size or labels.is_floating_point():
            raise ValueError(
                f"`class_labels` must be {batch_size} integers or one, got {len(labels)} of type {labels.dtype}."
            )
        if int(labels.min()) < 0 or int(labels.max()) > num_embeds - 2:
            raise ValueError(f"`class_labels` must lie in 0..{num_embeds - 2}, got {labels.tolist()}.")
        return labels.to(device, torch.long)


class BridgePipeline(VQPipeline):
    """
    Base of the pipelines of a diffusion bridge; its subclasses differ in `__call__` alone, so that one saved folder
    serves them all. Components and errors are those of [`DiffusionBridgeVQPipeline`].
    """

    model_cpu_offload_seq = "unet->vqvae"
    _callback_tensor_inputs = ["latents"]

    def __init__(self, vqvae: GumbelVQModel, unet: UNet2DModel, scheduler: SchedulerMixin):
        super().__init__()
        check_channels(unet, vqvae)
        self.register_modules(vqvae=vqvae, unet=unet, scheduler=scheduler)

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the last call (some solvers take more than were asked for)."""
        return len(self.scheduler.timesteps)

    @torch.no_grad()
    def decode_latents(
        self, latents: torch.Tensor, output_type: str = "pil", codes: torch.Tensor | None = None
    ) -> Any:
        """
        z_0 (B, d, h, w) -> nearest codes, or the given ones (B, h, w) -> images; `output_type` as in the call.
        """
        if output_type == "latent":
            return latents
        return self.image_processor.postprocess(self._decode(latents, codes), output_type=output_type)

    def _decode(self, latents: torch.Tensor, codes: torch.Tensor | None = None) -> torch.Tensor:
        """z_0 -> nearest codes -> pixels (B, C, H, W), about [-1, 1], float32."""
        return self._decode_codes(self.vqvae.encode_codes(latents) if codes is None else codes)

    def _step_callback(self, callback: StepCallback | None, tensor_inputs: list[str]) -> Callback | None:
        """The user's callback in the form that the sampling loop calls."""
        if callback is None:
            return None

        def on_step(step: int, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor | None:
            returned = callback(self, step, timestep, dict.fromkeys(tensor_inputs, latents))
            return returned.get("latents") if returned else None

        return on_step

    def _check_call(
        self,
        num_images: int,
        generator: torch.Generator | list[torch.Generator] | None,
        output_type: str,
        tensor_inputs: list[str],
    ) -> None:
        self._check_output(num_images, generator, output_type)
        unknown = set(tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` may have {self._callback_tensor_inputs}, got {sorted(unknown)}."
            )

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
        if guidance_scale != 1.0 and num_embeds is None:
            raise ValueError("This model has no classes: leave out `guidance_scale`.")
        if guidance_scale != 1.0 and class_labels is None:
            raise ValueError(f"`guidance_scale` needs `class_labels` in 0..{num_embeds - 2}.")
        return self._read_class_labels(class_labels, num_embeds, batch_size, device)
