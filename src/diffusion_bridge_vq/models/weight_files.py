"""Files of a saved model: found, and checked by their headers before anything is allocated."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

# Configurations of this package have about 1,000 bytes, headers of weights about 100 bytes per tensor.
MAX_JSON_BYTES = 2**20
MAX_TENSORS = 5_000
_LFS_POINTER = b"version https://git-lfs"
_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}

Shapes = dict[str, tuple[int, ...]]


def read_json(path: Path) -> dict[str, Any]:
    """
    The object in a JSON file.

    Raises:
        ValueError: there is no such file, it has more than 1 MiB, or it holds something else.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    check_json_size(str(path), path.stat().st_size)
    return _parse_object(str(path), path.read_bytes())


def check_json_size(name: str, size: int) -> None:
    """
    Raises:
        ValueError: a JSON file of this size isn't one of a model.
    """
    if size > MAX_JSON_BYTES:
        raise ValueError(f"{name} has {size:,} bytes; a JSON file of a pipeline has at most {MAX_JSON_BYTES:,}.")


def list_names(folder: Path) -> list[str]:
    """Names in a folder, none if there is no such folder."""
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def find_weights(names: Iterable[str], variant: str | None = None, suffix: str = "safetensors") -> list[str]:
    """Those of a component's files that hold its weights, all shards and their index included."""
    tag = rf"\.{re.escape(variant)}" if variant else ""
    pattern = rf"diffusion_pytorch_model({tag}(-\d+-of-\d+)?\.{suffix}|\.{suffix}\.index{tag}\.json)"
    return sorted(name for name in names if re.fullmatch(pattern, name))


def has_variant(folder: Path, variant: str | None) -> bool:
    """Whether a component's folder has weights of the variant."""
    names = list_names(folder)
    return variant is not None and bool(find_weights(names, variant) or find_weights(names, variant, "bin"))


def read_shapes(folder: Path, variant: str | None = None) -> Shapes | None:
    """
    Name and shape of every tensor of the safetensors in a component's folder, from the headers alone.

    Returns:
        `dict[str, tuple[int, ...]]`, or None if the weights are pickled.

    Raises:
        ValueError: there are no weights, or a file isn't a regular file, is damaged or doesn't fit its index.
    """
    names = list_names(folder)
    found, pickled = find_weights(names, variant), find_weights(names, variant, "bin")
    if not found:
        if not pickled:
            raise ValueError(f"{folder} has no weights: expected diffusion_pytorch_model.safetensors.")
        for name in pickled:
            _refuse_special_file(folder / name)
        return None
    if index := next((name for name in found if name.endswith(".json")), None):
        return _read_shards(folder / index)
    if "-of-" in found[-1]:  # sorted last is the plain name, if it is there
        raise ValueError(f"{folder} has shards without an index: {shorten(found)}.")
    return _read_header(folder / found[-1])


def _read_shards(index: Path) -> Shapes:
    placed = read_json(index).get("weight_map")
    present = set(list_names(index.parent))
    if (
        not isinstance(placed, dict)
        or not placed
        or not all(isinstance(s, str) and s in present for s in placed.values())
    ):
        raise ValueError(f"{index} doesn't name the shards in its folder.")
    shards: dict[str, set[str]] = {}
    for name, shard in placed.items():
        shards.setdefault(shard, set()).add(name)
    shapes: Shapes = {}
    for shard, named in shards.items():
        header = _read_header(index.parent / shard)
        if named != set(header):
            raise ValueError(f"{index} doesn't fit {shard}: only one of the two has {shorten(named ^ set(header))}.")
        shapes |= header
    return shapes


def shorten(names: Iterable[str]) -> str:
    """The first three names of a set, and how many there are besides."""
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "") or "none"


def _read_header(path: Path) -> Shapes:
    """Names and shapes of a safetensors file's tensors."""
    _refuse_special_file(path)
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
        _refuse_lfs_pointer(str(path), start)
        length = int.from_bytes(start[:8], "little")
        if len(start) < 8 or length > path.stat().st_size - 8:
            raise ValueError(_damaged(path, "its header is longer than the file"))
        if length > MAX_JSON_BYTES:
            raise ValueError(
                f"{path} has a header of {length:,} bytes; that of a model has at most {MAX_JSON_BYTES:,}."
            )
        file.seek(8)
        try:
            header = _parse_object(f"The header of {path}", file.read(length))
        except ValueError as error:
            raise ValueError(_damaged(path, str(error))) from error
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise ValueError(f"{path} has {len(header):,} tensors; a model has at most {MAX_TENSORS:,}.")
    try:
        with safe_open(path, framework="pt"):  # checks types, shapes and offsets against the file's length
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(_damaged(path, str(error))) from error
    if other := [name for name, entry in header.items() if entry["dtype"] not in _FLOATS]:
        raise ValueError(f"{path} has tensors that aren't floating point: {shorten(other)}. All weights must be.")
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def _refuse_special_file(path: Path) -> None:
    """Opening a FIFO would wait for ever."""
    if not path.is_file():
        raise ValueError(f"{path} isn't a regular file; weights must be one.")


def _damaged(path: Path, reason: str) -> str:
    return f"{path} is cut off or damaged: {reason}. Copy it again, or fetch it again with `force_download=True`."


def _refuse_lfs_pointer(name: str, start: bytes) -> None:
    if start.startswith(_LFS_POINTER):
        raise ValueError(
            f"{name} is a pointer of Git LFS, not the file itself. Run `git lfs pull` in the repository that it was "
            "cloned from, or copy the file from where it is whole."
        )


def _parse_object(name: str, content: bytes) -> dict[str, Any]:
    """A JSON object in which no key is repeated: two readers could take different ones."""
    _refuse_lfs_pointer(name, content)

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"the key {key!r} occurs twice")
            found[key] = value
        return found

    try:
        parsed = json.loads(content.decode("utf-8"), object_pairs_hook=to_dict)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} isn't JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{name} must hold a JSON object, got {type(parsed).__name__}.")
    return parsed
