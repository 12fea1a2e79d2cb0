"""Encode a data set once, on all processes, into a folder of parquet shards."""

import dataclasses
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.utils import logging
from torch import Tensor
from tqdm.auto import tqdm

from ..data import ImageCondition, ImageDataset, StreamedImages
from ..data.encoded_shards import CONDITION, MANIFEST_NAME, Encoding, read_shard, smallest_integer, write_shard
from ..data.images import short_hash
from ..data.pixels import to_pixels
from ..models import GumbelVQModel
from ..run_folder import RunFolder
from ..sampling.arguments import check_count
from .fault_tolerance.disk import existing_place
from .fault_tolerance.run_lock import run_lock
from .monitoring.quantities import duration

logger = logging.get_logger(__name__)

_LINE_SECONDS = 30.0
# What determines codes and latents; the decoder, and how often codes were used, don't.
_ENCODING_WEIGHTS = ("encoder.", "quant_conv.", "normalizer.running", "quantize.embedding")


def encode_images(
    vqvae: GumbelVQModel,
    images: ImageDataset | StreamedImages,
    folder: Path,
    *,
    accelerator: Accelerator,
    split: str = "train",
    what: str = "latents",
    encode: Callable[[Tensor], Tensor] | None = None,
    precision: Literal["float16", "float32"] = "float16",
    mirrored: bool = False,
    batch_size: int = 64,
    condition: ImageCondition | None = None,
) -> Encoding:
    """
    Encode all images into shards below `folder`, each process its share. Called again after an interruption it goes on
    with the shards that aren't there yet, with any number of processes.

    Args:
        vqvae ([`GumbelVQModel`]): the autoencoder.
        images ([`ImageDataset`] or [`StreamedImages`]): what `load_images` or `stream_images` gives.
        folder (`Path`): new, or one that holds a part of the same encoding.
        accelerator (`Accelerator`): of all processes; each calls this function.
        split (`str`, *optional*, defaults to "train"): for the description.
        what (`str`, *optional*, defaults to "latents"): name of the column: "latents", z_e before quantization,
            "codes", or what `encode` gives.
        encode (`Callable`, *optional*, defaults to what `what` says): images (B, C, H, W) in [-1, 1] -> (B, ...).
        precision (`str`, *optional*, defaults to "float16"): of latents; codes get the smallest integer type.
        mirrored (`bool`, *optional*, defaults to `False`): write the mirror image of each image, too.
        batch_size (`int`, *optional*, defaults to 64): images encoded at a time, by each process.
        condition ([`ImageCondition`], *optional*): write what a model draws from, too. That of a column comes with
            `images`.

    Returns:
        [`Encoding`]: the content of the folder's `encoding.json`.

    Raises:
        ValueError: the folder holds something else, or is in use; latents that aren't finite; a broken image; images
            without the column of the condition.
        OSError: the disk is full, or the images can't be read. Shards that are complete stay.
    """
    if encode is None and what not in ("latents", "codes"):
        raise ValueError(f"`what` must be 'latents' or 'codes', or give `encode`; got {what!r}.")
    check_count("batch_size", batch_size)
    vqvae = vqvae.to(accelerator.device).eval()
    encoding = _describe(vqvae, images, split, what, precision, mirrored, condition)
    encode = encode or (_encode_codes(vqvae) if what == "codes" else lambda pixels: vqvae.encode(pixels).latents)

    def encode_part(part: int) -> Iterator[dict[str, Any]]:
        items = images.read_part(part, encoding.parts)
        return _encode(encode, accelerator.device, items, encoding, batch_size, condition)

    return write_encoding(encoding, folder, accelerator, encode_part)


def write_encoding(
    encoding: Encoding,
    folder: Path,
    accelerator: Accelerator,
    make_part: Callable[[int], Iterator[dict[str, Any]]],
    doing: str = "encoding",
) -> Encoding:
    """
    Write the shards of `encoding` that aren't there yet, each process its share.

    Args:
        encoding ([`Encoding`]): without what its shards say of themselves.
        folder (`Path`): new, or one that holds a part of the same encoding.
        accelerator (`Accelerator`): of all processes; each calls this function.
        make_part (`Callable`): the number of a part -> its columns, as `write_shard` takes them.
        doing (`str`, *optional*, defaults to "encoding"): what the progress bar says.

    Returns:
        [`Encoding`]: the content of the folder's `encoding.json`.

    Raises:
        ValueError: the folder holds something else, or is in use.
        OSError: the disk is full. Shards that are complete stay.
    """
    with run_lock(RunFolder(folder)) if accelerator.is_main_process else nullcontext():
        complete = _check_folder(folder, encoding)
        accelerator.wait_for_everyone()  # before the first file is written
        if complete is not None:
            return complete
        if accelerator.is_main_process:
            encoding.write(folder)
            for left in (folder / "data").glob(".*.partial"):  # of a process that was killed
                left.unlink()
        accelerator.wait_for_everyone()
        missing = [part for part in range(encoding.parts) if read_shard(encoding, folder, part) is None]
        accelerator.wait_for_everyone()  # all processes see the same ones
        if 0 < len(missing) < accelerator.num_processes:
            accelerator.print(
                f"{encoding.data['name']} has {len(missing)} parts to encode for {accelerator.num_processes} "
                "processes, so some have nothing to do; more files, or smaller row groups, make more parts."
            )
        mine = missing[accelerator.process_index :: accelerator.num_processes]
        for part in _show_progress(mine, doing, accelerator.is_main_process):
            write_shard(encoding, folder, part, make_part(part))
        accelerator.wait_for_everyone()
        encoding = _complete(encoding, folder)
        if accelerator.is_main_process:
            encoding.write(folder)
        accelerator.wait_for_everyone()
    return encoding


def _show_progress(parts: list[int], doing: str, shown: bool) -> Iterator[int]:
    """The parts, with a bar on a terminal, else with a line every half a minute."""
    started = printed = time.perf_counter()
    bar = tqdm(parts, desc=doing, unit="part", disable=None if shown else True)
    for done, part in enumerate(bar, 1):
        yield part
        now = time.perf_counter()
        if shown and bar.disable and now - printed >= _LINE_SECONDS:
            left = (now - started) / done * (len(parts) - done)
            print(f"{doing}: {done} of {len(parts)} parts  ETA {duration(left)}", flush=True)
            printed = now


def check_room(
    folder: Path,
    images: ImageDataset,
    values: Tensor,
    encoding_precision: str,
    mirrored: bool,
    condition: ImageCondition | None = None,
) -> str:
    """
    What an encoding will take on disk, without what is there of it.

    Args:
        folder (`Path`): where it will be.
        images ([`ImageDataset`]): all of them.
        values (`torch.Tensor`): (1, ...), of one image.
        encoding_precision (`str`): of what isn't whole numbers.
        mirrored (`bool`): whether mirror images are encoded, too.
        condition ([`ImageCondition`], *optional*): what is written with them.

    Returns:
        `str`: a line for people.

    Raises:
        ValueError: there is less room.
    """
    size = np.dtype(encoding_precision).itemsize if values.is_floating_point() else np.dtype("int32").itemsize
    row = values[0].numel() * size + (0 if condition is None else condition.channels * condition.side**2)
    needed = len(images) * (1 + mirrored) * row
    needed -= sum(file.stat().st_size for file in folder.glob("data/*.parquet"))
    free = shutil.disk_usage(existing_place(folder)).free
    line = f"disk: at most {max(0, needed) / 1024**2:.0f} MiB more for {folder}, {free / 1024**2:.0f} MiB free"
    if free < needed:
        raise ValueError(f"{line}. Free some, or encode with float16 by `encode_dataset.py` and give `latents`.")
    return line


def _encode_codes(vqvae: GumbelVQModel) -> Callable[[Tensor], Tensor]:
    return lambda pixels: vqvae.encode_codes(vqvae.encode(pixels).latents)


def _complete(encoding: Encoding, folder: Path) -> Encoding:
    """With what the shards say of themselves."""
    shards = [read_shard(encoding, folder, part) for part in range(encoding.parts)]
    some = next((shard for shard in shards if shard is not None), None)
    if some is None:
        raise ValueError(f"{encoding.data['name']} has no images; choose another split")
    rows = [0 if shard is None else shard.rows for shard in shards]
    return dataclasses.replace(encoding, rows=rows, shape=some.shape, dtype=some.dtype)


def encoder_fingerprint(vqvae: GumbelVQModel) -> str:
    """16 hexadecimal digits over the weights on which latents and codes depend."""
    state = {name: t for name, t in vqvae.state_dict().items() if name.startswith(_ENCODING_WEIGHTS)}
    parts = [part for name in sorted(state) for part in (name.encode(), state[name].float().cpu().numpy().tobytes())]
    return short_hash(*parts)


def describe_normalizer(vqvae: GumbelVQModel) -> dict[str, list[float]]:
    """Mean and variance of each latent channel before it is normalized."""
    normalizer = vqvae.normalizer
    return {"mean": normalizer.running_mean.tolist(), "variance": normalizer.running_var.tolist()}


def _describe(
    vqvae: GumbelVQModel,
    images: ImageDataset | StreamedImages,
    split: str,
    what: str,
    precision: str,
    mirrored: bool,
    condition: ImageCondition | None,
) -> Encoding:
    from .. import __version__

    channels, side = images.image_shape[0], images.image_shape[1]
    if side % vqvae.downsampling_factor:
        raise ValueError(f"`resolution` must be divisible by {vqvae.downsampling_factor}, got {side}.")
    if channels != vqvae.config.in_channels:
        raise ValueError(f"The autoencoder takes images of {vqvae.config.in_channels} channels, got {channels}.")
    if condition is not None and condition.column is not None and not images.has_conditions:
        raise ValueError(f"{images.name} was opened without the column of `condition` {condition.name!r}.")
    return Encoding(
        what=what,
        precision=precision,
        num_codes=vqvae.config.num_vq_embeddings,
        mirrored=mirrored,
        autoencoder=encoder_fingerprint(vqvae),
        normalizer=describe_normalizer(vqvae),
        data={
            "name": images.name,
            "split": split,
            "fingerprint": images.fingerprint,
            "resolution": side,
            "channels": channels,
        },
        class_names=images.class_names,
        labels=images.has_labels,
        parts=images.count_parts(),
        version=__version__,
        condition=None if condition is None else condition.name,
    )


def _check_folder(folder: Path, encoding: Encoding) -> Encoding | None:
    """The encoding that is there if it is complete; ValueError if the folder holds something else."""
    if not (folder / MANIFEST_NAME).exists():
        others = sorted(path.name for path in folder.glob("[!.]*"))
        if others:
            raise ValueError(f"{str(folder)!r} isn't empty: it holds {', '.join(others[:3])}; give a new folder.")
        return None
    found = Encoding.read(folder)
    if difference := encoding.difference(found):
        raise ValueError(
            f"{str(folder)!r} holds another encoding: {difference}; give a new folder, or remove this one."
        )
    if found.rows is None:
        return None
    if any((read_shard(found, folder, part) or (0,))[0] != rows for part, rows in enumerate(found.rows)):
        logger.warning(f"Shards of {folder} are missing or have other rows; they are encoded again.")
        return None
    return found


@torch.no_grad()
def _encode(
    encode: Callable[[Tensor], Tensor],
    device: torch.device,
    items: Iterator[tuple[str, dict[str, Tensor]]],
    encoding: Encoding,
    batch_size: int,
    condition: ImageCondition | None,
) -> Iterator[dict[str, Any]]:
    """Columns of a few images at a time; each image comes before its mirror image."""
    versions = (False, True) if encoding.mirrored else (False,)
    while batch := list(itertools.islice(items, batch_size)):
        tensors = {name: torch.stack([item[name] for _, item in batch]) for name in batch[0][1]}
        pixels = to_pixels(tensors["images"].to(device))
        parts = [encode(pixels.flip(-1) if flip else pixels) for flip in versions]
        values = _alternate(parts)
        columns: dict[str, Any] = {"key": [key for key, _ in batch for _ in versions]}
        columns[encoding.what] = to_array(values, encoding, columns["key"])
        if encoding.mirrored:
            columns["mirrored"] = [flip for _ in batch for flip in versions]
        if encoding.labels:
            columns["label"] = tensors["labels"].repeat_interleave(len(versions)).tolist()
        if condition is not None:
            shown = condition.of_items(tensors)
            columns[CONDITION] = _alternate([shown.flip(-1) if flip else shown for flip in versions]).numpy()
        yield columns


def _alternate(parts: list[Tensor]) -> Tensor:
    """Versions (B, ...) of the same images -> rows, all versions of an image one after the other."""
    return torch.stack(parts, dim=1).flatten(0, 1)


def to_array(values: Tensor, encoding: Encoding, keys: list[str]) -> np.ndarray:
    """In the type that is written."""
    if not values.is_floating_point():
        dtype = smallest_integer(encoding.num_codes) if encoding.what == "codes" else "int64"
        return values.cpu().numpy().astype(dtype)
    sizes = values.flatten(1).abs().amax(1)
    bad = torch.nonzero(~(sizes <= float(np.finfo(encoding.precision).max))).flatten()  # NaN included
    if len(bad):
        found = f"{encoding.what} of {sizes[bad[0]].item():.4g}, which {encoding.precision} can't hold"
        wider = "" if encoding.precision == "float32" else ", or encode with float32"
        if "guidance_scale" in encoding.data:
            scale = encoding.data["guidance_scale"]
            raise ValueError(
                f"Number {keys[int(bad[0])]} has {found}: take a lower guidance scale than {scale:g}{wider}."
            )
        raise ValueError(f"Image {keys[int(bad[0])]} has {found}; the autoencoder may be damaged{wider}.")
    return values.cpu().numpy().astype(encoding.precision)
