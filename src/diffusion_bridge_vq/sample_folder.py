"""Folders of drawn images: image files, in the layout that public FID tools read, drawn by one or many processes."""

import itertools
import json
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from tqdm.auto import tqdm

from .evaluation.fingerprints import fingerprint, fingerprint_tensors
from .grids import image_grid
from .pipelines.base import VQPipeline
from .run_folder import RunFolder
from .sampling import generators_for
from .training.agreement import on_main_process
from .training.fault_tolerance.run_lock import run_lock

SETTINGS_NAME = "sampling.json"
GRID_NAME = "grid.png"
NPZ_NAME = "images.npz"
_GRID_IMAGES = 64
_END_OF_PNG = b"IEND\xaeB`\x82"


def draw_into_folder(
    pipe: VQPipeline,
    folder: Path,
    *,
    num_images: int,
    accelerator: Accelerator,
    seed: int = 0,
    batch_size: int = 64,
    class_labels: Sequence[int | str] | None = None,
    conditions: Sequence[torch.Tensor] | None = None,
    npz: bool = False,
    tile_size: int = 64,
    **options: Any,
) -> list[Path]:
    """
    Draw images into `folder`/images, each process its share, and the first of them into a grid. Image i depends on the
    pipeline, `seed`, its class, its condition and i alone, but for rounding. Called again with the same settings, or
    with more images, it draws those that aren't there yet, with any number of processes.

    Args:
        pipe ([`VQPipeline`]): on the device of this process.
        folder (`Path`): new, or one that holds a part of the same images.
        num_images (`int`): at least 1.
        accelerator (`Accelerator`): of all processes; each calls this function.
        seed (`int`, *optional*, defaults to 0): of the set.
        batch_size (`int`, *optional*, defaults to 64): images drawn at a time, by each process.
        class_labels (`Sequence[int | str]`, *optional*): classes that the images take in turn, or texts where classes
            are words.
        conditions (`Sequence[torch.Tensor]`, *optional*): what a model draws from, (C, s, s) in [0, 1]; the images
            take them in turn.
        npz (`bool`, *optional*, defaults to `False`): write all images into one file, too, as guided-diffusion's
            evaluator reads it: `arr_0` is uint8 (n, H, W, 3), `arr_1` the classes if they are numbers.
        tile_size (`int`, *optional*, defaults to 64): of the grid, see [`image_grid`].
        options: of the pipeline's call.

    Returns:
        `list[Path]`: what was written besides the images, on the main process; nothing on the others.

    Raises:
        ValueError: the folder holds something else, or images of other settings, or another call draws into it.
        OSError: the disk is full. Images that are there stay.
    """
    labels = None if class_labels is None else list(class_labels)
    settings = {"weights": fingerprint(*pipe.components.values()), "seed": seed, "class_labels": labels, **options}
    settings["conditions"] = fingerprint_tensors(*conditions) if conditions else None
    with ExitStack() as stack:

        def begin() -> list[int]:
            _check(folder, settings, num_images)  # before a folder is made
            stack.enter_context(run_lock(RunFolder(folder)))
            _check(folder, settings, num_images)
            (folder / "images").mkdir(exist_ok=True)
            for partial in (folder / "images").glob(".*.partial"):  # of a process that was killed
                partial.unlink()
            _write(folder / SETTINGS_NAME, json.dumps({"num_images": num_images, **settings}, indent=1).encode())
            return [number for number in range(num_images) if not _is_whole(image_path(folder, number))]

        missing = on_main_process(accelerator, begin)
        size = max(1, min(batch_size, math.ceil(len(missing) / accelerator.num_processes)))
        batches = [missing[start : start + size] for start in range(0, len(missing), size)]
        mine = batches[accelerator.process_index :: accelerator.num_processes]
        for numbers in tqdm(mine, desc="drawing", unit="batch", disable=not accelerator.is_main_process):
            generators = generators_for(seed, numbers)
            classes = None if labels is None else [labels[number % len(labels)] for number in numbers]
            own = options
            if conditions:
                own = options | {"condition": [conditions[number % len(conditions)] for number in numbers]}
            images = pipe(batch_size=len(numbers), generator=generators, class_labels=classes, **own).images
            for number, image in zip(numbers, images, strict=True):
                _save(image_path(folder, number), image)
        accelerator.wait_for_everyone()
        if not accelerator.is_main_process:
            return []
        images = [_read(image_path(folder, number)) for number in range(min(num_images, _GRID_IMAGES))]
        grid = image_grid(images, columns=math.ceil(math.sqrt(len(images))), tile_size=tile_size)
        _save(folder / GRID_NAME, grid)
        written = [folder / GRID_NAME]
        if npz:
            numbers = [label for label in labels or [] if isinstance(label, int)]
            of_all = list(itertools.islice(itertools.cycle(numbers), num_images))
            written.append(write_npz(folder, num_images, of_all if numbers and numbers == labels else None))
        return written


def image_path(folder: Path, number: int) -> Path:
    return folder / "images" / f"{number:07}.png"


def write_npz(folder: Path, num_images: int, labels: Sequence[int] | None) -> Path:
    """The images of a folder in one file, see [`draw_into_folder`]. One image at a time is in memory."""
    path = folder / NPZ_NAME
    partial = path.with_name(f".{path.name}.partial")
    first = _read(image_path(folder, 0))
    shape = (num_images, first.height, first.width, 3)
    pixels = (np.asarray(_read(image_path(folder, i)).convert("RGB")) for i in range(num_images))
    with zipfile.ZipFile(partial, "w") as archive:
        _write_array(archive, "arr_0", shape, np.dtype(np.uint8), pixels)
        if labels is not None:
            _write_array(archive, "arr_1", (num_images,), np.dtype(np.int64), iter([np.array(labels, np.int64)]))
    os.replace(partial, path)
    return path


def _write_array(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype, parts: Iterator[np.ndarray]
) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.tobytes())


def _check(folder: Path, settings: dict[str, Any], num_images: int) -> None:
    """
    Raises:
        ValueError: the folder can't take images of these settings.
    """
    path = folder / SETTINGS_NAME
    if not path.exists():
        others = sorted(each.name for each in folder.glob("[!.]*"))
        if others:
            raise ValueError(f"{str(folder)!r} isn't empty: it holds {', '.join(others[:3])}; give a new folder.")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        count = int(before["num_images"])
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ValueError(
            f"{str(path)!r} doesn't describe drawn images: remove the folder, or give another."
        ) from error
    different = [f"{k} {before.get(k)!r} then, {v!r} now" for k, v in settings.items() if before.get(k) != v]
    if not any((folder / "images").glob("[!.]*")):  # a call that was refused, with settings that nobody wants
        return
    if different:
        raise ValueError(
            f"{str(folder)!r} holds images of other settings ({'; '.join(different)}): give a new folder, or the "
            "settings of then."
        )
    if count > num_images:
        raise ValueError(
            f"{str(folder)!r} is for {count} images, more than {num_images}: give as many, or a new folder."
        )


def _is_whole(path: Path) -> bool:
    """Whether an image is there to its end, which after a power cut it might not be."""
    try:
        with path.open("rb") as file:
            file.seek(-len(_END_OF_PNG), os.SEEK_END)
            return file.read() == _END_OF_PNG
    except OSError:
        return False


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
    return image


def _save(path: Path, image: Image.Image) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        image.save(partial, "PNG")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"{path} can't be written: {error.strerror or error}. Images that are there stay; the same command draws "
            "the others",
        ) from error


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
