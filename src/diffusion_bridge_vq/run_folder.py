"""What a run leaves in its folder: the names, and how each file is read and written."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AUTOENCODER_NAME = "vqvae"  # what a run saves that trained an autoencoder alone
PIPELINE_NAME = "pipeline"
_CHECKPOINT = "step-"
_INDEX = "model_index.json"  # of a pipeline
_SCHEDULER = "scheduler_config.json"
_TOO_LARGE = 2**63  # JSON has integers that no float can be made of


@dataclass(frozen=True)
class RunFolder:
    """
    The folder of one run.

    | name | content |
    |---|---|
    | `config.json` | the settings, and the machine they ran on |
    | `metrics.jsonl` | one JSON object per line: "step" and numbers by name |
    | `NAME-STEP.png` | grids of images: reconstructions and samples |
    | `curves.png` | the metrics as curves |
    | `checkpoints/` | what `resume` continues from |
    | `encoded/` | latents or codes of the images, where a run encodes them once |
    | `calibrated/` | the autoencoder that the run started from with the latents' statistics, where it had none |
    | `evaluation/` | results of evaluations during training |
    | `logs/`, `profile/` | tracker files; the profiler's trace |
    | `pipeline/` or `vqvae/` | the trained components, written last |
    | `.lock`, `.lock-owner.json` | held while a run writes here |

    Args:
        path (`Path`): the folder. It does not have to exist.
    """

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def encoded(self) -> Path:
        return self.path / "encoded"

    @property
    def calibrated(self) -> Path:
        return self.path / "calibrated"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def profile(self) -> Path:
        return self.path / "profile"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    @property
    def lock_owner(self) -> Path:
        return self.path / ".lock-owner.json"

    @property
    def pipeline(self) -> Path:
        return self.path / PIPELINE_NAME

    @property
    def autoencoder(self) -> Path:
        return self.path / AUTOENCODER_NAME

    def finished(self) -> list[str]:
        """Names of the folders with trained components that are there."""
        return [folder.name for folder in (self.pipeline, self.autoencoder) if folder.exists()]

    def find_component(self, name: str) -> Path | None:
        """
        The folder of a saved component, e.g. "vqvae" or "unet". `path` may be a run's folder or a pipeline's.

        Returns:
            `Path`, or None if there is no such component.
        """
        return next((f for f in (self.path / name, self.pipeline / name) if f.is_dir()), None)

    def grid(self, name: str, step: int) -> Path:
        """Where the grid `name` of a step goes."""
        return self.path / f"{name}-{step:06d}.png"

    def newest_grid(self, name: str) -> Path | None:
        """The grid of the latest step, or None if there is none."""
        found = self.path.glob(f"{name}-*.png")
        return max(found, key=lambda path: (len(path.name), path.name), default=None)  # 1000000 is after 999000

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step goes."""
        return self.checkpoints / f"{_CHECKPOINT}{step:08d}"

    def write_config(self, settings: Mapping[str, Any]) -> None:
        """Write `config.json`; creates the folder."""
        self.path.mkdir(parents=True, exist_ok=True)
        _write_whole(self.config, json.dumps(settings, indent=1))

    def read_id2label(self) -> dict[int, str] | None:
        """
        The names of the classes that a run learned, by number; None if it has none. `path` may be a run's folder or a
        pipeline's.

        Raises:
            ValueError: a file has something else as names.
        """
        file, settings = self._model_settings()
        names = settings.get("id2label")
        if not names:
            return None
        try:
            return {int(number): str(name) for number, name in names.items()}
        except (AttributeError, TypeError, ValueError):
            raise ValueError(f"'id2label' of {file} must name classes by number, got {names!r}.") from None

    def read_condition(self) -> str | None:
        """
        The image that the model of a run draws from, by its name in `data.ImageCondition`; None if it has none. `path`
        may be a run's folder or a pipeline's.
        """
        name = self._model_settings()[1].get("condition")
        return name if isinstance(name, str) else None

    def draws_from_words(self) -> bool:
        """Whether the classes of the model are words. `path` may be a run's folder or a pipeline's."""
        return bool(self._model_settings()[1].get("label_words"))

    def read_label_examples(self) -> list[str]:
        """
        Labels that show what a model of words can draw; none of another model, or without any. `path` may be a run's
        folder or a pipeline's.
        """
        found = self._model_settings()[1].get("label_examples")
        found = list(found.values()) if isinstance(found, dict) else found  # by number, of a pipeline
        return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []

    def _model_settings(self) -> tuple[Path, dict[str, Any]]:
        """The file that says most of the model, and its content: a pipeline's, else the run's; {} without any."""
        files = (self.path / _INDEX, self.pipeline / _INDEX, self.config)
        return next(((file, content) for file in files if (content := _read_object(file))), (self.config, {}))

    def read_pipeline_settings(self) -> dict[str, Any]:
        """
        What the pipeline of a run is saved with besides its components, by the names of its constructor's arguments.

        Raises:
            ValueError: as [`read_id2label`].
        """
        settings = _read_object(self.config)
        kept = {name: settings[name] for name in ("label_words", "condition") if settings.get(name)}
        if examples := settings.get("label_examples"):  # a student has no setting of its own for words
            kept |= {"label_words": True, "label_examples": dict(enumerate(examples))}
        return {"id2label": self.read_id2label()} | kept

    def is_student(self) -> bool:
        """Whether the network that is saved was distilled. `path` may be a run's folder or a pipeline's."""
        return self.read_learned_guidance() is not None

    def read_learned_guidance(self) -> float | None:
        """The guidance scale of a student; None of other networks. `path` may be a run's folder or a pipeline's."""
        folder = self.find_component("scheduler")
        return None if folder is None else _read_object(folder / _SCHEDULER).get("distilled_guidance_scale")

    def read_config(self) -> dict[str, Any]:
        """
        The settings in `config.json`.

        Raises:
            ValueError: there is no such file, or it doesn't hold a JSON object.
        """
        if not self.config.is_file():
            raise ValueError(f"There is no file {self.config}: {self.path} isn't the folder of a run.")
        try:
            settings = json.loads(self.config.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.config} isn't JSON: {error}") from error
        if not isinstance(settings, dict):
            raise ValueError(f"{self.config} must hold a JSON object, got {type(settings).__name__}.")
        return settings

    def append_metrics(self, record: Mapping[str, float]) -> None:
        """Add one line to `metrics.jsonl`."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read_metrics(self) -> list[dict[str, float]]:
        """
        The lines of `metrics.jsonl`, oldest first. Empty without the file. What isn't an object with a "step" is left
        out, such as a line that was cut off, and so are values that aren't numbers.
        """
        if not self.metrics.is_file():
            return []
        records = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and _is_step(record.get("step")):
                records.append({name: value for name, value in record.items() if _is_number(value)})
        return records

    def replace_metrics(self, records: list[dict[str, float]]) -> None:
        """Write `metrics.jsonl` anew. A kill leaves the old file or the new one."""
        _write_whole(self.metrics, "".join(json.dumps(record) + "\n" for record in records))


def is_checkpoint(folder: Path) -> bool:
    """Whether this is the name of a run's checkpoint, as `RunFolder.checkpoint` gives it."""
    return re.fullmatch(rf"{_CHECKPOINT}\d+", folder.name) is not None


def _write_whole(path: Path, text: str) -> None:
    """Write a file under another name, flush it to the disk and rename it: it is never half-written."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (_is_whole(value) and abs(value) < _TOO_LARGE)


def _is_step(value: Any) -> bool:
    return _is_whole(value) and 0 <= value < _TOO_LARGE


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
