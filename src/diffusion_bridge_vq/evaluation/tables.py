"""Results next to the paper's, as Markdown."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .results import Result, of_newest_weights

# (dataset, model, metric) -> what the paper prints; one standard deviation in parentheses
_PAPER = {
    ("miniimagenet", "pixelcnn", "nll"): "1.00 (0.05)",
    ("miniimagenet", "pixelcnn", "frechet"): "98",
    ("miniimagenet", "pixelcnn", "seconds_per_sample"): "10.6 (0.028)",
    ("miniimagenet", "bridge", "nll"): "0.94 (0.02)",
    ("miniimagenet", "bridge", "frechet"): "99",
    ("miniimagenet", "bridge", "seconds_per_sample"): "1.7 (0.010)",
    ("cifar10", "pixelcnn", "nll"): "1.41 (0.06)",
    ("cifar10", "pixelcnn", "frechet"): "109",
    ("cifar10", "pixelcnn", "seconds_per_sample"): "0.21 (0.0008)",
    ("cifar10", "bridge", "nll"): "1.33 (0.18)",
    ("cifar10", "bridge", "frechet"): "104",
    ("cifar10", "bridge", "seconds_per_sample"): "0.05 (0.0005)",
    ("cifar10", "bridge-e2e", "nll"): "1.59 (0.27), another codebook",
    ("cifar10", "bridge-e2e", "frechet"): "92",
    ("cifar10", "bridge-e2e", "seconds_per_sample"): "0.11 (0.0005)",
}
# Table 1 doesn't name its data set
_PAPER_KL = {"pixelcnn": "0.809", "bridge": "0.713"}

_DATASETS = {"miniimagenet": "miniImageNet", "cifar10": "CIFAR-10"}
_MODELS = {"pixelcnn": "PixelCNN", "bridge": "bridge", "bridge-e2e": "bridge end-to-end"}
_METRICS = {
    "nll": ("NLL (bits per masked code)", "NLL, ours"),
    "frechet": ("FID", "Fréchet distance (extractor), ours"),
    "seconds_per_sample": ("s per sample, batch 32, TITAN Xp", "s per sample, ours"),
}
_NOTED = ("preset", "n", "reference", "extractor", "seed", "steps", "guidance_scale", "device", "time", "command")


def paper_tables(results: Iterable[Mapping[str, Any]]) -> str:
    """
    Tables 1 (KL map), 2 (miniImageNet) and 3 (CIFAR-10) of the paper, with ours next to each of its numbers.

    Args:
        results (iterable of mappings): as [`read_results`] gives them, oldest first; the latest of each cell is
            shown, and none of weights that its model no longer has ([`of_newest_weights`]). A result needs name
            ("kl", "nll", "frechet" or "seconds_per_sample"), value (a number), dataset ("miniimagenet" or "cifar10")
            and model ("pixelcnn", "bridge" or "bridge-e2e"); `std` follows the value in parentheses. Others
            are left out.

    Returns:
        `str`: Markdown. Cells without a result are empty; below the tables each figure has n, reference set,
        extractor, seed, steps, device, time and command. A Frechet distance has its extractor in its cell: only
        "inception" makes a FID.
    """
    latest = {(r.get("dataset"), r.get("model"), r["name"]): r for r in _numbers(results)}
    notes: list[str] = []

    def ours(dataset: str, model: str, metric: str) -> str:
        result = latest.get((dataset, model, metric))
        if result is None:
            return ""
        facts = "; ".join(f"{fact} {result[fact]}" for fact in _NOTED if fact in result)
        notes.append(f"{len(notes) + 1}. {_DATASETS[dataset]}, {_MODELS[model]}, {metric}: {facts}.")
        text = f"{result['value']:.3g}"
        if "std" in result:
            text += f" ({result['std']:.2g})"
        if metric == "frechet":
            text += f" ({result.get('extractor', 'extractor unknown')})"
        return f"{text} [{len(notes)}]"

    parts = ["Table 1: KL between code histograms, mean over positions, in nats."]
    rows = [
        [_MODELS[model], _PAPER_KL.get(model, ""), *(ours(dataset, model, "kl") for dataset in _DATASETS)]
        for model in _MODELS
    ]
    parts.append(_markdown(["", "paper", *(f"{name}, ours" for name in _DATASETS.values())], rows))
    for number, (dataset, title) in enumerate(_DATASETS.items(), start=2):
        models = [m for m in _MODELS if (dataset, m, "nll") in _PAPER or any(k[:2] == (dataset, m) for k in latest)]
        rows = []
        for model in models:
            cells = [(_PAPER.get((dataset, model, m), ""), ours(dataset, model, m)) for m in _METRICS]
            rows.append([_MODELS[model], *(cell for pair in cells for cell in pair)])
        header = ["", *(column for pair in _METRICS.values() for column in pair)]
        parts += [f"Table {number}: {title}.", _markdown(header, rows)]
    return "\n\n".join(parts + (["\n".join(notes)] if notes else [])) + "\n"


def all_results(results: Iterable[Mapping[str, Any]]) -> str:
    """
    One table per data set, with a row for each metric and a column for each model: the latest of each, as there.

    Args:
        results (iterable of mappings): as for [`paper_tables`], but any names, data sets and models; numbers only.

    Returns:
        `str`: Markdown; empty without results.
    """
    tables: dict[str, dict[str, dict[str, str]]] = {}  # dataset -> metric -> model -> cell
    for result in _numbers(results):
        text = f"{result['value']:.4g}" + (f" ({result['std']:.2g})" if "std" in result else "")
        row = tables.setdefault(str(result.get("dataset", "")), {}).setdefault(result["name"], {})
        row[str(result.get("model", ""))] = f"{text}, n {result['n']}" if "n" in result else text
    parts = []
    for dataset, metrics in tables.items():
        models = list(dict.fromkeys(model for row in metrics.values() for model in row))
        rows = [[metric, *(row.get(model, "") for model in models)] for metric, row in metrics.items()]
        parts.append(f"All results on {dataset}; standard deviation over images in parentheses.")
        parts.append(_markdown(["", *models], rows))
    return "\n\n".join(parts) + "\n" if parts else ""


def _numbers(results: Iterable[Result]) -> list[Result]:
    """
    [`of_newest_weights`], without what a cell has no room for.

    Raises:
        TypeError: no mappings, or ones without "name" and "value".
    """
    if not isinstance(results, Iterable) or isinstance(results, torch.Tensor):
        raise TypeError(f"`results` must be what `read_results` returns, got {type(results).__name__}.")
    results = list(results)
    for result in results:
        if not isinstance(result, Mapping) or not {"name", "value"} <= result.keys():
            raise TypeError(f'`results` must be mappings with "name" and "value", got {result!r:.80}.')
    return [r for r in of_newest_weights(results) if isinstance(r["value"], (int, float))]


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
