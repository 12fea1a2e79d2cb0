"""
Figures from what runs have saved.

Those with axes need the extra `plots` (matplotlib); without it they say so and make nothing, since a picture is no
reason to lose a run. Sheets of images need nothing.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from safetensors.torch import load_file

from .data.toy import LENGTH
from .grids import image_grid

_COLORS = [f"C{i}" for i in range(LENGTH)]  # one per position of a sequence


def plot_metrics(run_dir: Path) -> Path | None:
    """
    Curves of `run_dir`/metrics.jsonl as `run_dir`/curves.png: losses, latents and codebook, step by step.

    Returns:
        `Path` of the picture; None without matplotlib.
    """
    figure = _figure(figsize=(12, 3.2))
    if figure is None:
        return None
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    panels = {
        "loss terms, weighted": [k for k in _names(records) if k.startswith("loss/")],
        "latent rms": ["train/latent_rms"],
        "codebook perplexity": ["codebook/perplexity"],
        "held-out bits per code": ["heldout/bits_per_code"],
    }
    panels = {title: names for title, names in panels.items() if set(names) & set(_names(records))}
    for axes, (title, names) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for name in names:
            points = [(r["step"], r[name]) for r in records if name in r]
            axes.plot(*zip(*points, strict=True) if points else ([], []), label=name.split("/")[1])
        axes.set(title=title, xlabel="step")
        if len(names) > 1:
            axes.set_yscale("symlog", linthresh=1e-3)
            axes.legend(fontsize="small")
    path = run_dir / "curves.png"
    figure.savefig(path, dpi=120)
    return path


def plot_runs(run_dirs: dict[str, Path], path: Path) -> Path | None:
    """
    Runs side by side: latent rms, perplexity of the codes in a batch, and the last grid of samples of each.

    Args:
        run_dirs (`dict[str, Path]`): {name: folder of a run}.
        path (`Path`): of the picture.

    Returns:
        `path`; None without matplotlib.
    """
    figure = _figure(figsize=(3 * (2 + len(run_dirs)), 3.6))
    if figure is None:
        return None
    axes = figure.subplots(1, 2 + len(run_dirs))
    for curve, key in zip(axes, ("latent_rms", "batch_perplexity"), strict=False):
        for name, folder in run_dirs.items():
            records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            points = [(r["step"], r[f"train/{key}"]) for r in records if f"train/{key}" in r]
            curve.plot(*zip(*points, strict=True), label=name)
        curve.set(title=key.replace("_", " "), xlabel="step")
        curve.set_ylim(bottom=0)
        curve.legend()
    for picture, (name, folder) in zip(axes[2:], run_dirs.items(), strict=True):
        newest = max(folder.glob("samples-*.png"), key=lambda path: (len(path.name), path.name))
        picture.imshow(Image.open(newest), cmap="gray", vmin=0, vmax=255)
        picture.set(title=f"samples, {name}")
        picture.axis("off")
    return _save(figure, path)


def _names(records: list[dict]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record))


def plot_toy(run_dir: Path) -> list[Path]:
    """
    Figures 3, 11 and 12 from `run_dir`/toy.safetensors, which examples/toy_bridge.py wrote.

    Returns:
        `list[Path]`: toy_trajectories.png, toy_codebook.png, toy_inpainting.png; none without matplotlib.
    """
    saved = load_file(run_dir / "toy.safetensors")
    centres = saved["true_codebook"]

    def panel(axes: Any, title: str) -> Any:
        axes.scatter(*centres.T, s=60, facecolors="none", edgecolors="gray")
        for code, (x, y) in enumerate(centres.tolist()):
            axes.annotate(str(code), (1.2 * x, 1.2 * y), ha="center", va="center", color="gray")
        axes.set(title=title, xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
        return axes

    paths = []
    figure = _figure(figsize=(9, 4.5))
    if figure is None:
        return []
    for axes, name, title in zip(
        figure.subplots(1, 2), ("forward", "reverse"), ("noising, t = 0 to 50", "denoising, t = 50 to 0"), strict=True
    ):
        panel(axes, title)
        for place, color in enumerate(_COLORS):
            path = saved[name][:, :, place]  # (T + 1, 2)
            axes.plot(*path.T, color=color, linewidth=0.8, alpha=0.6)
            axes.scatter(*path[-1], color=color, s=25, zorder=3, label=f"$q_{place + 1}$")
        axes.legend(fontsize="small", loc="upper right", title="end")
    paths.append(_save(figure, run_dir / "toy_trajectories.png"))

    figure = _figure(figsize=(12, 4.2))
    panels = {
        "initial_codebook": "before",
        "codebook_gamma": "after, with $L^{reg}$",
        "codebook_none": "without",
    }
    for axes, (name, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        panel(axes, title).scatter(*saved[name].T, marker="x", color="C3")
        for code, (x, y) in enumerate(saved[name].tolist()):
            axes.annotate(str(code), (x, y), xytext=(5, 5), textcoords="offset points", color="C3", fontsize="small")
    paths.append(_save(figure, run_dir / "toy_codebook.png"))

    figure = _figure(figsize=(12, 4.2))
    completions = saved["completions"]  # (3, 2, 5)
    for axes, completion in zip(figure.subplots(1, len(completions)), completions, strict=True):
        codes = (completion.T[:, None] - centres).square().sum(-1).argmin(1).tolist()
        panel(axes, str(tuple(codes))).plot(*completion, color="gray", linewidth=0.8)
        for place, color in enumerate(_COLORS):
            axes.scatter(*completion[:, place], color=color, zorder=3, label=f"$q_{place + 1}$")
        axes.legend(fontsize="small", loc="center")
    paths.append(_save(figure, run_dir / "toy_inpainting.png"))
    return paths


def inpainting_sheet(run_dir: Path) -> Path:
    """
    Figures 6, 7 and 17 from `run_dir`/inpainting.safetensors, which examples/inpaint.py wrote, as inpainting.png.

    One row per image: what is known, the completions, the reconstruction of the whole image.
    """
    saved = load_file(run_dir / "inpainting.safetensors")  # (n, C, H, W) and completions (n, k, C, H, W), in [0, 1]
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
    """
    chain = load_file(run_dir / "chain.safetensors")["chain"]  # (steps, n, C, H, W) in [0, 1]
    grid = image_grid(_images(chain.transpose(0, 1).flatten(0, 1)), columns=len(chain))
    grid.save(run_dir / "chain.png")
    return run_dir / "chain.png"


def sample_sheets(samples: Mapping[str, torch.Tensor], folder: Path) -> list[Path]:
    """
    Figure 5 as samples-MODEL.png in `folder`.

    Args:
        samples (`Mapping[str, torch.Tensor]`): {model: uint8 (n, C, H, W)}.
        folder (`Path`): exists.
    """
    paths = []
    for model, images in samples.items():
        paths.append(folder / f"samples-{model}.png")
        image_grid(_images(images.float() / 255), columns=8).save(paths[-1])
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
    """
    panels = {**maps, **{f"{model}: train against test": floor for model, floor in floors.items()}}
    figure = _figure(figsize=(3.2 * len(panels), 3)) if panels else None
    if figure is None:
        return []
    largest = max(float(values.max()) for values in panels.values())
    for axes, (title, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        image = axes.imshow(values, vmin=0, vmax=largest, cmap="magma")
        axes.set_title(f"{title}\nmean {float(values.mean()):.3f} nats", fontsize="small")
    figure.colorbar(image, ax=axes)
    return [_save(figure, folder / "kl_maps.png")]


def _images(pixels: Any) -> list[Image.Image]:
    """(n, C, H, W) in [0, 1] -> PIL."""
    return VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(pixels))


def _figure(**options: Any) -> Any:
    """A matplotlib figure; None, with a message, without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print('No figure: matplotlib is missing: the extra `plots` (`pip install -e ".[plots]"` in the repository).')
        return None
    return Figure(layout="constrained", **options)


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    return path
