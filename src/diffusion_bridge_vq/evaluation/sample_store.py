"""The tensors that an evaluation keeps next to its results: for pictures, and for its next start."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

STORE_FILE = "figures.safetensors"
PICTURES = {  # type, dimensions
    "samples": (torch.uint8, 4),
    "nearest": (torch.uint8, 5),
    "kl": (torch.float64, 2),
    "kl_floor": (torch.float64, 2),
}


class SampleStore:
    """
    Named tensors in one file: `KIND/MODEL` for pictures (samples, nearest, kl, kl_floor), and `codes/MODEL/KEY` for
    the codes drawn so far.

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

    def read_names(self) -> list[str]:
        """Of all tensors."""
        return list(self.read())

    def update(self, tensors: Mapping[str, torch.Tensor], remove: Iterable[str] = ()) -> None:
        """Add or replace tensors. The file is replaced as a whole, so that a killed run leaves the old or the new."""
        old, removed = self.read(), set(remove)
        kept = {name: tensor for name, tensor in old.items() if name not in removed}
        temporary = self.path.with_name(f".{self.path.name}.tmp")  # a rename is atomic only within a file system
        save_file(kept | {name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        os.replace(temporary, self.path)

    def pictures(self, kind: str) -> dict[str, torch.Tensor]:
        """
        {model: tensor} of one kind.

        Args:
            kind (`str`): "samples", uint8 (n, C, H, W); "nearest", uint8 (n, 3, C, H, W); "kl" or "kl_floor",
                float64 (h, w).

        Raises:
            ValueError: the file is damaged, or has tensors of another shape or type under these names.
        """
        dtype, ndim = PICTURES[kind]
        found = {}
        for name, tensor in self.read().items():
            if name.startswith(f"{kind}/"):
                if tensor.dtype != dtype or tensor.ndim != ndim or not tensor.numel():
                    raise ValueError(self.describe_foreign(name, tensor))
                found[name.removeprefix(f"{kind}/")] = tensor
        return found

    def draws(self, codes: str, num_codes: int, shape: tuple[int, ...]) -> torch.Tensor | None:
        """
        The codes (n, h, w) drawn so far, by their name; None if there are none.

        Args:
            num_codes (`int`): K; codes lie in 0..K-1.
            shape (`tuple[int, ...]`): (h, w).

        Raises:
            ValueError: the file is damaged, or has something else under this name.
        """
        drawn = self.read().get(codes)
        if drawn is None:
            return None
        is_map = drawn.shape[1:] == shape and len(drawn) and not drawn.is_floating_point()
        if not is_map or not 0 <= int(drawn.min()) <= int(drawn.max()) < num_codes:
            raise ValueError(self.describe_foreign(codes, drawn))
        return drawn

    def describe_foreign(self, name: str, tensor: torch.Tensor) -> str:
        """The error about a tensor that isn't what its name says."""
        return (
            f"{self.path} has {tuple(tensor.shape)} {tensor.dtype} as {name}, which no evaluation wrote: remove the "
            "file, and what it held is drawn again."
        )
