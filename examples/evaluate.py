"""Measure saved pipelines (section 4 of the paper): results as JSON, tables, KL maps and sheets of samples."""

import argparse
from pathlib import Path
from typing import Any

import torch

from diffusion_bridge_vq.evaluation import EXTRACTORS, METRICS, evaluate_pipelines, write_report


def model(text: str) -> tuple[str, str]:
    name, _, folder = text.partition("=")
    if not folder:
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER, got {text!r}")
    return name, folder


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """Settings of `evaluate_pipelines`, which reproduce.py takes, too."""
    parser.add_argument("--dataset-name", help="in the results: cifar10 and miniimagenet have places in the tables")
    parser.add_argument(
        "--train-split",
        default="train",
        help="images that models are trained on, in tables also a part: train[:20000]",
    )
    parser.add_argument("--test-split", default="test", help="images that models are held against")
    parser.add_argument("--num-images", type=int, default=5000, help="samples, and real images of each split")
    parser.add_argument("--num-nll-images", type=int, default=256, help="images whose codes are masked")
    parser.add_argument("--num-nll-samples", type=int, default=4, help="draws per masked image")
    parser.add_argument("--num-inference-steps", type=int, default=50, help="of the bridges' samples")
    parser.add_argument("--solver", default="ancestral", help="of the bridges' samples: ancestral, dpmsolver++, ddim")
    parser.add_argument("--extractor", choices=EXTRACTORS, default="inception", help="inception makes a FID")
    parser.add_argument("--seed", type=int, default=0)


def evaluation_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What [`add_evaluation_arguments`] read, as keyword arguments of `evaluate_pipelines`."""
    names = ("dataset_name", "train_split", "test_split", "num_images", "num_nll_images", "num_nll_samples")
    return {name: getattr(args, name) for name in (*names, "num_inference_steps", "solver", "extractor", "seed")}


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
        help="a saved pipeline or autoencoder, repeatable; bridge, bridge-e2e and pixelcnn have places in the tables",
    )
    parser.add_argument("--dataset", default="digits", help="as for the training scripts")
    add_evaluation_arguments(parser)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/evaluation"))
    args = parser.parse_args()
    try:
        if args.verb != "table":
            evaluate_pipelines(
                dict(args.model),
                args.dataset,
                args.output_dir,
                METRICS if args.verb == "all" else (args.verb,),
                **evaluation_settings(args),
                batch_size=args.batch_size,
                device="cuda" if torch.cuda.is_available() else "cpu",
            )
        written = write_report(args.output_dir)
    except ValueError as error:
        parser.error(str(error))
    print(f"written: {', '.join(str(path) for path in written)}")


if __name__ == "__main__":
    main()
