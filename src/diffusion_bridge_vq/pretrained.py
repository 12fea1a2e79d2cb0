"""Files of a saved pipeline: which of them are fetched from the Hub, and what is checked before use."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin, UNet2DModel
from diffusers.utils import CONFIG_NAME, logging
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .data.paths import suggest_path
from .models.arguments import Integer, check_arguments
from .models.bounded_loading import check_files, check_values
from .models.code_unet import check_unet_config
from .models.weight_files import check_json_size, find_weights, has_variant, read_json, shorten

INDEX_NAME = "model_index.json"
# Integers of a scheduler's configuration. They have no weights that would bound them.
MAX_SCHEDULER_INTEGER = 100_000

# Whole, in shards, and their index.
_WEIGHTS = (".safetensors", "-*-of-*.safetensors", ".safetensors.index.json")

logger = logging.get_logger(__name__)

__all__ = [
    "INDEX_NAME",
    "fetch_autoencoder",
    "fetch_pipeline",
    "find_weights",
    "has_variant",
    "load_component",
    "read_json",
]


def load_component(cls: Any, folder: Path, variant: str | None = None, **options: Any) -> Any:
    """
    `cls.from_pretrained` for a model or a scheduler in its own folder. Files that don't fit it are refused.

    Args:
        variant (`str`, *optional*): of the weights; the plain ones are taken where there are none.
        options: those of `ModelMixin.from_pretrained`; schedulers have none.

    Raises:
        ValueError: a configuration of another class or that `cls` doesn't take, weights that are damaged, not finite
            or of another model.
    """
    path = folder / cls.config_name
    config = read_json(path)
    if config.get("_class_name") != cls.__name__:
        raise ValueError(f"{path} is of {config.get('_class_name')}, expected {cls.__name__}.")
    for key, value in config.items():
        if any(
            isinstance(entry, float) and math.isnan(entry) for entry in (value if isinstance(value, list) else [value])
        ):
            raise ValueError(f"{path} has NaN for {key!r}, expected a number.")
    if issubclass(cls, torch.nn.Module):
        return _load_model(cls, folder, config, variant, options)
    check_arguments(str(path), config, {"num_train_timesteps": Integer(1, MAX_SCHEDULER_INTEGER)})
    if large := [
        key for key, value in config.items() if isinstance(value, int) and abs(value) > MAX_SCHEDULER_INTEGER
    ]:
        raise ValueError(
            f"{path} has {config[large[0]]} for {large[0]!r}; integers of a scheduler are at most "
            f"{MAX_SCHEDULER_INTEGER:,}."
        )
    try:
        return cls.from_pretrained(folder)
    except Exception as error:  # a configuration can hold anything
        raise ValueError(f"{folder} can't be loaded as {cls.__name__}: {error}") from error


def _load_model(
    cls: Any, folder: Path, config: dict[str, Any], variant: str | None, options: dict[str, Any]
) -> torch.nn.Module:
    if config.get("quantization_config"):  # diffusers would look for the library that it names
        raise ValueError(f"{folder / cls.config_name} asks for quantized weights, which aren't supported.")
    if cls is UNet2DModel:  # the models of this package check their own arguments
        try:
            check_unet_config(config)
        except ValueError as error:
            raise ValueError(f"{folder} can't be loaded as {cls.__name__}: {error}") from error
    variant = variant if has_variant(folder, variant) else None
    check_files(cls, folder, variant, exactly=True)
    options |= {"variant": variant, "output_loading_info": True}
    try:
        # diffusers' own method: that of SafeLoadingMixin would check the files again
        model, info = ModelMixin.from_pretrained.__func__(cls, folder, **options)
    except Exception as error:
        raise ValueError(f"{folder} can't be loaded as {cls.__name__}: {error}") from error
    if info["missing_keys"] or info["unexpected_keys"]:  # of pickled weights, which have no header
        raise ValueError(
            f"The weights in {folder} aren't those of its configuration: missing "
            f"{shorten(info['missing_keys'])}, unexpected {shorten(info['unexpected_keys'])}."
        )
    check_values(model, str(folder))
    return model


def fetch_pipeline(
    repo_id: str,
    components: Mapping[str, str],
    check_index: Callable[[dict[str, Any]], Any],
    variant: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: Path | str | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """
    A folder of the Hugging Face cache that holds a pipeline's index, and the configuration and weights of its parts.

    Nothing but JSON and safetensors is asked for; what else the cache may hold of the repository stays there. If the
    Hub can't be reached, the cached copy is used.

    Args:
        repo_id (`str`): "user/model".
        components (`Mapping[str, str]`): name of each part -> name of its configuration file.
        check_index (`Callable`): is given the index before anything else is fetched, and raises if it isn't good.
        variant (`str`, *optional*): of the weights; the plain ones are taken for parts that have none.
        revision, token, cache_dir, force_download, local_files_only: as in `snapshot_download`.

    Raises:
        ValueError: no such file in the repository, pickled weights only, or a JSON file of more than 1 MiB (it isn't
            fetched).
        OSError: no such repository or revision or no access to it, or the download failed.
    """
    error: Exception | None = None
    if not local_files_only:
        try:
            info = HfApi().model_info(repo_id, revision=revision, files_metadata=True, token=token)
        except HFValidationError as invalid:
            raise ValueError(
                f"{repo_id!r} is neither a folder nor a repository's name, 'user/model'. "
                f"{suggest_path(repo_id, INDEX_NAME)}"
            ) from invalid
        except RepositoryNotFoundError as not_found:
            raise OSError(
                f"{repo_id!r} is neither a folder here nor a repository on the Hub that you may read. Check the name; "
                f"for a private repository pass `token` or run `hf auth login`. {suggest_path(repo_id, INDEX_NAME)}"
            ) from not_found
        except RevisionNotFoundError as not_found:
            raise OSError(f"{repo_id!r} has no revision {revision!r}.") from not_found
        except (HTTPError, OfflineModeIsEnabled) as failed:
            error = failed
    if local_files_only or error is not None:
        return _find_cached(repo_id, components, variant, revision, cache_dir, error)

    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    chosen = _choose_files(sizes, components, variant, repo_id)
    for name in chosen:
        if name.endswith(".json"):
            check_json_size(f"{repo_id}/{name}", sizes[name])
    options: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "force_download": force_download}
    try:
        index = hf_hub_download(repo_id, INDEX_NAME, revision=info.sha, **options)
        check_index(read_json(Path(index)))
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=chosen, **options))
    except (HTTPError, OSError) as failed:
        raise OSError(
            f"{repo_id!r} couldn't be downloaded: {failed}. Files that came whole are kept; try again."
        ) from failed
    if folder.name != info.sha:
        raise OSError(f"{repo_id!r} was changed while it was being downloaded; try again.")
    return folder


def fetch_autoencoder(repo_id: str) -> Path:
    """
    A folder of the Hugging Face cache with the autoencoder of a repository, in `vqvae/` or at its top: its
    configuration and its weights in safetensors, and nothing else.

    Raises:
        ValueError: not a name of a repository; one without weights in safetensors.
        OSError: no such repository or no access to it, or the download failed.
    """
    names = [CONFIG_NAME, *(f"diffusion_pytorch_model{end}" for end in _WEIGHTS)]
    try:
        folder = Path(
            snapshot_download(repo_id, allow_patterns=[f"{sub}{name}" for sub in ("vqvae/", "") for name in names])
        )
    except HFValidationError as error:
        raise ValueError(
            f"{repo_id!r} is neither a folder nor a repository's name, 'user/model'. {suggest_path(repo_id)}".rstrip()
        ) from error
    except (HTTPError, OSError) as error:
        raise OSError(
            f"{repo_id!r} is neither a folder here nor a repository on the Hub that could be read: {error}. "
            f"{suggest_path(repo_id)}".rstrip()
        ) from error
    own = next((place for place in (folder / "vqvae", folder) if (place / CONFIG_NAME).is_file()), folder)
    if not find_weights([path.name for path in own.glob("*")]):
        raise ValueError(
            f"{repo_id} has no autoencoder in safetensors, neither in vqvae/ nor at its top; pickles aren't read from "
            "the Hub, since they can run code. If you trust it, write safetensors once: "
            f"VQModel.from_pretrained({repo_id!r}, subfolder='vqvae').save_pretrained(folder)."
        )
    return own


def _find_cached(
    repo_id: str,
    components: Mapping[str, str],
    variant: str | None,
    revision: str | None,
    cache_dir: Path | str | None,
    error: Exception | None,
) -> Path:
    reason = f"the Hub can't be reached ({error})" if error else "`local_files_only` is set"
    try:
        options: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "local_files_only": True}
        folder = Path(snapshot_download(repo_id, allow_patterns=[INDEX_NAME], **options))
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        _choose_files(names, components, variant, "the cached copy")
    except (OSError, ValueError) as missing:
        raise OSError(
            f"{repo_id!r} isn't in the cache, or not all of it, and {reason}: {missing} "
            f"{suggest_path(repo_id, INDEX_NAME)}".strip()
        ) from error
    if error is not None:
        logger.warning(f"{repo_id} is taken from the cache: {reason}.")
    return folder


def _choose_files(names: Iterable[str], components: Mapping[str, str], variant: str | None, origin: str) -> list[str]:
    """The files of a repository that loading needs; ValueError if one of them isn't there."""
    names = set(names)
    chosen = [INDEX_NAME, *(f"{component}/{config}" for component, config in components.items())]
    missing = [name for name in chosen if name not in names]
    if missing:
        raise ValueError(f"{origin} is no pipeline of this class: there is no {', '.join(missing)}.")
    for component in (component for component, config in components.items() if config == CONFIG_NAME):
        own = [name.removeprefix(f"{component}/") for name in names if name.startswith(f"{component}/")]
        weights = find_weights(own, variant) or find_weights(own)
        if not weights:
            raise ValueError(
                f"{origin} has no weights of {component} in safetensors, but {', '.join(sorted(own))}; pickles aren't "
                "read from the Hub, since they can run code."
            )
        chosen += [f"{component}/{name}" for name in weights]
    return chosen
