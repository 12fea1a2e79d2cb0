"""What the pipelines share: loading, components, checks of the call, decoding."""

import inspect
import os
from collections.abc import Iterable, Sequence
from typing import Any, Self

import diffusers
import torch
from diffusers import DiffusionPipeline, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import logging
from torch import nn

from ..models import CodeUNet2DModel, GumbelVQModel, PixelCNNPrior
from ..models.bounded_loading import AutoMapMixin, check_values
from ..pretrained import INDEX_NAME, fetch_pipeline, has_variant, load_component, read_json
from ..schedulers import OUBridgeScheduler
from ..schedulers.arguments import check_generators
from .class_labels import (
    find_label_ids,
)
from .saved_folder import find_pipeline_folder

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


class VQPipeline(AutoMapMixin, DiffusionPipeline):
    """Base of all pipelines: what they draw are codes of `vqvae` in the end."""

    vqvae: GumbelVQModel

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.image_processor = VaeImageProcessor(do_resize=False)
        # None isn't saved: a folder without settings loads in older versions, too
        self.register_to_config(**{name: value for name, value in settings.items() if value is not None})

    @property
    def id2label(self) -> dict[int, str] | None:
        """Class names by number; None if the pipeline has none."""
        return self.config.get("id2label")

    def get_label_ids(self, names: Sequence[str] | str) -> list[int]:
        """
        Numbers of the classes of these names.

        Args:
            names (`str` or `list[str]`): as in `id2label`.

        Raises:
            ValueError: a name that no class has, or a pipeline without names.
        """
        return find_label_ids(names, self.id2label)

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
            pretrained_model_name_or_path (`str` or `os.PathLike`): the folder of a pipeline or of a run, or
                "user/model".
            torch_dtype or dtype (`torch.dtype` or a dict from component, or "default", to one, *optional*).
            variant (`str`, *optional*): of the weights, e.g. "fp16"; the plain ones are taken for a component that
                has none.
            revision (`str`, *optional*), token (`str` or `bool`, *optional*), cache_dir (`str`, *optional*),
                force_download (`bool`), local_files_only (`bool`): as everywhere in huggingface_hub.
            vqvae, unet, prior, scheduler (*optional*): a component that is used instead of the saved one.
            id2label, default_guidance_scale, default_num_inference_steps, condition, label_words, label_examples
                (*optional*): a setting of the pipeline that is used instead of the saved one.
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
        settings = {name: kwargs.pop(name) for name in _setting_names(cls) if name in kwargs}
        configs = {name: COMPONENTS[name].config_name for name in names if name not in components}
        hub_options = {name: kwargs.pop(name) for name in _HUB_OPTIONS if name in kwargs}
        options = {name: kwargs.pop(name) for name in _MODEL_OPTIONS if name in kwargs}
        variant, torch_dtype = kwargs.pop("variant", None), kwargs.pop("torch_dtype", None)
        dtype = kwargs.pop("dtype", None) or torch_dtype
        if kwargs:
            logger.warning(f"Keyword arguments {sorted(kwargs)} are not expected by {cls.__name__} and are ignored.")

        folder = find_pipeline_folder(pretrained_model_name_or_path)
        if folder is None:
            folder = fetch_pipeline(
                str(pretrained_model_name_or_path),
                configs,
                lambda index: cls._find_classes(index, configs),
                variant,
                **hub_options,
            )
            options["use_safetensors"] = True
        index = read_json(folder / INDEX_NAME)
        classes = cls._find_classes(index, configs)
        settings = {name: index[name] for name in _setting_names(cls) if name in index} | settings
        if variant is not None and not any(has_variant(folder / name, variant) for name in configs):
            raise ValueError(
                f"You are trying to load the model files of the `variant={variant}`, but {folder} has none."
            )
        for name in configs:
            own_dtype = dtype.get(name, dtype.get("default")) if isinstance(dtype, dict) else dtype
            components[name] = load_component(classes[name], folder / name, variant, torch_dtype=own_dtype, **options)
            logger.info(f"Loaded {name} as {classes[name].__name__} from {folder / name}.")
        try:
            pipe = cls(**components, **settings)
        except ValueError as error:
            raise ValueError(f"{folder} can't be loaded as {cls.__name__}: {error}") from error
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

    def register_modules(self, **kwargs: Any) -> None:
        """
        As in diffusers, for components that can be drawn from.

        Raises:
            ValueError: weights that aren't finite, or a negative variance.
        """
        for name, component in kwargs.items():
            if isinstance(component, nn.Module):
                check_values(component, name)
        super().register_modules(**kwargs)

    @classmethod
    def _find_classes(cls, index: dict[str, Any], wanted: Iterable[str]) -> dict[str, Any]:
        """
        Classes of the wanted components by a saved pipeline's index: this package's or diffusers', and no others.

        Raises:
            ValueError: the index has a component that this pipeline hasn't, or a class that can't stand there.
        """
        names = _component_names(cls)
        known_names = [*names, *_setting_names(cls), "auto_map"]  # which is for AutoModel
        unknown = [name for name in index if name not in known_names and not name.startswith("_")]
        if unknown:
            saved = index.get("_class_name")
            said = f"This is a saved {saved}. " if saved != cls.__name__ and isinstance(saved, str) else ""
            raise ValueError(f"{said}{INDEX_NAME} has {unknown}; the components of {cls.__name__} are {names}.")
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
        check_generators(generator, num_images)
        VQPipeline._check_output_type(output_type)

    @staticmethod
    def _check_output_type(output_type: str) -> None:
        if not isinstance(output_type, str) or output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"`output_type` must be pil, np, pt or latent, got {output_type!r}.")


def _component_names(cls: type) -> list[str]:
    """Parameters of the constructor without a default."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]
    return [each.name for each in parameters if each.default is each.empty]


def _setting_names(cls: type) -> list[str]:
    """Parameters of the constructor with a default, which model_index.json holds."""
    parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
    return [each.name for each in parameters if each.default is not each.empty]
