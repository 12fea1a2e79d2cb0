"""
Measure saved pipelines (section 4 of the paper): results as JSON, tables, KL maps and sheets of samples. What
results.json holds of the same weights, images and settings isn't measured again, so the same command goes on after
whatever stopped it.
"""

import argparse
import signal
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from diffusion_bridge_vq.evaluation import METRICS, EvaluationConfig, evaluate_pipelines, write_report


def model(text: str) -> tuple[str, str]:
    name, _, folder = text.partition("=")
    if not folder:
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER, got {text!r}")
    return name, folder


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that reproduce.py takes, too: images, and the fields of `EvaluationConfig`."""
    parser.add_argument("--dataset-name", help="in the results: cifar10 and miniimagenet have places in the tables")
    parser.add_argument(
        "--train-split",
        default="train",
        help="images that models are trained on, in tables also a part: train[:20000]",
    )
    parser.add_argument("--test-split", default="test", help="images that models are held against")
    parser.add_argument("--image-column", help="column with the images, if there are several")
    for option in fields(EvaluationConfig):
        name, text = f"--{option.name.replace('_', '-')}", option.metadata["help"]
        parser.add_argument(name, type=type(option.default), default=option.default, help=text)


_SHARED = ("dataset_name", "train_split", "test_split", "image_column")


def evaluation_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What [`add_evaluation_arguments`] read, as keyword arguments of `evaluate_pipelines`."""
    config = EvaluationConfig(**{option.name: getattr(args, option.name) for option in fields(EvaluationConfig)})
    return {name: getattr(args, name) for name in _SHARED} | {"config": config}


def say_how_to_go_on(number: int, _: Any) -> None:
    """For SIGTERM, which `timeout` sends: all that was measured is on disk, so there is nothing else to do."""
    print(f"{signal.Signals(number).name}: stopped; the same command goes on from here.", file=sys.stderr)
    raise SystemExit(128 + number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "verb", choices=("all", *METRICS, "table"), help="what to measure; table only writes what results.json holds"
    )
    parser.add_argument(
        "--model",
        type=model,
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a saved pipeline or autoencoder (of a run: its pipeline or vqvae), repeatable; bridge, bridge-e2e and "
        "pixelcnn have places in the tables",
    )
    parser.add_argument("--dataset", default="digits", help="as for the training scripts")
    add_evaluation_arguments(parser)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/evaluation"))
    args = parser.parse_args()
    names = [name for name, _ in args.model]
    if len(set(names)) < len(names):
        parser.error(f"--model: each needs a name of its own, got {', '.join(names)}")
    signal.signal(signal.SIGTERM, say_how_to_go_on)
    try:
        if args.verb != "table":
            evaluate_pipelines(
                dict(args.model),
                args.dataset,
                args.output_dir,
                metrics=METRICS if args.verb == "all" else (args.verb,),
                **evaluation_settings(args),
                batch_size=args.batch_size,
                device="cuda" if torch.cuda.is_available() else "cpu",
            )
        written = write_report(args.output_dir)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"written: {', '.join(str(path) for path in written)}")


if __name__ == "__main__":
    main()
