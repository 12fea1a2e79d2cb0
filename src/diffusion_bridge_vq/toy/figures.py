"""Figures 3, 11 and 12 from what examples/toy_bridge.py saved."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from ..figures import new_figure, save_figure
from .walks import LENGTH

_COLORS = [f"C{i}" for i in range(LENGTH)]  # one per position of a sequence


def plot_toy(run_dir: Path) -> list[Path]:
    """
    Figures 3, 11 and 12 from `run_dir`/toy.safetensors, which examples/toy_bridge.py wrote.

    Returns:
        `list[Path]`: toy_trajectories.png, toy_codebook.png, toy_inpainting.png; none without matplotlib.
    """
    saved = load_file(run_dir / "toy.safetensors")
    centers = saved["true_codebook"]

    def panel(axes: Any, title: str) -> Any:
        axes.scatter(*centers.T, s=60, facecolors="none", edgecolors="gray")
        for code, (x, y) in enumerate(centers.tolist()):
            axes.annotate(str(code), (1.2 * x, 1.2 * y), ha="center", va="center", color="gray")
        axes.set(title=title, xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
        return axes

    paths = []
    figure = new_figure(figsize=(9, 4.5))
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
    paths.append(save_figure(figure, run_dir / "toy_trajectories.png"))

    figure = new_figure(figsize=(12, 4.2))
    panels = {
        "initial_codebook": "before",
        "codebook_gamma": "after, with $L^{reg}$",
        "codebook_none": "without",
    }
    for axes, (name, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        panel(axes, title).scatter(*saved[name].T, marker="x", color="C3")
        for code, (x, y) in enumerate(saved[name].tolist()):
            axes.annotate(str(code), (x, y), xytext=(5, 5), textcoords="offset points", color="C3", fontsize="small")
    paths.append(save_figure(figure, run_dir / "toy_codebook.png"))

    figure = new_figure(figsize=(12, 4.2))
    completions = saved["completions"]  # (3, 2, 5)
    for axes, completion in zip(figure.subplots(1, len(completions)), completions, strict=True):
        codes = (completion.T[:, None] - centers).square().sum(-1).argmin(1).tolist()
        panel(axes, str(tuple(codes))).plot(*completion, color="gray", linewidth=0.8)
        for place, color in enumerate(_COLORS):
            axes.scatter(*completion[:, place], color=color, zorder=3, label=f"$q_{place + 1}$")
        axes.legend(fontsize="small", loc="center")
    paths.append(save_figure(figure, run_dir / "toy_inpainting.png"))
    return paths
