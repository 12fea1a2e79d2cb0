"""
Figures from what runs have saved.

Those with axes need the extra `plots` (matplotlib); without it they say so and make nothing, since a picture is no
reason to lose a run. Sheets of images need nothing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from .grids import image_grid
from .run_folder import RunFolder


def plot_metrics(run_dir: Path) -> Path | None:
    """
    Curves of `run_dir`/metrics.jsonl as `run_dir`/curves.png: losses, latents and codebook, step by step.

    Returns:
        `Path` of the picture; None without matplotlib, or if there is nothing to plot.
    """
    records = RunFolder(run_dir).read_metrics()
    panels = {
        "loss terms, weighted": [k for k in _names(records) if k.startswith("loss/")],
        "latent rms": ["train/latent_rms"],
        "codebook perplexity": ["codebook/perplexity"],
        "held-out bits per code": ["heldout/bits_per_code"],
    }
    panels = {title: names for title, names in panels.items() if set(names) & set(_names(records))}
    figure = new_figure(figsize=(12, 3.2)) if panels else None
    if figure is None:
        return None
    for axes, (title, names) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for name in names:
            points = [(r["step"], r[name]) for r in records if name in r]
            axes.plot(*zip(*points, strict=True) if points else ([], []), label=name.split("/")[1])
        axes.set(title=title, xlabel="step")
        if len(names) > 1:
            axes.set_yscale("symlog", linthresh=1e-3)
            axes.legend(fontsize="small")
    return save_figure(figure, RunFolder(run_dir).curves)


def plot_runs(run_dirs: dict[str, Path], path: Path) -> Path | None:
    """
    Runs side by side: latent rms, perplexity of the codes in a batch, and the last grid of samples of each.

    Args:
        run_dirs (`dict[str, Path]`): {name: folder of a run}.
        path (`Path`): of the picture.

    Returns:
        `path`; None without matplotlib.

    Raises:
        ValueError: no run, or one without metrics or a grid of samples.
    """
    if not run_dirs:
        raise ValueError("`run_dirs` is empty: name at least one run.")
    grids = {}
    for name, folder in run_dirs.items():
        grid = RunFolder(folder).newest_grid("samples")
        if grid is None or not RunFolder(folder).read_metrics():
            raise ValueError(f"{folder} must have metrics.jsonl and samples-STEP.png: is it the folder of a run?")
        grids[name] = grid
    figure = new_figure(figsize=(3 * (2 + len(run_dirs)), 3.6))
    if figure is None:
        return None
    axes = figure.subplots(1, 2 + len(run_dirs))
    for curve, key in zip(axes, ("latent_rms", "batch_perplexity"), strict=False):
        for name, folder in run_dirs.items():
            records = RunFolder(folder).read_metrics()
            points = [(r["step"], r[f"train/{key}"]) for r in records if f"train/{key}" in r]
            curve.plot(*zip(*points, strict=True) if points else ([], []), label=name)
        curve.set(title=key.replace("_", " "), xlabel="step")
        curve.set_ylim(bottom=0)
        curve.legend()
    for picture, (name, grid) in zip(axes[2:], grids.items(), strict=True):
        picture.imshow(Image.open(grid), cmap="gray", vmin=0, vmax=255)
        picture.set(title=f"samples, {name}")
        picture.axis("off")
    return save_figure(figure, path)


def _names(records: list[dict]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record))


def inpainting_sheet(run_dir: Path) -> Path:
    """
    Figures 6, 7 and 17 from `run_dir`/inpainting.safetensors, which examples/inpaint.py wrote, as inpainting.png.

    One row per image: what is known, the completions, the reconstruction of the whole image.

    Raises:
        ValueError: the file is missing or damaged, or holds something else.
    """
    # (n, C, H, W) and completions (n, k, C, H, W), in [0, 1]
    saved = _read_tensors(run_dir / "inpainting.safetensors", masked=4, completions=5, reconstructions=4)
    tiles = []
    for masked, completions, reconstruction in zip(
        saved["masked"], saved["completions"], saved["reconstructions"], strict=True
    ):
        tiles += [*_images(masked[None]), *_images(completions), *_images(reconstruction[None])]
    grid = image_grid(tiles, columns=len(tiles) // len(saved["masked"]))
    grid.save(run_dir / "inpainting.png")
    return run_dir / "inpainting.png"


def chain_sheet(run_dir: Path) -> Path:
    """
    Figures 8, 9 and 18 from `run_dir`/chain.safetensors, as chain.png: one row per image, one column per step.

    Raises:
        ValueError: the file is missing or damaged, or holds something else.
    """
    chain = _read_tensors(run_dir / "chain.safetensors", chain=5)["chain"]  # (steps, n, C, H, W) in [0, 1]
    grid = image_grid(_images(chain.transpose(0, 1).flatten(0, 1)), columns=len(chain))
    grid.save(run_dir / "chain.png")
    return run_dir / "chain.png"


def sample_sheets(samples: Mapping[str, torch.Tensor], folder: Path) -> list[Path]:
    """
    Figure 5 as samples-MODEL.png in `folder`.

    Args:
        samples (`Mapping[str, torch.Tensor]`): {model: uint8 (n, C, H, W)}.
        folder (`Path`): exists.

    Raises:
        ValueError: no image, or images of another shape.
    """
    for model, images in samples.items():
        if images.ndim != 4 or images.dtype != torch.uint8 or not images.numel():
            raise ValueError(f"Samples of {model} must be uint8 (n, C, H, W), got {_describe(images)}.")
    paths = []
    for model, images in samples.items():
        paths.append(folder / f"samples-{model}.png")
        image_grid(_images(images.float() / 255), columns=8).save(paths[-1])
    return paths


def nearest_sheets(nearest: Mapping[str, torch.Tensor], folder: Path) -> list[Path]:
    """
    Samples next to training images, as nearest-MODEL.png in `folder`: three times, from left to right, a sample, its
    nearest training image in features, and that in pixels.

    Args:
        nearest (`Mapping[str, torch.Tensor]`): {model: uint8 (n, 3, C, H, W)}.
        folder (`Path`): exists.

    Raises:
        ValueError: no image, or images of another shape.
    """
    paths = []
    for model, images in nearest.items():
        if images.ndim != 5 or images.shape[1] != 3 or images.dtype != torch.uint8 or not images.numel():
            raise ValueError(f"Images of {model} must be uint8 (n, 3, C, H, W), got {_describe(images)}.")
        paths.append(folder / f"nearest-{model}.png")
        image_grid(_images(images.flatten(0, 1).float() / 255), columns=9).save(paths[-1])
    return paths


def plot_kl_maps(maps: Mapping[str, torch.Tensor], floors: Mapping[str, torch.Tensor], folder: Path) -> list[Path]:
    """
    Figure 4 as kl_maps.png in `folder`, on one scale.

    Args:
        maps (`Mapping[str, torch.Tensor]`): {model: KL of samples against test images, (h, w) in nats}.
        floors (`Mapping[str, torch.Tensor]`): the same of train against test images.
        folder (`Path`): exists.

    Returns:
        `list[Path]`: that picture; none without matplotlib or maps.

    Raises:
        ValueError: maps that aren't (h, w), or have no finite value.
    """
    panels = {**maps, **{f"{model}: train against test": floor for model, floor in floors.items()}}
    for title, values in panels.items():
        if values.ndim != 2 or not values.isfinite().any():
            raise ValueError(f"The map of {title} must be (h, w) with finite values, got {_describe(values)}.")
    figure = new_figure(figsize=(3.2 * len(panels), 3)) if panels else None
    if figure is None:
        return []
    largest = max(float(values[values.isfinite()].max()) for values in panels.values())
    for axes, (title, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        image = axes.imshow(values, vmin=0, vmax=largest, cmap="magma")
        axes.set_title(f"{title}\nmean {float(values.mean()):.3f} nats", fontsize="small")
    figure.colorbar(image, ax=axes)
    return [save_figure(figure, folder / "kl_maps.png")]


def _read_tensors(path: Path, **dimensions: int) -> dict[str, torch.Tensor]:
    """The tensors of a file, each with this number of dimensions and at least one value."""
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        saved = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    for name, number in dimensions.items():
        if name not in saved or saved[name].ndim != number or not saved[name].numel():
            found = _describe(saved[name]) if name in saved else ", ".join(saved) or "nothing"
            raise ValueError(f"{path} must have a tensor {name!r} of {number} dimensions, got {found}.")
    return saved


def _describe(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def _images(pixels: Any) -> list[Image.Image]:
    """(n, C, H, W) in [0, 1] -> PIL."""
    return VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(pixels))


def new_figure(**options: Any) -> Any:
    """A matplotlib figure; None, with a message, without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print('No figure: matplotlib is missing: the extra `plots` (`pip install -e ".[plots]"` in the repository).')
        return None
    return Figure(layout="constrained", **options)


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure; returns `path`."""
    figure.savefig(path, dpi=120)
    return path
