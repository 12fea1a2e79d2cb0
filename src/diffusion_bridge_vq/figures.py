"""Figures from what runs have saved. Needs the extra `plots` (matplotlib)."""

import json
from pathlib import Path


def plot_metrics(run_dir: Path) -> Path | None:
    """
    Curves of `run_dir`/metrics.jsonl as `run_dir`/curves.png: losses, latents and codebook, step by step.

    Returns:
        `Path` of the picture; None, with a message, if matplotlib is missing: curves are no reason to lose a run.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print('No curves: matplotlib is missing, `pip install "diffusion-bridge-vq[plots]"`.')
        return None
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    panels = {
        "loss terms, weighted": [k for k in _names(records) if k.startswith("loss/")],
        "latent rms": ["train/latent_rms"],
        "codebook perplexity": ["codebook/perplexity"],
    }
    figure = Figure(figsize=(12, 3.2), layout="constrained")
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


def _names(records: list[dict]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record))
