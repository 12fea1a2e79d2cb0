"""The tensors that an [`Evaluator`] keeps beside its results: for figures, and for its next start."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

# Its tensors are named samples/MODEL, kl/MODEL, kl_floor/MODEL for figures, and codes/MODEL/KEY, generator/MODEL/KEY.
KEPT_FILE = "figures.safetensors"


def load_kept(path: Path) -> dict[str, torch.Tensor]:
    """
    What evaluators have kept; nothing if there is no file.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return load_file(path) if path.is_file() else {}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and what it held is drawn anew.") from error


def save_kept(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replaces the file as a whole, so that a killed run leaves the old or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")  # in the same folder, since a rename is atomic only there
    save_file(tensors, temporary)
    os.replace(temporary, path)


def of_kind(kept: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """{model: tensor} of one kind, e.g. "samples"."""
    return {name.removeprefix(f"{kind}/"): kept[name] for name in kept if name.startswith(f"{kind}/")}
