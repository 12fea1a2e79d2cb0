"""
The paper's comparison in stages: autoencoder; bridge and PixelCNN on its latents, for the same time each; the bridge
end-to-end from the same autoencoder; evaluation and tables.
"""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .data import load_images
from .evaluation import METRICS, evaluate_pipelines, write_report
from .pipelines import save_trained
from .run_folder import RunFolder
from .training import E2EConfig, PixelCNNConfig, PriorConfig, VQConfig, train
from .training.config import RunConfig
from .training.data import image_options
from .training.fault_tolerance.checkpoint import list_checkpoints
from .training.time_budget import steps_within

TRAINING_STAGES = ("vq", "bridge", "pixelcnn", "bridge-e2e")
_OF_STEPS = ("preset", "batch_size", "mixed_precision")  # settings that the time of a step depends on
# Settings of a run that can't change.
_SAME = ("preset", "dataset", "split", "seed", "image_column", "batch_size", "mixed_precision")


@dataclass(frozen=True)
class Comparison:
    """
    The runs of one comparison, each in a folder of `output_dir`. A stage that is done is skipped; one that was
    interrupted continues when it is called again.

    Args:
        preset (`str`): settings of all four runs.
        dataset (`str`): as `load_images` takes it.
        output_dir (`Path`): of runs and evaluation.
        budget (`float`): seconds of training of each run.
        train_split (`str`, *optional*, defaults to `"train"`): what is trained on.
        seed (`int`, *optional*, defaults to 0): of all runs.
        settings (`Mapping[str, Any]`, *optional*): further settings of all runs, such as `batch_size`.
    """

    preset: str
    dataset: str
    output_dir: Path
    budget: float
    train_split: str = "train"
    seed: int = 0
    settings: Mapping[str, Any] | None = None

    def run(self, stage: str) -> RunFolder:
        """The folder of a stage's run."""
        return RunFolder(self.output_dir / stage)

    def check_data(self, stages: Collection[str], test_split: str | None = None) -> None:
        """
        Look for the data of these stages, and of an evaluation with `test_split`, before hours of training.

        Raises:
            ValueError: a split is missing.
            ConnectionError: the Hub can't be reached.
        """
        if all(self.run(stage).finished() for stage in stages):
            return
        options = image_options(self._config("vq", self.run("vq"))) | {"in_memory": False}
        for split in filter(None, (self.train_split, test_split)):
            load_images(self.dataset, split=split, **options)

    def train(self, stage: str) -> None:
        """
        Train one of `TRAINING_STAGES`; all but the first need the autoencoder of "vq".

        Raises:
            ValueError: the folder has a run with other settings, or the autoencoder is missing.
            OSError: the disk is full or can't be written.
        """
        run = self.run(stage)
        config, steps_file = self._config(stage, run), run.path / "steps.json"
        asked = {name: getattr(config, name) for name in _SAME}
        timed = {"budget": self.budget} | {name: asked[name] for name in _OF_STEPS}
        if run.finished():
            self._check_same(stage, **asked)
            if steps_file.is_file():
                _read_steps(steps_file, timed)
            print(f"{stage}: done before, {run.path}")
            return
        if not steps_file.is_file():
            _write_steps(steps_file, steps_within(config, self.budget), timed)
        elif list_checkpoints(run.checkpoints):
            self._check_same(stage, **asked)
        steps = _read_steps(steps_file, timed)
        # A run that is killed without warning loses a quarter of its budget at most.
        config = replace(
            config,
            max_train_steps=steps,
            checkpoint_every=max(1, steps // 4),
            resume=bool(list_checkpoints(run.checkpoints)),
        )
        trained = train(config)
        if trained is not None:  # on the main process
            save_trained(trained, run)
            print(f"{stage}: {steps} steps, {run.path}")

    def evaluate(
        self, metrics: Collection[str] = METRICS, device: torch.device | str = "cpu", **settings: Any
    ) -> list[Path]:
        """
        Measure what results.json lacks of the pipelines that exist, and write the tables.

        Args:
            metrics (`Collection[str]`, *optional*, defaults to all): names in `METRICS`.
            device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): of models and metrics.
            settings: further arguments of `evaluate_pipelines`.

        Returns:
            `list[Path]`: the files of the report.

        Raises:
            ValueError: there is no pipeline, or one of another preset.
        """
        pipelines = {stage: self.run(stage).pipeline for stage in TRAINING_STAGES[1:]}
        pipelines = {stage: folder for stage, folder in pipelines.items() if folder.is_dir()}
        if not pipelines:
            stages = ", ".join(TRAINING_STAGES[1:])
            raise ValueError(f"{self.output_dir} has no pipeline to evaluate: run {stages} before.")
        for stage in pipelines:
            self._check_same(stage, preset=self.preset)
        output = RunFolder(self.output_dir).evaluation
        evaluate_pipelines(
            pipelines, self.dataset, output, metrics=metrics, device=device, preset=self.preset, **settings
        )
        return write_report(output)

    def _config(self, stage: str, run: RunFolder) -> RunConfig:
        autoencoder = self.run("vq").path
        kinds: dict[str, tuple[type[RunConfig], dict[str, Any]]] = {
            "vq": (VQConfig, {}),
            "bridge": (PriorConfig, {"init_from": autoencoder, "cache_latents": True}),
            "pixelcnn": (PixelCNNConfig, {"init_from": autoencoder}),
            # "stable" is what pays from an autoencoder of a short run
            "bridge-e2e": (E2EConfig, {"init_from": autoencoder, "mode": "stable", "joint_fraction": 0.0}),
        }
        cls, own = kinds[stage]
        return cls.from_preset(
            self.preset,
            dataset=self.dataset,
            split=self.train_split,
            seed=self.seed,
            output_dir=run.path,
            image_every=0,
            **own,
            **(self.settings or {}),
        )

    def _check_same(self, stage: str, **asked: Any) -> None:
        run = self.run(stage)
        # A pipeline that was copied here alone has no settings.
        had = run.read_config() if run.config.is_file() else asked
        for name, value in asked.items():
            if (name in had or name == "preset") and had.get(name) != value:
                raise ValueError(f"{run.path} has {name} {had.get(name)}, not {value}: give another --output-dir.")


def _write_steps(path: Path, steps: int, timed: dict[str, Any]) -> None:
    """Steps, and what they were timed for, so that a stage that is interrupted continues with the same number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps({"steps": steps} | timed))
    os.replace(temporary, path)


def _read_steps(path: Path, timed: dict[str, Any]) -> int:
    """
    Raises:
        ValueError: the file has something else, or steps for another budget or other settings. It may also be written
            by hand, with "steps" alone.
    """
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} isn't JSON: {error}. Remove it, and the steps are counted again.") from error
    if isinstance(content, int):  # of version 0.1.0
        content = {"steps": content}
    steps = content.get("steps") if isinstance(content, dict) else None
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(
            f"{path} must hold a number of steps, got {content!r}. Remove it, and they are counted again."
        )
    for name, value in timed.items():
        if name in content and content[name] != value:
            raise ValueError(
                f"{path} has steps for {name} {content[name]}, not {value}: give the same, or another --output-dir."
            )
    return steps
