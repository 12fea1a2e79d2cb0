"""Files of a saved pipeline: which of them are fetched from the Hub, and what is checked before they are believed."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import CONFIG_NAME, logging
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open

INDEX_NAME = "model_index.json"
MAX_JSON_BYTES = 2**20  # those of this package's models have about 1,000

logger = logging.get_logger(__name__)


def read_json(path: Path) -> dict[str, Any]:
    """
    The object in a JSON file.

    Raises:
        ValueError: there is no such file, it has more than 1 MiB, or it holds something else.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    _check_size(str(path), path.stat().st_size)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} isn't JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content


def find_weights(names: Iterable[str], variant: str | None = None, suffix: str = "safetensors") -> list[str]:
    """Those of a component's files that hold its weights, all shards and their index included."""
    tag = rf"\.{re.escape(variant)}" if variant else ""
    pattern = rf"diffusion_pytorch_model({tag}(-\d+-of-\d+)?\.{suffix}|\.{suffix}\.index{tag}\.json)"
    return sorted(name for name in names if re.fullmatch(pattern, name))


def has_variant(folder: Path, variant: str | None) -> bool:
    """Whether a component's folder has weights of the variant."""
    names = _list(folder)
    return variant is not None and bool(find_weights(names, variant) or find_weights(names, variant, "bin"))


def load_component(cls: Any, folder: Path, variant: str | None = None, **options: Any) -> Any:
    """
    `cls.from_pretrained` for a model or a scheduler in its own folder, with files that fit it or not at all.

    Args:
        variant (`str`, *optional*): of the weights; the plain ones are taken where there are none.
        options: those of `ModelMixin.from_pretrained`; schedulers have none.

    Raises:
        ValueError: a configuration of another class or that `cls` doesn't take, weights that are damaged or of
            another model.
    """
    config = read_json(folder / cls.config_name)
    if config.get("_class_name") != cls.__name__:
        raise ValueError(f"{folder / cls.config_name} is of {config.get('_class_name')}, expected {cls.__name__}.")
    is_model = issubclass(cls, torch.nn.Module)
    if is_model:
        if config.get("quantization_config"):  # diffusers would look for the library that it names
            raise ValueError(f"{folder / cls.config_name} asks for quantized weights, which aren't supported.")
        variant = variant if has_variant(folder, variant) else None
        for name in find_weights(_list(folder), variant):
            _check_weights(folder / name)
        options |= {"variant": variant, "output_loading_info": True}
    try:
        loaded = cls.from_pretrained(folder, **options if is_model else {})
    except Exception as error:  # a configuration can hold anything
        raise ValueError(f"{folder} can't be loaded as {cls.__name__}: {error}") from error
    if not is_model:
        return loaded
    model, info = loaded
    if info["missing_keys"] or info["unexpected_keys"]:
        raise ValueError(
            f"The weights in {folder} aren't those of its configuration: missing "
            f"{_shorten(info['missing_keys'])}, unexpected {_shorten(info['unexpected_keys'])}."
        )
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
    Hub can't be reached the cache has to do.

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
            raise ValueError(f"{repo_id!r} is neither a folder nor a repository's name, 'user/model'.") from invalid
        except RepositoryNotFoundError as not_found:
            raise OSError(
                f"{repo_id!r} is neither a folder here nor a repository on the Hub that you may read. Check the name; "
                "for a private repository pass `token` or run `hf auth login`."
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
            _check_size(f"{repo_id}/{name}", sizes[name])
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
        raise OSError(f"{repo_id!r} isn't in the cache, or not all of it, and {reason}: {missing}") from error
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


def _check_weights(path: Path) -> None:
    """Raises ValueError if a file's header doesn't describe the file, or an index names what isn't beside it."""
    if path.suffix == ".json":
        shards = read_json(path).get("weight_map")
        if not isinstance(shards, dict) or not shards or not set(map(str, shards.values())) <= set(_list(path.parent)):
            raise ValueError(f"{path} doesn't name the shards beside it.")
        return
    try:
        with safe_open(path, framework="pt"):  # checks sizes and offsets against the file's length
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is cut off or damaged; fetch it again with `force_download=True`: {error}"
        ) from error


def _list(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _check_size(name: str, size: int) -> None:
    if size > MAX_JSON_BYTES:
        raise ValueError(f"{name} has {size:,} bytes; a JSON file of a pipeline has at most {MAX_JSON_BYTES:,}.")


def _shorten(names: list[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"
