"""Studies that change a row of the comparison, one thing at a time: trained for equal steps, drawn, measured."""

import argparse
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from diffusion_bridge_vq.cli import check_output_folder, local_path, whole_number

from .data import Data
from .measure import Figures, draw
from .row import Row
from .settings import SETTINGS
from .training import train_row

_SHOWN = ("frechet_real", "frechet_own", "frechet_reconstruction", "precision", "recall", "accuracy", "seconds")


def run_study(
    description: str, arms: Mapping[str, type[Row]], steps: int, output_dir: str, sampling_steps: int
) -> None:
    """
    The command line of a study. Run again, it continues with what the output folder lacks.

    Args:
        description (`str`): of `--help`.
        arms (`Mapping[str, type[Row]]`): the changed rows, by name.
        steps (`int`): of training, if `--steps` isn't given.
        output_dir (`str`): if `--output-dir` isn't given.
        sampling_steps (`int`): of all arms that have no `sampling_steps` of their own.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=SETTINGS, default="digits")
    parser.add_argument("--dataset", help="folder or Hub id of the images, with classes; digits are embedded")
    parser.add_argument("--arms", choices=arms, nargs="+", default=list(arms))
    parser.add_argument("--seeds", type=whole_number(0), nargs="+", default=[0])
    parser.add_argument("--steps", type=whole_number(1), default=steps)
    parser.add_argument("--num-images", type=whole_number(2), default=1500, help="samples, and real images")
    parser.add_argument("--output-dir", type=local_path, default=Path(output_dir))
    args = parser.parse_args()
    dataset = args.dataset or ("digits" if args.data == "digits" else None)
    if dataset is None:
        parser.error(f"--data {args.data} needs --dataset, a folder or a data set of the Hub, with classes.")
    check_output_folder(args.output_dir)
    torch.set_num_threads(1)
    setting = SETTINGS[args.data]
    data = Data(setting, dataset)
    figures = Figures(data, setting.features, args.num_images, args.output_dir / "features")
    for seed in args.seeds:
        for arm in args.arms:
            found = _run(arm, arms[arm], seed, data, figures, args, sampling_steps)
            print(f"{arm}, seed {seed}: {json.dumps(found)}", flush=True)
    print(_table(args))


def _run(
    arm: str, row_class: type[Row], seed: int, data: Data, figures: Figures, args: argparse.Namespace, steps: int
) -> dict[str, float]:
    path = args.output_dir / f"{args.data}-{arm}-{seed}.json"
    settings = {"steps": args.steps, "num_images": args.num_images, "images": data.fingerprint}
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            had, figures_of_before = found["settings"], found["figures"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: remove it, and the arm is run again.") from error
        if had != settings:
            raise ValueError(f"{path} has {had}, not {settings}: give another --output-dir.")
        return figures_of_before
    torch.manual_seed(seed)
    row = row_class(data)
    start = time.process_time()
    train_row(row, float("inf"), args.steps)  # phases follow the steps, so that other programs change nothing
    seconds = time.process_time() - start
    images, labels = draw(row, args.num_images, seed, steps=getattr(row_class, "sampling_steps", steps))
    measured = figures.of_samples(row, images, labels) | {"seconds": seconds}
    found = {name: measured[name] for name in _SHOWN}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps({"settings": settings, "figures": found}, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return found


def _table(args: argparse.Namespace) -> str:
    lines = [f"| seeds {args.seeds} | {' | '.join(_SHOWN)} |", "|---" * (1 + len(_SHOWN)) + "|"]
    for arm in args.arms:
        paths = [args.output_dir / f"{args.data}-{arm}-{seed}.json" for seed in args.seeds]
        found = [json.loads(path.read_text(encoding="utf-8"))["figures"] for path in paths]
        cells = (", ".join(f"{each[name]:.3g}" for each in found) for name in _SHOWN)
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)
