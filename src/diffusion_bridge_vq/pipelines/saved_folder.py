"""Which folder of those that a run leaves holds the pipeline."""

import os
from pathlib import Path

from diffusers.utils import CONFIG_NAME

from ..data.paths import looks_local, suggest_path
from ..home_folder import expand_home
from ..pretrained import INDEX_NAME, read_json
from ..run_folder import RunFolder, is_checkpoint


def find_pipeline_folder(place: str | os.PathLike[str]) -> Path | None:
    """
    The folder of a saved pipeline: `place` itself, or `pipeline/` in the folder of a run.

    Returns:
        `Path`; None if `place` is no path of this machine, so that it may be an id on the Hub.

    Raises:
        ValueError: no such folder, or none with a pipeline; says what is there instead and what to do.
    """
    folder = expand_home(place)
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(f"{folder} is a file: give the folder of a pipeline or of a run.")
        if looks_local(os.fspath(place)):
            raise ValueError(f"There is no folder {folder}. {suggest_path(folder, INDEX_NAME)}".rstrip())
        return None
    run = RunFolder(folder)
    for candidate in (folder, run.pipeline):
        if (candidate / INDEX_NAME).is_file():
            return candidate
    export = "write its pipeline with `python examples/export_checkpoint.py {} --output-dir FOLDER`"
    if is_checkpoint(folder):
        raise ValueError(f"{folder} is a checkpoint of a run: {export.format(folder)}, and give that folder.")
    checkpoints = sorted(run.checkpoints.glob("step-*")) if run.checkpoints.is_dir() else []
    if checkpoints and not run.finished():
        raise ValueError(f"The run in {folder} isn't over: {export.format(folder)}, and give that folder.")
    if run.autoencoder.is_dir() and not any((folder / prior).is_dir() for prior in ("unet", "prior")):
        raise ValueError(
            f"The run in {folder} trained an autoencoder alone, which draws nothing: train a prior on it."
        )
    parent = folder.absolute().parent
    if (parent / INDEX_NAME).is_file():
        raise ValueError(f"{folder} is a component of a pipeline: give the pipeline's folder, {str(parent)!r}.")
    if (folder / CONFIG_NAME).is_file() and (name := read_json(folder / CONFIG_NAME).get("_class_name")):
        raise ValueError(f"{folder} holds a {name} alone, not a pipeline: train a prior on an autoencoder.")
    suggestion = suggest_path(folder, INDEX_NAME)
    raise ValueError(f"{folder} has no {INDEX_NAME}, so it isn't the folder of a pipeline. {suggestion}".rstrip())
