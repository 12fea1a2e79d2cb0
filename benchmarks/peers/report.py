"""Tables and sheets of what is there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from diffusion_bridge_vq.grids import image_grid

from .results import RowFolder, first_samples
from .rows import ROWS

_COLUMNS = {
    "distance to real": ("frechet_real", "{:.3g}"),
    "to own reconstructions": ("frechet_own", "{:.3g}"),
    "reconstructions to real": ("frechet_reconstruction", "{:.3g}"),
    "precision": ("precision", "{:.2f}"),
    "recall": ("recall", "{:.2f}"),
    "accuracy": ("accuracy", "{:.2f}"),
    "near a training image": ("near_train", "{:.2f}"),
    "s/image, batch 1": ("seconds_batch_1", "{:.3g}"),
    "s/image, batch 32": ("seconds_batch_32", "{:.3g}"),
}
# settings of rows that are in one table
_DATA = ("data", "images")
_ALIKE = (*_DATA, "features", "num_images")
_SHEET_COLUMNS = 8
_TILE = 32


def write_report(folders: Sequence[RowFolder], output_dir: Path) -> list[Path]:
    """
    table.md, and a sheet of samples for each table, of the rows that are finished.

    Args:
        folders (`Sequence[RowFolder]`): of all rows and seeds that were asked for; of one data set.
        output_dir (`Path`): of the comparison.
    """
    data = folders[0].settings["data"]
    written = [output_dir / data / "table.md"]
    written[0].parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(_table(table, folders) for table in ROWS)
    written[0].write_text(text, encoding="utf-8")
    print(text)
    for table in ROWS:
        seed = min((f.settings["seed"] for f in folders if f.name in ROWS[table] and f.samples.is_file()), default=0)
        rows = [f for f in folders if f.name in ROWS[table] and f.settings["seed"] == seed]
        sheets = {ROWS[table][f.name].title: images for f in rows if (images := first_samples(f)) is not None}
        if sheets:
            written.append(output_dir / data / f"samples-{table}.png")
            side_by_side(sheets).save(written[-1])
    return written


def _table(table: str, folders: Sequence[RowFolder]) -> str:
    headers = ["", *_COLUMNS, "options", "steps", "CPU s", "weights", "peak MiB", "versions"]
    lines = [f"Table {table}", "", f"| {' | '.join(headers)} |", "|---" * len(headers) + "|"]
    for name, cls in ROWS[table].items():
        mine = [f for f in folders if f.name == name]
        found = [(f.read(f.training, _DATA), f.read(f.figures, _ALIKE)) for f in mine]
        done = [(training, figures) for training, figures in found if training and figures]
        cells = _cells(done) if done else ["not run"] + [""] * (len(headers) - 2)
        lines.append(f"| {cls.title} | {' | '.join(cells)} |")
    known = [f.read(f.figures, _ALIKE) for f in folders if f.name in ROWS[table]]
    facts = next((f for f in known if f), None)
    if facts:
        floor = "too few" if facts["floor"] is None else f"{facts['floor']:.3g}"
        lines += [
            "",
            f"n = {facts['n']:,}, features: {facts['settings']['features']}. Distance of real images of the other "
            f"split (n = {facts['floor_n']:,}): {floor}. Accuracy on real test images: {facts['accuracy_test']:.2f}.",
        ]
    return "\n".join(lines) + "\n"


def _cells(done: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    training, figures = done[0]
    cells = []
    for key, style in _COLUMNS.values():
        values = [f[key] for _, f in done if key in f]
        if not values:
            cells.append("")
            continue
        spread = f" ({style.format(min(values))} to {style.format(max(values))})" if len(values) > 1 else ""
        cells.append(style.format(sum(values) / len(values)) + spread)
    options = ", ".join(f"{key} {value:g}" for key, value in figures["options"].items())
    peak = f"{training['peak_mib']:.0f}" if "peak_mib" in training else ""
    versions = ", ".join(f"{name} {number}" for name, number in training["versions"].items())
    steps, seconds = " + ".join(map(str, training["steps"])), f"{sum(training['seconds']):.0f}"
    return [*cells, options, steps, seconds, f"{training['weights'] / 1e6:.2f}M", peak, versions]


def side_by_side(sheets: dict[str, torch.Tensor]) -> Image.Image:
    """Sheets of samples, uint8 (n, C, H, W), next to each other, each under its title; three in a line."""
    panels = []
    for title, images in sheets.items():
        pictures = [Image.fromarray(x.squeeze(0).numpy() if len(x) == 1 else x.movedim(0, -1).numpy()) for x in images]
        grid = image_grid(pictures, _SHEET_COLUMNS, tile_size=_TILE).convert("RGB")
        panel = Image.new("RGB", (grid.width + 8, grid.height + 24), "white")
        panel.paste(grid, (4, 20))
        ImageDraw.Draw(panel).text((4, 4), title, fill="black")
        panels.append(panel)
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    width, height = max(p.width for p in panels), max(p.height for p in panels)
    sheet = Image.new("RGB", (columns * width, lines * height), "white")
    for number, panel in enumerate(panels):
        sheet.paste(panel, (number % columns * width, number // columns * height))
    return sheet
