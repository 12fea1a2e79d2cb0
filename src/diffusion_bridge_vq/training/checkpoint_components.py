"""The components of a checkpoint, so that people can look at a run before it ends."""

import dataclasses
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file

from ..data.paths import looks_local
from ..run_folder import RunFolder
from .config import RunConfig
from .ema import AveragedWeights
from .fault_tolerance.checkpoint import find_damage, list_checkpoints, newest_whole
from .monitoring.early_stopping import EarlyStopping
from .objectives import Objective, build_objective, config_classes


def load_components(place: Path, start: Path | None = None) -> tuple[dict[str, Any], Path]:
    """
    What a run would have saved if it had ended at a checkpoint: the averaged weights, the best with early stopping.

    Args:
        place (`Path`): a checkpoint, `checkpoints/step-N`, or the folder of a run, for its newest whole one.
        start (`Path`, *optional*): where the run's `init_from` or `vqvae_from` is now, if it was moved.

    Returns:
        `tuple[dict[str, Any], Path]`: the components by name, on the CPU in eval mode, and the checkpoint.

    Raises:
        ValueError: no checkpoint, or a damaged one; no settings of the run, or ones that don't fit the checkpoint; a
            folder that it started from isn't there, or `start` for a run that started from none; a part that was not
            trained yet.
    """
    run, checkpoint = _find(place)
    config = _read_config(run, start)
    names = [name for name in ("best", "ema") if (checkpoint / f"{name}.safetensors").is_file()]
    if not names:
        raise ValueError(f"{checkpoint} has no averaged weights: is it a checkpoint of this package?")
    saved = {name: load_file(checkpoint / f"{name}.safetensors") for name in names}
    classes = _count_classes(saved["ema"]) if config.uses_classes else None
    objective = build_objective(config, classes, list((run.read_id2label() or {}).values()) or None)
    trained = objective.trained_part()
    _check_all_trained(checkpoint, objective)
    ema = AveragedWeights(trained, config.ema_decay)
    averaged = ema.module
    try:
        ema.load_state_dict(saved["ema"])
        if objective.early_stopping is not None and "best" in saved:
            best = EarlyStopping(trained, objective.early_stopping.patience)
            best.load_state_dict(saved["best"])
            averaged = best.best if best.started else averaged
    except RuntimeError as error:
        raise ValueError(f"{checkpoint} doesn't fit the settings in {run.config}: {error}") from error
    components = objective.components(dict(averaged.named_children()))
    for component in components.values():
        if hasattr(component, "eval"):
            component.eval()
    return components, checkpoint


def _find(place: Path) -> tuple[RunFolder, Path]:
    if not place.is_dir():
        raise ValueError(f"There is no folder {place}: give checkpoints/step-N of a run, or the folder of a run.")
    if (place / "state.json").is_file():
        if damage := find_damage(place):
            raise ValueError(f"{place} is damaged: {', '.join(damage)}. Take another checkpoint of the run.")
        return RunFolder(place.absolute().parent.parent), place
    run = RunFolder(place)
    if not list_checkpoints(run.checkpoints):
        raise ValueError(f"{place} is neither a checkpoint nor the folder of a run with checkpoints.")
    found, damaged = newest_whole(run.checkpoints)
    if found is None:
        raise ValueError(f"No checkpoint in {run.checkpoints} is whole: {'; '.join(damaged)}.")
    return run, found


def _read_config(run: RunFolder, start: Path | None) -> RunConfig:
    settings = run.read_config()
    classes = {cls.kind: cls for cls in config_classes()}
    # runs from before their kind was saved: the class with the most settings in common
    kind = settings.get("kind") or min(classes, key=lambda name: len(_names(classes[name]) ^ settings.keys()))
    if kind not in classes:
        raise ValueError(
            f"{run.config} has kind {kind!r}, expected {', '.join(classes)}: was it written by this version?"
        )
    cls = classes[kind]
    known = cls.used({name: settings[name] for name in _names(cls) if name in settings})
    known["output_dir"] = run.path
    if start is not None and known.get("init_from") is None and known.get("vqvae_from") is None:
        raise ValueError(f"The run in {run.path} started from no other folder: leave out {start}.")
    for name in ("init_from", "vqvae_from"):
        if known.get(name) is None:
            continue
        known[name] = Path(known[name]) if start is None else start
        if not known[name].is_dir() and (name == "init_from" or looks_local(known[name])):
            raise ValueError(
                f"The run started from {known[name]}, which isn't there: call this in the folder where the run was "
                f"started, or say where it is now with `{name}`."
            )
    return cls(**known)


def _names(cls: type[RunConfig]) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _check_all_trained(checkpoint: Path, objective: Objective) -> None:
    """
    Raises:
        ValueError: a part has none of the optimizer's moments: no gradient has ever reached it.
    """
    with safe_open(checkpoint / "optimizer.safetensors", "pt") as file:
        stepped = {int(key.split(".", 1)[0]) for key in file.keys()}  # noqa: SIM118
    numbers = {id(p): number for number, p in enumerate(p for p in objective.parameters() if p.requires_grad)}
    for name, part in objective.trained_part().named_children():
        own = {numbers[id(p)] for p in part.parameters() if id(p) in numbers}
        if name in objective.saved and own and not own & stepped:
            raise ValueError(f"{checkpoint} is from before the {name} had been trained at all. Take a later one.")


def _count_classes(tensors: dict[str, Any]) -> int:
    """The last class of a prior is the null class."""
    for name, tensor in tensors.items():
        if name.endswith((".class_embedding.weight", ".classes.weight")):
            return len(tensor) - 1
    raise ValueError("The checkpoint of a class-conditional run has no embedding of classes.")
