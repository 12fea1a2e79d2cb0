"""Loading that allocates nothing before configuration and weights are known to fit, and refuses broken weights."""

import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import LogRecord, getLogger
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.models import modeling_utils
from diffusers.utils import CONFIG_NAME
from huggingface_hub import snapshot_download
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from .weight_files import Shapes, find_weights, list_names, read_json, read_shapes, shorten

# What a model may have beyond its saved tensors: parts that its constructor replaces, buffers that aren't saved.
_SPARE_TENSORS, _SPARE_ELEMENTS = 200, 2**22
_FETCH_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only")
_NEVER_NEGATIVE = ("running_var", "num_batches_tracked", "ema_count")


class AutoMapMixin:
    """Before a class of diffusers among a class's bases. Its configuration may say where a repository has its code."""

    @classmethod
    def extract_init_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """As ConfigMixin's, without `auto_map`, which only diffusers' AutoModel reads."""
        own = {key: value for key, value in config_dict.items() if key != "auto_map"}
        return super().extract_init_dict(own, **kwargs)  # type: ignore[misc]


class SafeLoadingMixin(AutoMapMixin):
    """
    Before diffusers' ModelMixin among a class's bases. From the Hub it reads safetensors only. A configuration that
    asks for far more than its weight file holds is refused before anything is allocated, and so are weights that
    aren't finite.

    Attributes:
        _stock_class (`str`): name of a class of diffusers whose folders load, too.
        _may_lack (`tuple[str, ...]`): beginnings of names of tensors that a weight file may lack: those that this
            class has beyond its stock class.
    """

    _stock_class: ClassVar[str | None] = None
    _may_lack: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """
        As ModelMixin's, but a pickle, which can run code, is not taken from the Hub in place of safetensors.

        Raises:
            ValueError: files in a folder that are damaged or don't fit together, weights that aren't finite.
        """
        subfolder, variant = kwargs.get("subfolder") or "", kwargs.get("variant")
        folder: Path | None = Path(pretrained_model_name_or_path)
        if not os.path.isdir(pretrained_model_name_or_path):
            kwargs["use_safetensors"] = True
            folder = _fetch(str(pretrained_model_name_or_path), subfolder, variant, kwargs)
        if folder is not None:
            own = kwargs.keys() & cls._get_init_keys(cls)  # type: ignore[attr-defined]
            check_files(cls, folder / subfolder, variant, {key: kwargs[key] for key in own})
        with _expecting_new_tensors(cls._may_lack):
            loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]
        check_values(loaded[0] if isinstance(loaded, tuple) else loaded, cls.__name__)
        return loaded


@contextmanager
def _expecting_new_tensors(names: tuple[str, ...]) -> Iterator[None]:
    """Without diffusers' advice to train a model, where all tensors that aren't in the file are among these."""

    def keep(record: LogRecord) -> bool:
        _, found, listed = record.getMessage().partition("newly initialized: ")
        fresh = re.findall(r"'([^']+)'", listed.partition("\n")[0])
        return not (found and fresh and all(name.startswith(names) for name in fresh))

    logger = getLogger(modeling_utils.__name__)
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _fetch(repo_id: str, subfolder: str, variant: str | None, options: Mapping[str, Any]) -> Path | None:
    """The folder in the cache with a model's files of the Hub; None leaves it to diffusers to say what is missing."""
    tag = f".{variant}" if variant else ""
    names = [CONFIG_NAME, *(f"diffusion_pytorch_model{tag}{shard}.safetensors" for shard in ("", "-*-of-*"))]
    names.append(f"diffusion_pytorch_model.safetensors.index{tag}.json")
    patterns = [f"{subfolder}/{name}" if subfolder else name for name in names]
    try:
        folder = Path(
            snapshot_download(
                repo_id, allow_patterns=patterns, **{name: options[name] for name in _FETCH_OPTIONS if name in options}
            )
        )
    except (OSError, ValueError):
        return None
    return folder if find_weights(list_names(folder / subfolder), variant) else None


def check_files(
    cls: Any,
    folder: Path,
    variant: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    exactly: bool = False,
) -> None:
    """
    Check a model's configuration against the headers of its weights, without memory for the weights.

    Args:
        cls: a class of diffusers' ModelMixin.
        folder (`Path`): has `config.json` and the weights.
        variant (`str`, *optional*): of the weights.
        overrides (`Mapping`, *optional*): replace entries of the configuration.
        exactly (`bool`, *optional*, defaults to `False`): refuse also weights of other names or shapes than the
            model's.

    Raises:
        ValueError: files are missing or damaged, `cls` doesn't take the configuration, or it describes another model
            than the weights.
    """
    config = read_json(folder / cls.config_name)
    found, stock = config.get("_class_name", cls.__name__), getattr(cls, "_stock_class", None)
    if found not in (cls.__name__, stock):
        raise ValueError(f"{folder} has {found}, expected {cls.__name__}: give the folder of such a model.")
    shapes = read_shapes(folder, variant)
    if shapes is None:  # pickled: bounded by the size of the files
        num_bytes = sum(path.stat().st_size for path in folder.glob("*.bin"))
        saved = num_bytes // 64, num_bytes
    else:
        saved = len(shapes), sum(torch.Size(shape).numel() for shape in shapes.values())
    try:
        with _limited_construction(saved[0] + _SPARE_TENSORS, 2 * saved[1] + _SPARE_ELEMENTS):
            model = cls.from_config(config, **overrides or {})
    except _TooLargeError as error:
        raise ValueError(
            f"{folder / cls.config_name} describes a model with more than {error}, but the weights there are "
            f"{saved[0]:,} tensors with {saved[1]:,} numbers. The two don't belong together: copy both from the same "
            "model."
        ) from None
    except Exception as error:  # a configuration can hold anything
        raise ValueError(f"{folder} can't be loaded as {cls.__name__}: {error}") from error
    if shapes is not None and (exactly or issubclass(cls, SafeLoadingMixin)):
        _check_shapes(model, shapes, folder, exactly)


def _check_shapes(model: nn.Module, shapes: Shapes, folder: Path, exactly: bool) -> None:
    saved: dict[str, Any] = dict(shapes)
    model._fix_state_dict_keys_on_load(saved)  # type: ignore[operator]  # names of older diffusers
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing, unexpected = own.keys() - saved.keys(), saved.keys() - own.keys()
    if not exactly:
        missing = {name for name in missing if not name.startswith(model._may_lack)}  # type: ignore[arg-type]
        unexpected = set()  # diffusers names them, and they change nothing
    other = [
        f"{name} {saved[name]} instead of {shape}" for name, shape in own.items() if saved.get(name, shape) != shape
    ]
    if missing or unexpected or other:
        raise ValueError(
            f"The weights in {folder} aren't those of its configuration: missing {shorten(missing)}, unexpected "
            f"{shorten(unexpected)}, of another shape {shorten(other)}."
        )


@torch.no_grad()
def check_values(model: nn.Module, name: str) -> None:
    """
    Check that all weights are finite, and no variance or count is negative. Tensors on the "meta" device are skipped.

    Args:
        name (`str`): of the model, for the message.

    Raises:
        ValueError: names the first tensor that isn't good, and its first wrong value.
    """
    tensors = {
        key: tensor
        for key, tensor in (*model.named_parameters(), *model.named_buffers())
        if tensor.is_floating_point() and tensor.device.type != "meta"
    }
    checks = {key: _is_good(key, tensor).all() for key, tensor in tensors.items()}
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for check in checks.values():
        by_device.setdefault(check.device, []).append(check)
    if all(bool(torch.stack(same).all()) for same in by_device.values()):  # one wait per device
        return
    key = next(key for key, check in checks.items() if not bool(check))
    wrong = tensors[key][~_is_good(key, tensors[key])].float()
    raise ValueError(
        f"{name} can't be used: {wrong.numel():,} of the {tensors[key].numel():,} values of its tensor {key!r} are "
        f"wrong, the first is {wrong[0].item()}. Expected finite numbers{_bound(key)}. Take weights that were saved "
        "before training went wrong, or copy the file again."
    )


def _is_good(key: str, tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.float() if tensor.itemsize == 1 else tensor  # float8 has few operations
    return tensor.isfinite() & (tensor >= 0) if _bound(key) else tensor.isfinite()


def _bound(key: str) -> str:
    return " that aren't negative" if key.rpartition(".")[2] in _NEVER_NEGATIVE else ""


class _TooLargeError(Exception):
    pass


@contextmanager
def _limited_construction(max_tensors: int, max_elements: int) -> Iterator[None]:
    """Modules that this thread builds have tensors without memory, and building stops when there are too many."""
    thread, tensors, elements = threading.get_ident(), 0, 0

    def count(module: nn.Module, name: str, tensor: torch.Tensor | None) -> None:
        nonlocal tensors, elements
        if tensor is None or threading.get_ident() != thread:
            return
        tensors, elements = tensors + 1, elements + tensor.numel()
        if tensors > max_tensors:
            raise _TooLargeError(f"{max_tensors:,} tensors")
        if elements > max_elements:
            raise _TooLargeError(f"{max_elements:,} numbers")

    handles = (
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    )
    try:
        with torch.device("meta"):
            yield
    finally:
        for handle in handles:
            handle.remove()
