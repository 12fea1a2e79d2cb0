"""The tensors that an evaluation keeps next to its results: for pictures, and for its next start."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

STORE_FILE = "figures.safetensors"


class SampleStore:
    """
    Named tensors in one file: `KIND/MODEL` for pictures (samples, kl, kl_floor), and `codes/MODEL/KEY` with
    `generator/MODEL/KEY` for the codes drawn so far and the state of their generator.

    Args:
        path (`Path`): of the file. It does not have to exist.
    """

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> dict[str, torch.Tensor]:
        """
        All tensors; none if there is no file.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            return load_file(self.path) if self.path.is_file() else {}
        except SafetensorError as error:
            raise ValueError(
                f"{self.path} is damaged ({error}): remove it, and what it held is drawn again."
            ) from error

    def update(self, tensors: Mapping[str, torch.Tensor], remove: Iterable[str] = ()) -> None:
        """Add or replace tensors. The file is replaced as a whole, so that a killed run leaves the old or the new."""
        old, removed = self.read(), set(remove)
        kept = {name: tensor for name, tensor in old.items() if name not in removed}
        temporary = self.path.with_name(f".{self.path.name}.tmp")  # a rename is atomic only within a file system
        save_file(kept | {name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        os.replace(temporary, self.path)

    def pictures(self, kind: str) -> dict[str, torch.Tensor]:
        """{model: tensor} of one kind, e.g. "samples"."""
        prefix = f"{kind}/"
        return {name.removeprefix(prefix): tensor for name, tensor in self.read().items() if name.startswith(prefix)}
