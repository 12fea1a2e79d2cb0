"""Results in a JSON file: every figure with what it takes to read it and to get it again."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

from .arguments import as_device, check_count

RESULTS_FILE = "results.json"
_FORMAT = "diffusion-bridge-vq results"
Result = TypeVar("Result", bound=Mapping[str, Any])
_PACKAGES = ("diffusion-bridge-vq", "torch", "diffusers", "transformers", "numpy")


def append_result(
    path: str | os.PathLike,
    name: str,
    value: Any,
    *,
    n: int,
    seed: int,
    device: torch.device | str = "cpu",
    **facts: Any,
) -> dict[str, Any]:
    """
    Add a figure to a file of results: [`append_results`] for one, with the same errors.

    Args:
        path (`str` or `os.PathLike`): see [`append_results`] for this and for all arguments that aren't listed here.
        name (`str`): of the metric. [`paper_tables`] shows "kl", "nll", "frechet" and "seconds_per_sample".
        value: a number, or lists and dicts of numbers, which the tables leave out.

    Returns:
        `dict`: what was added: name, value, n, seed, the facts, device, versions, time (UTC) and command.
    """
    return append_results(path, {name: {"value": value}}, n=n, seed=seed, device=device, **facts)[0]


def append_results(
    path: str | os.PathLike,
    figures: Mapping[str, Mapping[str, Any]],
    *,
    n: int,
    seed: int,
    device: torch.device | str = "cpu",
    **facts: Any,
) -> list[dict[str, Any]]:
    """
    Add figures to a file of results, which is created if there is none: all of them, or none.

    The file is replaced as a whole, so that an interrupted run leaves the old or the new one. One process at a time:
    of two that add at once, one is lost.

    Args:
        path (`str` or `os.PathLike`): of the JSON file; its folder exists.
        figures (`Mapping`): {name of the metric: its value, and facts that the others don't share}.
        n (`int`): how many images or repeats they are made from.
        seed (`int`): of the run.
        device (`torch.device`, *optional*, defaults to `"cpu"`): that was measured; its model is looked up.
        **facts: whatever else belongs to them, as JSON: model, dataset, reference (the reference set), extractor,
            steps, std, ...

    Returns:
        `list[dict]`: what was added: name, value, n, seed, the facts, device, versions, time (UTC) and command.

    Raises:
        ValueError: a file of another kind, a number that isn't finite, or a fact with a name that is filled in here.
        TypeError: a value or fact that isn't JSON. The file is left as it was in both cases.
    """
    path = Path(path)
    check_count("n", n)
    check_count("seed", seed, 0)
    if not isinstance(figures, Mapping) or not all(
        isinstance(name, str) and isinstance(figure, Mapping) and "value" in figure for name, figure in figures.items()
    ):
        raise TypeError(f"`figures` must be {{name: {{'value': number, ...}}}}, got {figures!r:.200}.")
    own = {
        "device": describe_device(device),
        "versions": {"python": platform.python_version(), **_versions()},
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        # without the folder of the script, which may be private
        "command": " ".join([Path(sys.argv[0]).name, shlex.join(sys.argv[1:])]).rstrip(),
    }
    taken = sorted(set(own) & set(facts).union(*figures.values()))
    if taken:
        raise ValueError(f"{', '.join(taken)} can't be given: `append_results` fills them in.")
    shared = {"n": n, "seed": seed, **facts}
    added = [{"name": name, **figure, **shared, **own} for name, figure in figures.items()]
    _write(path, [*_read_if_any(path), *added])
    return added


def recall_results(path: str | os.PathLike, **facts: Any) -> list[dict[str, Any]]:
    """
    The results with these facts, e.g. model="bridge" and seed=0; they become the newest of the file, so that tables
    show them and not what was measured with other settings since.

    Returns:
        `list[dict]`: none if there is no file.

    Raises:
        ValueError: the file has something else than results. It is left as it was.
    """
    path = Path(path)
    results = _read_if_any(path)
    found = [result for result in results if facts.items() <= result.items()]
    others = [result for result in results if result not in found]
    if results != [*others, *found]:
        _write(path, [*others, *found])
    return found


def read_results(path: str | os.PathLike) -> list[dict[str, Any]]:
    """
    All results of a file that [`append_result`] wrote, oldest first.

    Raises:
        ValueError: the file is damaged, or has something else than results; says what.
        FileNotFoundError: there is no file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # reading a pipe would wait for a writer
        raise ValueError(f"{path} must be a file of results, but is a folder or a device.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # neither UTF-8 nor JSON
        raise ValueError(f"{path} isn't a file of results ({error}): move it away, or restore a copy.") from error
    results = content.get("results") if isinstance(content, dict) and content.get("format") == _FORMAT else None
    if not isinstance(results, list):
        raise ValueError(f'{path} is JSON, but no file of results: it lacks "format": "{_FORMAT}" and "results".')
    for number, result in enumerate(results):
        problem = _problem(result)
        if problem:
            raise ValueError(f"{path} is damaged: result {number} {problem}. Correct or remove it.")
    return results


def _read_if_any(path: Path) -> list[dict[str, Any]]:
    return read_results(path) if path.exists() else []


def _refuse_constant(text: str) -> None:
    raise ValueError(f"it has the number {text}")


def _problem(result: Any) -> str | None:
    """What is wrong with an entry of the file; None if nothing is."""
    if not isinstance(result, dict) or not {"name", "value"} <= result.keys():
        return 'must be an object with "name" and "value"'
    for key in ("name", "model", "dataset", "weights"):
        if not isinstance(result.get(key, ""), str):
            return f'must have a string as "{key}", not {result[key]!r:.40}'
    if isinstance(result.get("std", 0), bool) or not isinstance(result.get("std", 0), (int, float)):
        return f'must have a number as "std", not {result["std"]!r:.40}'
    return None


def of_newest_weights(results: Iterable[Result]) -> list[Result]:
    """Results, oldest first, without those of weights that aren't the last measured of their data set and model."""
    results = list(results)
    newest = {(r.get("dataset"), r.get("model")): r.get("weights") for r in results}
    return [r for r in results if r.get("weights") == newest[r.get("dataset"), r.get("model")]]


def _write(path: Path, results: list[dict[str, Any]]) -> None:
    text = json.dumps({"format": _FORMAT, "results": results}, indent=2, allow_nan=False) + "\n"
    # in the same folder, since a rename is atomic only within a file system
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def describe_device(device: torch.device | str) -> str:
    """A device in words: the GPU's name, or the CPU's kind and threads."""
    device = as_device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"
    return str(device)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from its sources
            continue
    return found
