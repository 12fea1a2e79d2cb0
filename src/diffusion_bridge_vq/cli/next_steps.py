"""What to do next, as commands that can be pasted."""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ..run_folder import RunFolder
from ..training.config import RunConfig
from ..training.kinds import PriorConfig

# Where the user fills in a name of their own.
REPOSITORY = "USER/MODEL"
PICTURE = "PICTURE"
_SHOWN_EXAMPLES = 4
# Options of a run that say which images it sees.
_OF_IMAGES = (
    "dataset_name",
    "split",
    "streaming",
    "image_column",
    "label_column",
    "resolution",
    "channels",
    "random_flip",
)


def command_line(verb: str, *arguments: str | Path) -> str:
    """
    A command as this one was started: `python examples/sample.py ...` from a script, else `dbvq sample ...`.

    Args:
        verb (`str`): as for `dbvq`, e.g. "train-prior".
        arguments (`str` or `Path`): quoted for a shell where that is needed.
    """
    program = Path(sys.argv[0])
    own = ["dbvq", verb]
    if program.suffix == ".py":
        own = ["python", str(program.with_name(f"{verb.replace('-', '_')}.py"))]
    return shlex.join([*own, *map(str, arguments)])


def print_next(*steps: tuple[str, str]) -> None:
    """Print steps, pairs of a command and what it does."""
    print("Next:", *(f"  {command}  # {purpose}" for command, purpose in steps), sep="\n", flush=True)


def after_pipeline(pipeline: Path, folder: Path) -> list[tuple[str, str]]:
    """
    Steps after a pipeline with a diffusion prior was saved.

    Args:
        pipeline (`Path`): the folder of the pipeline.
        folder (`Path`): what is uploaded, the folder of its run if it has one.

    Raises:
        ValueError: the pipeline's names of classes are malformed.
    """
    saved = RunFolder(pipeline)
    examples = saved.read_label_examples()
    classes: tuple[str, ...] = ()
    if saved.read_id2label():
        classes = ("--class-labels", *examples[:_SHOWN_EXAMPLES]) if examples else ("--all-classes",)
        if not saved.is_student():  # whose guidance is part of its weights
            classes += ("--guidance-scale", "2.5")
    if saved.read_condition() is not None:
        classes += ("--condition", PICTURE)
    picture = pipeline.parent / "samples.png"
    return [
        (command_line("sample", pipeline, *classes, "--output", picture), "draw 64 images"),
        (command_line("push-to-hub", folder, REPOSITORY), "share it"),
    ]


def after_training(saved: Sequence[Path], config: RunConfig) -> list[tuple[str, str]]:
    """
    Steps after a run.

    Args:
        saved (`Sequence[Path]`): what it saved, as `save_trained` returns it.
        config (`RunConfig`): of the run.
    """
    run = RunFolder(config.output_dir)
    if run.autoencoder in saved:
        following = run.path.with_name(f"{run.path.name}-prior")
        data = ["--preset", config.preset, "--dataset", config.dataset, *_data_options(config)]
        arguments = [*data, "--vqvae-from", str(run.path), "--output-dir", str(following)]
        return [(command_line("train-prior", *arguments), "train a prior on it (stage 2)")]
    if RunFolder(run.path).find_component("unet") is not None:
        return after_pipeline(run.pipeline, run.path)
    code = (
        "from diffusion_bridge_vq import PixelCNNVQPipeline; "
        f"PixelCNNVQPipeline.from_pretrained({str(run.pipeline)!r})().images[0].save({str(run.path / 'sample.png')!r})"
    )
    return [
        (shlex.join(["python", "-c", code]), "draw an image"),
        (command_line("push-to-hub", run.path, REPOSITORY), "share it"),
    ]


def _data_options(config: RunConfig) -> list[str]:
    """What makes a prior see the images that this run saw, where it isn't what the preset says."""
    expected = {f.name: f.default for f in dataclasses.fields(PriorConfig)}
    expected |= PriorConfig.preset_settings(config.preset)
    options = []
    for name in _OF_IMAGES:
        flag, value = name.replace("_", "-"), getattr(config, name)
        if value == expected[name]:
            continue
        if isinstance(value, bool):
            options.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            options += [f"--{flag}", str(value)]
    return options
