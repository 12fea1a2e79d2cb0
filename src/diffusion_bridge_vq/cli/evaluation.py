"""What evaluate.py and reproduce.py share."""

import argparse
import dataclasses
from typing import Any

from .parser import finite_number, whole_number


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what evaluate.py and reproduce.py share: which images, and the fields of `EvaluationConfig`."""
    parser.add_argument("--dataset-name", help="in the results: cifar10 and miniimagenet have places in the tables")
    parser.add_argument(
        "--train-split",
        default="train",
        help="images that models are trained on, in tables also a part: train[:20000]",
    )
    parser.add_argument("--test-split", default="test", help="images that models are compared with")
    parser.add_argument("--image-column", help="column with the images, if there are several")
    parser.add_argument("--label-column", help="column with the classes, if there are several")
    from ..evaluation import EvaluationConfig

    for option in dataclasses.fields(EvaluationConfig):
        name, text = f"--{option.name.replace('_', '-')}", option.metadata["help"]
        # its own bounds are those of `EvaluationConfig`
        kinds = {float: finite_number, int: whole_number(-(2**31))}
        kind = kinds.get(type(option.default), str)
        parser.add_argument(name, type=kind, default=option.default, help=text)


def evaluation_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What [`add_evaluation_arguments`] read, as keyword arguments of `evaluate_pipelines`."""
    from ..evaluation import EvaluationConfig

    names = [option.name for option in dataclasses.fields(EvaluationConfig)]
    config = EvaluationConfig(**{name: getattr(args, name) for name in names})
    shared = ("dataset_name", "train_split", "test_split", "image_column", "label_column")
    return {name: getattr(args, name) for name in shared} | {"config": config}
