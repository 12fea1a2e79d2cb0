"""Images encoded once, for the training of a prior on a frozen autoencoder."""

from typing import Literal

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..data.pixels import to_pixels
from ..models import GumbelVQModel


class EncodedImages(Dataset[dict[str, torch.Tensor]]):
    """
    z_e or codes of every image in the device's memory, with the labels.

    Args:
        vqvae ([`GumbelVQModel`]): the autoencoder.
        images (`Dataset`): what `load_images` gives, or a part of it.
        what (`str`): "latents", z_e (N, d, h, w), or "codes", (N, h, w).
        batch_size (`int`), num_workers (`int`): of the encoding.
        device (`torch.device`): where everything goes.
        mirrored (`bool`): have the mirror image of every image, too.
    """

    @torch.no_grad()
    def __init__(
        self,
        vqvae: GumbelVQModel,
        images: Dataset,
        what: Literal["latents", "codes"],
        batch_size: int,
        num_workers: int,
        device: torch.device,
        mirrored: bool,
    ):
        vqvae = vqvae.to(device).eval()
        parts: dict[str, list[torch.Tensor]] = {what: [], "labels": []}
        loader = DataLoader(images, batch_size=batch_size, num_workers=num_workers)
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws a seed; the run's randomness stays as it was
            for flip in (False, True) if mirrored else (False,):
                for batch in tqdm(loader, desc="encoding", unit="batch"):
                    pixels = to_pixels(batch["images"].to(device))
                    latents = vqvae.encode(pixels.flip(-1) if flip else pixels).latents
                    parts[what].append(vqvae.encode_codes(latents) if what == "codes" else latents)
                    if "labels" in batch:
                        parts["labels"].append(batch["labels"].to(device))
        self.tensors = {name: torch.cat(tensors) for name, tensors in parts.items() if tensors}

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """A whole batch by one index operation each."""
        rows = torch.tensor(indices, device=next(iter(self.tensors.values())).device)
        return {name: tensor[rows] for name, tensor in self.tensors.items()}

    @staticmethod
    def collate(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return batch
