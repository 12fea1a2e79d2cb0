"""From the settings of a run to its images, and to what its loop iterates over."""

from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from ..data import ImageDataset, StreamedImages, load_images, stream_images
from ..data.pixels import to_pixels
from ..models import GumbelVQModel
from .config import PixelCNNConfig, PriorConfig, RunConfig
from .fault_tolerance.signals import outlive_first_signal


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


def hold_out(images: Dataset, fraction: float, seed: int) -> tuple[Subset, Subset]:
    """
    Images to train on, and a share of them (at least one image, rounded) that is held out, drawn by `seed`.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()  # type: ignore[arg-type]
    count = max(1, round(fraction * len(order)))
    return Subset(images, sorted(order[count:])), Subset(images, sorted(order[:count]))


class Loaded(NamedTuple):
    """`loader`: of the training batches. `held_out`: codes of the images that a PixelCNN's early stopping looks at."""

    loader: DataLoader
    held_out: EncodedImages | None = None


def open_images(config: RunConfig) -> ImageDataset | StreamedImages:
    """The images of `config.split`, in memory, on disk or streamed. Raises as `load_images` and `stream_images`."""
    if config.streaming:
        return stream_images(
            config.dataset,
            split=config.split,
            seed=config.seed,
            buffer_size=config.shuffle_buffer,
            **image_options(config),
        )
    return load_images(config.dataset, split=config.split, **image_options(config))


def make_loader(
    config: RunConfig, accelerator: Accelerator, vqvae: GumbelVQModel, images: ImageDataset | StreamedImages
) -> Loaded:
    """
    Batches of images, or of their latents or codes, which are made here.

    Raises:
        ValueError: fewer images than one batch of all processes.
    """
    workers: dict[str, Any] = {"num_workers": config.num_workers, "pin_memory": accelerator.device.type == "cuda"}
    workers["worker_init_fn"] = outlive_first_signal
    batch = config.batch_size * accelerator.num_processes
    too_few = f"{images.name} has {{}} images to train on, fewer than one batch of {batch}."
    if isinstance(images, StreamedImages):
        accelerator.print(f"a stream of {images.name}")
        first = len(images.head(batch))
        if first < batch:
            raise ValueError(too_few.format(first))
        return Loaded(DataLoader(images, batch_size=config.batch_size, drop_last=True, **workers))
    training: Dataset = images
    encoding = (config.batch_size, config.num_workers, accelerator.device)
    held_out = None
    if isinstance(config, PixelCNNConfig):
        training, judged = hold_out(images, config.holdout_fraction, config.seed)
        if not config.dry_run:
            held_out = EncodedImages(vqvae, judged, "codes", *encoding, mirrored=False)
    count = len(training)  # type: ignore[arg-type]
    accelerator.print(f"{count} images of {images.name} to train on")
    if count < batch:
        raise ValueError(too_few.format(count))
    cached: Literal["codes", "latents"] | None = "codes" if isinstance(config, PixelCNNConfig) else None
    if isinstance(config, PriorConfig) and config.cache_latents:
        cached = "latents"
    if cached and not config.dry_run:  # whose batches the objective encodes
        training = EncodedImages(vqvae, training, cached, *encoding, mirrored=config.random_flip)
    if isinstance(training, EncodedImages):
        workers = {"collate_fn": EncodedImages.collate}
    else:
        workers["collate_fn"] = ImageDataset.collate  # also of a Subset, which passes batches through
    loader = DataLoader(training, batch_size=config.batch_size, shuffle=True, drop_last=True, **workers)
    return Loaded(loader, held_out)


def preview_images(images: ImageDataset | StreamedImages, count: int) -> torch.Tensor:
    """`count` images, fewer of a small set, uint8 (n, C, H, W): from all over the data set, the first of a stream."""
    if isinstance(images, StreamedImages):
        return torch.stack([item["images"] for item in images.head(count)])
    indices = torch.linspace(0, len(images) - 1, min(count, len(images)), dtype=torch.float64).long().tolist()
    return torch.stack([images[i]["images"] for i in indices])


def image_options(config: RunConfig) -> dict[str, Any]:
    return {
        "resolution": config.resolution,
        "channels": config.channels,
        "image_column": config.image_column,
        "label_column": config.label_column,
    }
