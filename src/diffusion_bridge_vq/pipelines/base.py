"""What the pipelines share: loading, components, checks of the call, decoding."""

import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import diffusers
import torch
from diffusers import DiffusionPipeline, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging
from torch import nn

from ..models import CodeUNet2DModel, GumbelVQModel, PixelCNNPrior, check_channels
from ..pretrained import INDEX_NAME, fetch_pipeline, has_variant, load_component, read_json
from ..sampling.chain import Callback, sample_latents
from ..schedulers import OUBridgeScheduler

COMPONENTS: dict[str, Any] = {
    "vqvae": GumbelVQModel,
    "unet": UNet2DModel,
    "prior": PixelCNNPrior,
    "scheduler": OUBridgeScheduler,  # or one of its `_compatibles` in diffusers
}
# Classes that may stand in the place of a component.
ALTERNATIVES: dict[str, Any] = {"unet": CodeUNet2DModel}
_HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only")
_MODEL_OPTIONS = ("device_map", "disable_mmap", "low_cpu_mem_usage", "use_safetensors")

logger = logging.get_logger(DiffusionPipeline.__module__)  # the stock loader's

StepCallback = Callable[[Any, int, torch.Tensor, dict], dict | None]
"""As everywhere in diffusers: callback(pipe, step, timestep, kwargs); `latents` in the dict it returns are used."""


class VQPipeline(DiffusionPipeline):
    """Base of all pipelines: what they draw are codes of `vqvae` in the end."""

    vqvae: GumbelVQModel

    def __init__(self) -> None:
        super().__init__()
        self.image_processor = VaeImageProcessor(do_resize=False)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        r"""
        Load a saved pipeline from a folder or from the Hub. Code that a repository carries is never run: components
        are this package's classes and diffusers', built from JSON and safetensors.

        Example:

        ```py
        >>> pipe = DiffusionBridgeVQPipeline.from_pretrained("user/model", revision="v1.0", torch_dtype=torch.bfloat16)
        ```

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): a folder, or "user/model".
            torch_dtype or dtype (`torch.dtype` or a dict from component, or "default", to one, *optional*).
            variant (`str`, *optional*): of the weights, e.g. "fp16"; the plain ones are taken for a component that
                has none.
            revision (`str`, *optional*), token (`str` or `bool`, *optional*), cache_dir (`str`, *optional*),
                force_download (`bool`), local_files_only (`bool`): as everywhere in huggingface_hub.
            vqvae, unet, prior, scheduler (*optional*): a component that is used instead of the saved one.
            device_map, disable_mmap, low_cpu_mem_usage, use_safetensors (*optional*): of `ModelMixin.from_pretrained`.
                From the Hub only safetensors are read.

        Returns:
            The pipeline, in evaluation mode.

        Raises:
            ValueError: a component of an unknown class, files that are missing, damaged, pickled (from the Hub) or of
                another model, a variant that no component has, `trust_remote_code` or `custom_pipeline`.
            OSError: no such repository or revision or no access to it, a download that failed.
        """
        for option in ("trust_remote_code", "custom_pipeline"):
            if kwargs.pop(option, None):
                raise ValueError(f"{cls.__name__} never runs code from a repository: leave out `{option}`.")
        names = _component_names(cls)
        components = {name: kwargs.pop(name) for name in names if name in kwargs}
        configs = {name: COMPONENTS[name].config_name for name in names if name not in components}
        hub_options = {name: kwargs.pop(name) for name in _HUB_OPTIONS if name in kwargs}
        options = {name: kwargs.pop(name) for name in _MODEL_OPTIONS if name in kwargs}
        variant, torch_dtype = kwargs.pop("variant", None), kwargs.pop("torch_dtype", None)
        dtype = kwargs.pop("dtype", None) or torch_dtype
        if kwargs:
            logger.warning(f"Keyword arguments {sorted(kwargs)} are not expected by {cls.__name__} and are ignored.")

        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = fetch_pipeline(
                str(pretrained_model_name_or_path),
                configs,
                lambda index: cls._find_classes(index, configs),
                variant,
                **hub_options,
            )
            options["use_safetensors"] = True
        classes = cls._find_classes(read_json(folder / INDEX_NAME), configs)
        if variant is not None and not any(has_variant(folder / name, variant) for name in configs):
            raise ValueError(
                f"You are trying to load the model files of the `variant={variant}`, but {folder} has none."
            )
        for name in configs:
            own_dtype = dtype.get(name, dtype.get("default")) if isinstance(dtype, dict) else dtype
            components[name] = load_component(classes[name], folder / name, variant, torch_dtype=own_dtype, **options)
            logger.info(f"Loaded {name} as {classes[name].__name__} from {folder / name}.")
        pipe = cls(**components)
        pipe.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipe

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        As in diffusers: a folder that `from_pretrained` loads.

        Raises:
            ValueError: `push_to_hub`, see there.
        """
        if push_to_hub:
            self.push_to_hub()
        options = {"safe_serialization": safe_serialization, "variant": variant, "max_shard_size": max_shard_size}
        super().save_pretrained(save_directory, **options, **kwargs)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> str:
        """
        Not from here: diffusers would write a card whose code can't load the repository.

        Raises:
            ValueError: with what does it right.
        """
        raise ValueError(
            f"{type(self).__name__} isn't pushed from here, where its card and its code for people without the "
            "package would be missing. Save it with `save_pretrained(folder)`, then call "
            "`diffusion_bridge_vq.hub.push_run(folder, repo_id)` or run "
            "`python examples/push_to_hub.py folder user/model`."
        )

    @classmethod
    def _find_classes(cls, index: dict[str, Any], wanted: Iterable[str]) -> dict[str, Any]:
        """
        Classes of the wanted components by a saved pipeline's index: this package's or diffusers', and no others.

        Raises:
            ValueError: the index has a component that this pipeline hasn't, or a class that can't stand there.
        """
        names = _component_names(cls)
        unknown = [name for name in index if name not in names and not name.startswith("_")]
        if unknown:
            raise ValueError(f"{INDEX_NAME} has {unknown}; the components of {cls.__name__} are {names}.")
        classes = {}
        for name in wanted:
            known, entry = COMPONENTS[name], index.get(name)
            library = "diffusers" if known.__module__.startswith("diffusers.") else known.__module__
            other = ALTERNATIVES.get(name)
            if entry == [library, known.__name__]:
                classes[name] = known
            elif other is not None and entry == [other.__module__, other.__name__]:
                classes[name] = other
            elif name == "scheduler" and entry in [["diffusers", stock] for stock in known._compatibles]:
                classes[name] = getattr(diffusers, entry[1])
            else:
                raise ValueError(
                    f"{INDEX_NAME} has {entry} for {name}, expected {[library, known.__name__]}"
                    f"{' or a scheduler of diffusers that can replace it' if name == 'scheduler' else ''}. Other "
                    f"classes aren't looked up: build the component yourself and pass it as `{name}`."
                )
        return classes

    def _decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, h, w) -> pixels (B, C, H, W), about [-1, 1], float32."""
        z_q = self.vqvae.decode_codes(codes).to(self.vqvae.dtype)
        return self.vqvae.decode(z_q, force_not_quantize=True).sample.float()

    @staticmethod
    def _check_output(
        num_images: int, generator: torch.Generator | list[torch.Generator] | None, output_type: str
    ) -> None:
        generators = generator if isinstance(generator, list) else [] if generator is None else [generator]
        if not all(isinstance(one, torch.Generator) for one in generators):
            raise ValueError(
                f"`generator` must be a torch.Generator or a list of them, got {generator!r}; a seed becomes one by "
                "`torch.Generator().manual_seed(seed)`."
            )
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


def _component_names(cls: type) -> list[str]:
    return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]  # type: ignore[misc]


class BridgePipeline(VQPipeline):
    """
    Base of the pipelines of a diffusion bridge; its subclasses differ in `__call__` alone, so that one saved folder
    serves them all. Components and errors are those of [`DiffusionBridgeVQPipeline`].
    """

    model_cpu_offload_seq = "unet->vqvae"
    _callback_tensor_inputs = ["latents"]
    _interrupt = False

    def __init__(self, vqvae: GumbelVQModel, unet: UNet2DModel, scheduler: SchedulerMixin):
        super().__init__()
        check_channels(unet, vqvae)
        self.register_modules(vqvae=vqvae, unet=unet, scheduler=scheduler)

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the last call (some solvers take more than were asked for)."""
        return len(self.scheduler.timesteps)

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

        Where compiling fails, for want of a compiler for example, the pipeline stays as it was and a warning says why.

        Example:

        ```py
        >>> pipe = DiffusionBridgeVQPipeline.from_pretrained("outputs/demo/pipeline").to("cuda", torch.bfloat16)
        >>> pipe.compile(batch_size=32)
        >>> images = pipe(batch_size=32).images
        ```

        Args:
            batch_size (`int`): images per call; another number compiles again when it is met. Guidance doubles it.
            **kwargs: of `torch.compile`, e.g. `mode="max-autotune"`.
        """
        # the decoder's results may be kept from call to call, which a replayed graph would overwrite; the sampling
        # loop copies what the U-Net returns
        replay = {"mode": "reduce-overhead"} if self.unet.device.type == "cuda" and not kwargs else {}
        modules: tuple[tuple[nn.Module, dict[str, Any]], ...] = ((self.unet, replay), (self.vqvae.decoder, {}))
        shape = (batch_size, self.unet.config.in_channels, *self._latent_size())
        labels = self._read_class_labels(None, self.unet.config.num_class_embeds, batch_size, self.unet.device)
        try:
            for module, own in modules:
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                module.compile(**{"dynamic": False} | own | kwargs)
            z_0 = sample_latents(
                self.unet,
                self.scheduler,
                shape,
                num_inference_steps=min(3, self.scheduler.config.num_train_timesteps),  # a graph is recorded later on
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
