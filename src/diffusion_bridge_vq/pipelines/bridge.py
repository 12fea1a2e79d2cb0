"""What the pipelines of a diffusion bridge share: components, checks of the call, callbacks, compiling."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.image_processor import PipelineImageInput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn

from ..data.conditions import ImageCondition
from ..models import (
    ConditionedUNet,
    GumbelVQModel,
    check_channels,
    condition_map,
    count_condition_channels,
    take_several_classes,
)
from ..models.code_unet import check_process
from ..models.network_sizes import count_classes, latent_sides
from ..sampling.arguments import check_count, check_guidance, check_latents
from ..sampling.chain import Callback, sample_latents
from ..schedulers.few_steps import default_number_of_steps, is_student
from .base import VQPipeline, logger
from .class_labels import (
    ClassLabels,
    check_default_guidance_scale,
    check_id2label,
    check_label_examples,
    read_class_labels,
    read_words,
)
from .image_inputs import read_images

StepCallback = Callable[[Any, int, torch.Tensor, dict], dict | None]
"""As everywhere in diffusers: callback(pipe, step, timestep, kwargs); `latents` in the dict it returns are used."""


class BridgePipeline(VQPipeline):
    """
    Base of the pipelines of a diffusion bridge; its subclasses differ in `__call__` alone, so that one saved folder
    serves them all. Components and errors are those of [`DiffusionBridgeVQPipeline`].
    """

    model_cpu_offload_seq = "unet->vqvae"
    _callback_tensor_inputs = ["latents"]
    _interrupt = False

    def __init__(
        self,
        vqvae: GumbelVQModel,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        id2label: dict[int, str] | None = None,
        default_guidance_scale: float | None = None,
        default_num_inference_steps: int | None = None,
        label_words: bool | None = None,
        condition: str | None = None,
        label_examples: dict[int, str] | None = None,
    ):
        check_channels(unet, vqvae, _count_condition_channels(_parse_condition(condition, vqvae), unet, vqvae))
        check_process(unet, vqvae, scheduler)
        num_classes = count_classes(unet)
        check_default_guidance_scale(default_guidance_scale, num_classes, condition)
        if is_student(scheduler) and default_num_inference_steps is None:
            default_num_inference_steps = default_number_of_steps(scheduler, 0)
        if default_num_inference_steps is not None:
            most = scheduler.config.num_train_timesteps
            check_count("default_num_inference_steps", default_num_inference_steps, most)
        if label_words is not None and not isinstance(label_words, bool):
            raise ValueError(f"`label_words` must be True, False or None, got {label_words!r}.")
        if label_words and id2label is None:
            raise ValueError("`label_words` needs `id2label`, the words by their numbers.")
        super().__init__(
            id2label=check_id2label(id2label, num_classes),
            default_guidance_scale=default_guidance_scale,
            default_num_inference_steps=default_num_inference_steps,
            label_words=label_words or None,
            condition=condition,
            label_examples=check_label_examples(label_examples, id2label if label_words else None),
        )
        if label_words:
            take_several_classes(unet)
        self.register_modules(vqvae=vqvae, unet=unet, scheduler=scheduler)

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the last call (some solvers take more than were asked for)."""
        return len(self.scheduler.timesteps)

    @property
    def label_examples(self) -> list[str]:
        """Labels that show what a model of words can draw; none of another model, or if none were saved."""
        return list((self.config.get("label_examples") or {}).values())

    @property
    def image_condition(self) -> ImageCondition | None:
        """What the model draws from: its size and channels, and how it is made of images; None if from nothing."""
        return _parse_condition(self.config.get("condition"), self.vqvae)

    @property
    def interrupt(self) -> bool:
        """Whether the last call was stopped, by a callback that set `_interrupt`."""
        return self._interrupt

    @torch.no_grad()
    def decode_latents(
        self, latents: torch.Tensor, output_type: str = "pil", codes: torch.Tensor | None = None
    ) -> Any:
        """
        z_0 (B, d, h, w) -> nearest codes, or the given ones (B, h, w) -> images; `output_type` as in the call.
        """
        self._check_output_type(output_type)
        check_latents("latents", latents)
        if output_type == "latent":
            return latents
        return self.image_processor.postprocess(self._decode(latents, codes), output_type=output_type)

    def _decode(self, latents: torch.Tensor, codes: torch.Tensor | None = None) -> torch.Tensor:
        """z_0 -> nearest codes -> pixels (B, C, H, W), about [-1, 1], float32."""
        return self._decode_codes(self.vqvae.encode_codes(latents) if codes is None else codes)

    @torch.no_grad()
    def compile(self, batch_size: int = 1, **kwargs: Any) -> None:
        r"""
        Make calls with `batch_size` images faster: U-Net and decoder are compiled (`torch.compile`, static shapes) in
        channels-last layout, and run once, which takes from seconds to minutes. On CUDA the U-Net is replayed as a
        graph. Images differ by rounding only. For bfloat16 call `pipe.to(torch.bfloat16)` before.

        If compiling fails, for example without a compiler, the pipeline stays as it was and a warning says why.

        Example:

        ```py
        >>> pipe = DiffusionBridgeVQPipeline.from_pretrained("outputs/demo/pipeline").to("cuda", torch.bfloat16)
        >>> pipe.compile(batch_size=32)
        >>> images = pipe(batch_size=32).images
        ```

        Args:
            batch_size (`int`, *optional*, defaults to 1): images per call; another number compiles again when it is
                met. Guidance doubles it.
            **kwargs: of `torch.compile`, e.g. `mode="max-autotune"`.

        Raises:
            TypeError, RuntimeError: what `torch.compile` raises for arguments that it doesn't take.
            ValueError: a batch size that isn't a whole number of at least 1.
        """
        check_count("batch_size", batch_size)
        # the decoder's results may be kept from call to call, which a replayed graph would overwrite; the sampling
        # loop copies what the U-Net returns
        replay = {"mode": "reduce-overhead"} if self.unet.device.type == "cuda" and not kwargs else {}
        modules: tuple[tuple[nn.Module, dict[str, Any]], ...] = ((self.unet, replay), (self.vqvae.decoder, {}))
        shape = (batch_size, self.unet.config.out_channels, *self._latent_size())
        word = next(iter(self.id2label.values())) if self.config.get("label_words") and self.id2label else None
        labels, _ = self._read_classes(word, 1.0, batch_size)
        levels = self.scheduler.config.num_train_timesteps
        wanted = self.image_condition
        given = None if wanted is None else torch.zeros(1, wanted.channels, wanted.side, wanted.side)
        unet = self._show(given, batch_size)
        for module, own in modules:
            module.compile(**{"dynamic": False} | own | kwargs)  # at the first call; here wrong arguments fail
        try:
            for module, _ in modules:
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            z_0 = sample_latents(
                unet,
                self.scheduler,
                shape,
                # a graph is recorded after the first calls
                num_inference_steps=default_number_of_steps(self.scheduler, min(3, levels)),
                generator=torch.Generator(self.unet.device),
                device=self.unet.device,
                dtype=self.unet.dtype,
                class_labels=labels,
            )
            self._decode(z_0)
        except Exception as error:  # compilers raise all sorts
            for module, _ in modules:
                module._compiled_call_impl = None
                module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            reason = " ".join(str(error).split("\n")[:2])
            logger.warning(f"{type(self).__name__} isn't compiled and goes on as it was: {reason}")

    def _steps(self, steps: Iterable[int]) -> Iterator[int]:
        """`steps` with a progress bar, until a callback sets `_interrupt`."""
        self._interrupt = False
        for step in self.progress_bar(steps):
            if self._interrupt:
                return
            yield step

    def _step_callback(self, callback: StepCallback | None, tensor_inputs: list[str]) -> Callback | None:
        """The user's callback in the form that the sampling loop calls."""
        if callback is None:
            return None
        if not callable(callback):
            raise TypeError(
                "`callback_on_step_end` must be a function of (pipe, step, timestep, kwargs), got "
                f"{type(callback).__name__}."
            )

        def on_step(step: int, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor | None:
            returned = callback(self, step, timestep, dict.fromkeys(tensor_inputs, latents))
            if returned is not None and not isinstance(returned, dict):
                raise TypeError(
                    "`callback_on_step_end` must return a dict, such as {'latents': latents}, or None, got "
                    f"{type(returned).__name__}."
                )
            ignored = sorted(map(str, set(returned or {}) - set(self._callback_tensor_inputs)))
            if ignored:
                raise ValueError(
                    f"`callback_on_step_end` returned {', '.join(ignored)}, which is not used here; return a dict "
                    f"with names from {self._callback_tensor_inputs}."
                )
            return returned.get("latents") if returned else None

        return on_step

    def _check_call(
        self,
        num_images: int,
        generator: torch.Generator | list[torch.Generator] | None,
        output_type: str,
        tensor_inputs: list[str],
    ) -> None:
        check_process(self.unet, self.vqvae, self.scheduler)  # which may be another than at first
        self._check_output(num_images, generator, output_type)
        known = self._callback_tensor_inputs
        if not isinstance(tensor_inputs, (list, tuple)) or any(name not in known for name in tensor_inputs):
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be a list with names from {known}, got {tensor_inputs!r}."
            )

    def _latent_size(self) -> tuple[int, int]:
        return _latent_size(self.unet, self.vqvae)

    def _read_condition(self, condition: PipelineImageInput | None) -> torch.Tensor | None:
        """
        The images that a call draws from, (n, C, s, s) in [-1, 1]; None for a model that draws from none.

        Raises:
            ValueError: images for such a model, none for another, or images of another size.
        """
        wanted = self.image_condition
        if wanted is None:
            if condition is not None:
                raise ValueError("This model doesn't draw from images: leave out `condition`.")
            return None
        if condition is None:
            raise ValueError(
                f"This model draws from images ({wanted.name}): give them as `condition`, {wanted.side} x "
                f"{wanted.side} with {wanted.channels} channel(s)."
            )
        return read_images(condition, "condition", wanted.channels, wanted.side, wanted.side) * 2 - 1

    def _show(self, condition: torch.Tensor | None, num_images: int, copies: int = 1) -> nn.Module:
        """
        The U-Net, with what [`_read_condition`] gives for `num_images`, `copies` times each.

        Raises:
            ValueError: as many as fit neither the images nor one for all.
        """
        if condition is None:
            return self.unet
        if len(condition) not in (1, num_images):
            raise ValueError(f"Got {len(condition)} conditions for {num_images} images; give one per image or one.")
        shown = condition_map(condition.expand(num_images, -1, -1, -1), self._latent_size()[0])
        shown = shown.repeat_interleave(copies, dim=0).to(self._execution_device, self.unet.dtype)
        return ConditionedUNet(self.unet, shown)

    def _read_classes(
        self, class_labels: ClassLabels, guidance_scale: float | None, num_images: int
    ) -> tuple[torch.Tensor | None, float]:
        """Labels and guidance scale of a call."""
        num_classes, guided = self._num_classes(), class_labels is not None or "condition" in self.config
        if guidance_scale is None:
            guidance_scale = self.config.get("default_guidance_scale", 1.0) if guided else 1.0
        guidance_scale = check_guidance(self.scheduler, guidance_scale)
        if guidance_scale != 1.0 and num_classes is None and not guided:
            raise ValueError("This model has no classes: leave out `guidance_scale`.")
        if guidance_scale != 1.0 and not guided and num_classes is not None:
            raise ValueError(f"`guidance_scale` needs `class_labels` in 0..{num_classes - 1}.")
        device = self._execution_device
        if self.config.get("label_words") and class_labels is not None:
            words = read_words(class_labels, num_images, self.id2label)
            return None if words is None else words.to(device, self.unet.dtype), float(guidance_scale)
        return read_class_labels(class_labels, num_images, num_classes, self.id2label, device), float(guidance_scale)

    def _num_classes(self) -> int | None:
        return count_classes(self.unet)


def check_drawn(latents: torch.Tensor) -> None:
    """
    NaN has a nearest code like any number, and would be drawn as an image.

    Raises:
        ValueError: latents from sampling that are NaN or infinite.
    """
    if not bool(latents.isfinite().all()):
        raise ValueError(
            "Sampling gave latents that are NaN or infinite: look for NaN in the weights, take a smaller "
            "`guidance_scale`, or sample in bfloat16 or float32 instead of float16."
        )


def _latent_size(unet: UNet2DModel, vqvae: GumbelVQModel) -> tuple[int, int]:
    size = unet.config.sample_size
    if size is None:
        size = vqvae.config.sample_size // vqvae.downsampling_factor
    return latent_sides(size)


def _parse_condition(name: str | None, vqvae: GumbelVQModel) -> ImageCondition | None:
    """What a model draws from, by the name that is saved with it."""
    return None if name is None else ImageCondition.parse(name, vqvae.config.in_channels, vqvae.config.sample_size)


def _count_condition_channels(condition: ImageCondition | None, unet: UNet2DModel, vqvae: GumbelVQModel) -> int:
    if condition is None:
        return 0
    height, width = _latent_size(unet, vqvae)
    if height != width:
        raise ValueError(f"`condition` needs square latents, got {height} x {width}.")
    return count_condition_channels(condition.channels, condition.side, height)
