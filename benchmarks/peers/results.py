"""
The folder of a row and seed. Its three files are written one after the other, each as a whole: weights.safetensors and
training.json, samples.safetensors, figures.json. A row that was interrupted continues with the file that it lacks.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, load_model, save_file, save_model

from .measure import Figures, cpu_seconds, draw, search_options
from .memory import peak_memory
from .row import Row
from .rows import row_class, table_of, versions_of
from .settings import Setting
from .training import choose_learning_rate, train_row, try_learning_rates

_SHEET_IMAGES = 64
# What weights depend on.
_OF_TRAINING = ("data", "images", "seed", "seconds", "tune_fraction", "autoencoder_fraction", "max_steps")
_OF_SEARCH = ("features", "search_images")  # what samples depend on besides weights and number


class RowFolder:
    """
    One row of the comparison with one seed.

    Args:
        output_dir (`Path`): of the comparison.
        name (`str`): of the row.
        settings (`dict[str, Any]`): what figures depend on, as JSON; "seed" among them.
    """

    def __init__(self, output_dir: Path, name: str, settings: dict[str, Any]):
        self.name, self.settings = name, settings
        self.path = output_dir / settings["data"] / f"{name}-seed{settings['seed']}"
        self.training, self.figures = self.path / "training.json", self.path / "figures.json"
        self.weights, self.samples = self.path / "weights.safetensors", self.path / "samples.safetensors"

    def read(self, path: Path, alike: Sequence[str] | None = None) -> dict[str, Any] | None:
        """
        One of the JSON files; None if it isn't there.

        Args:
            path (`Path`): `training` or `figures`.
            alike (`Sequence[str]`, *optional*): settings that must be the same; defaults to all.

        Raises:
            ValueError: it is damaged, or of other settings.
        """
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            had = found["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: remove {self.path}, and the row is run again.") from error
        for key in self.settings if alike is None else alike:
            if had.get(key) != (value := self.settings[key]):
                raise ValueError(
                    f"{self.path} has {key} {had.get(key)}, not {value}: give the same again, or another --output-dir."
                )
        return found

    def is_alike(self) -> bool:
        """Whether it is finished, with all the same settings."""
        try:
            return self.read(self.training) is not None and self.read(self.figures) is not None
        except ValueError:
            return False

    def write(self, path: Path, found: dict[str, Any]) -> None:
        temporary = path.with_suffix(".partial")
        temporary.write_text(json.dumps({**found, "settings": self.settings}, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)


def run_row(folder: RowFolder, data: Any, figures: Figures, tune_fraction: float, max_steps: int | None) -> None:
    """
    Train, draw and measure what a row lacks.

    Args:
        folder ([`RowFolder`]): of the row.
        data ([`Data`]), figures ([`Figures`]): of the comparison.
        tune_fraction (`float`): of the row's seconds, for each learning rate that is tried; 0 for none.
        max_steps (`int`, *optional*): of each phase, to try the machinery.

    Raises:
        ValueError: files of other settings, or damaged ones.
    """
    seed, setting = folder.settings["seed"], data.setting
    if folder.read(folder.figures) is not None:
        print(f"{folder.name}: done before, {folder.path}", flush=True)
        return
    trained = folder.read(folder.training, _OF_TRAINING)
    if folder.samples.is_file():
        _check_search(folder)
    if trained is None:
        if folder.path.is_dir():
            print(f"{folder.name}: was interrupted while it was trained; it is trained anew.", flush=True)
        folder.path.mkdir(parents=True, exist_ok=True)
        row = _train(folder, data, tune_fraction, max_steps)
    else:
        row = row_class(folder.name)(data, trained["learning_rate"])
        _load(folder, row)
    if not folder.samples.is_file():
        options, tried = search_options(row, figures, seed, folder.settings["search_images"])
        images, labels = draw(row, folder.settings["num_images"], seed, **options)
        _save_samples(folder, images, labels, {"options": options, "tried": tried})
    images, labels, drawn, _ = _read_samples(folder)
    if len(images) != folder.settings["num_images"]:
        wanted = folder.settings["num_images"]
        raise ValueError(f"{folder.samples} has {len(images)} samples, not {wanted}: remove it to draw them again.")
    found = figures.of_samples(row, images, labels) | cpu_seconds(row, **drawn["options"])
    found |= {"floor": figures.floor, "floor_n": len(figures.others), "n": len(images)} | drawn
    folder.write(folder.figures, found)
    print(f"{folder.name}: distance {found['frechet_real']:.4g}, {setting.name}, seed {seed}", flush=True)


def time_again(folder: RowFolder, data: Any) -> None:
    """
    Measure the seconds per image of a finished row again, for instance because other programs ran before.

    Raises:
        ValueError: the row isn't finished; and as [`run_row`].
    """
    trained, found = folder.read(folder.training, _OF_TRAINING), folder.read(folder.figures)
    if trained is None or found is None:
        raise ValueError(f"{folder.path} isn't finished: leave --time-again out, and it is run.")
    row = row_class(folder.name)(data, trained["learning_rate"])
    _load(folder, row)
    folder.write(folder.figures, found | cpu_seconds(row, **found["options"]))


def _train(folder: RowFolder, data: Any, tune_fraction: float, max_steps: int | None) -> Row:
    cls, seed, seconds = row_class(folder.name), folder.settings["seed"], folder.settings["seconds"]
    torch.manual_seed(seed)
    row, rates = cls(data), {}
    if tune_fraction and row.tuned:
        rates = try_learning_rates(
            lambda rate: cls(data, rate), row.learning_rate, tune_fraction * seconds, seed, max_steps
        )
        torch.manual_seed(seed)
        row = cls(data, choose_learning_rate(rates))
    with peak_memory() as memory:
        trained = train_row(row, seconds, max_steps)
    networks = row.networks()
    temporary = folder.weights.with_suffix(".partial")
    save_model(networks, str(temporary))
    os.replace(temporary, folder.weights)
    facts = trained._asdict() | {
        "learning_rate": row.learning_rate,
        "learning_rates": {f"{rate:.2g}": loss for rate, loss in rates.items()},
        "weights": sum(p.numel() for p in networks.parameters()),
        "versions": versions_of(folder.name),
        "torch": torch.__version__,
        **memory,
    }
    folder.write(folder.training, facts)
    print(f"{folder.name}: {trained.steps} steps in {sum(trained.seconds):.0f} CPU seconds", flush=True)
    return row


def _load(folder: RowFolder, row: Row) -> None:
    networks = row.networks()
    try:
        load_model(networks, folder.weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"{folder.weights} doesn't hold the row {folder.name}: remove {folder.path}, and it is trained again."
        ) from error
    networks.eval()


def _save_samples(folder: RowFolder, images: torch.Tensor, labels: torch.Tensor, facts: dict[str, Any]) -> None:
    temporary = folder.samples.with_suffix(".partial")
    search = {key: folder.settings[key] for key in _OF_SEARCH}
    metadata = {"facts": json.dumps(facts), "search": json.dumps(search)}
    save_file({"images": images.contiguous(), "labels": labels}, temporary, metadata)
    os.replace(temporary, folder.samples)


def _check_search(folder: RowFolder) -> None:
    """
    Raises:
        ValueError: the samples are of a search with other settings. Files that don't say of which are taken.
    """
    *_, search = _read_samples(folder)
    for key, had in search.items():
        if had != (value := folder.settings[key]):
            raise ValueError(
                f"{folder.samples} has {key} {had}, not {value}: give the same again, or remove it to draw it again."
            )


def _read_samples(folder: RowFolder) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any], dict[str, Any]]:
    """Images, classes, facts, and the settings of their search, which older files don't have."""
    try:
        tensors = load_file(folder.samples)
        with safe_open(folder.samples, "pt") as opened:
            metadata = opened.metadata()
        facts, search = json.loads(metadata["facts"]), json.loads(metadata.get("search", "{}"))
        return tensors["images"], tensors["labels"], facts, search
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder.samples} is damaged: remove it, and it is drawn again.") from error


def first_samples(folder: RowFolder) -> torch.Tensor | None:
    """The first 64 of a row; None if there are none yet."""
    return _read_samples(folder)[0][:_SHEET_IMAGES] if folder.samples.is_file() else None


def seeds_of(folder: Path) -> set[int]:
    """The seeds of the rows in a folder."""
    found = (re.fullmatch(r".+-seed([0-9]+)", path.name) for path in folder.glob("*-seed*"))
    return {int(match[1]) for match in found if match}


def seconds_of(name: str, setting: Setting, budget: float | None) -> float:
    """CPU seconds of training of a row."""
    return budget or setting.seconds[table_of(name)]
