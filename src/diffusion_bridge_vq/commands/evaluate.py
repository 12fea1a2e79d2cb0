"""
Measure saved pipelines (section 4 of the paper): results as JSON, tables, KL maps and sheets of samples. What
results.json holds of the same weights, images and settings isn't measured again, so an interrupted command continues
when it is run again. With `accelerate launch` the processes share images and draws.
"""

import argparse
from pathlib import Path

from ..cli import (
    REPOSITORY,
    add_evaluation_arguments,
    check_output_folder,
    command_line,
    default_device,
    errors_as_lines,
    evaluation_settings,
    exit_on_sigterm,
    local_path,
    new_parser,
    print_next,
    whole_number,
)
from ..evaluation import METRICS, Processes, evaluate_pipelines, write_report
from ..training import launched_processes


def model(text: str) -> tuple[str, str]:
    name, _, folder = text.partition("=")
    if not folder:
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER, got {text!r}")
    return name, folder


@errors_as_lines()
def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument(
        "verb",
        nargs="+",
        choices=("all", *METRICS, "table"),
        help="what to measure, one or several; table only writes what results.json holds",
    )
    parser.add_argument(
        "--model",
        type=model,
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a saved pipeline, autoencoder or run, repeatable; bridge, bridge-e2e and pixelcnn have places in the "
        "tables",
    )
    parser.add_argument("--dataset", default="digits", help="as for the training scripts")
    add_evaluation_arguments(parser)
    parser.add_argument("--batch-size", type=whole_number(1), default=64, help="images at a time")
    parser.add_argument("--output-dir", type=local_path, default="outputs/evaluation")
    args = parser.parse_args()
    names = [name for name, _ in args.model]
    if len(set(names)) < len(names):
        parser.error(f"--model: each needs a name of its own, got {', '.join(names)}")
    check_output_folder(args.output_dir)
    exit_on_sigterm()
    metrics = METRICS if "all" in args.verb else [verb for verb in args.verb if verb != "table"]
    accelerator = launched_processes(cpu=default_device(float64=True).type == "cpu")
    if metrics:
        evaluate_pipelines(
            dict(args.model),
            args.dataset,
            args.output_dir,
            metrics=metrics,
            **evaluation_settings(args),
            batch_size=args.batch_size,
            device=accelerator.device,
            processes=Processes(accelerator),
        )
    if accelerator.is_main_process:
        print(f"Written: {', '.join(map(str, write_report(args.output_dir)))}")
        for name, folder in args.model:  # a card has the figures that are in the folder of its run
            run = next((r for r in (Path(folder), Path(folder).parent) if r / "evaluation" == args.output_dir), None)
            if run is not None:
                push = command_line("push-to-hub", run, REPOSITORY, "--evaluated-as", name)
                print_next((push, "share it, with these figures on its card"))
    accelerator.end_training()
