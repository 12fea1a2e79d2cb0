"""
The paper's comparison in stages: autoencoder; bridge and PixelCNN on its latents, for the same time each; the bridge
end-to-end from the same autoencoder; evaluation and tables. A stage that is done is skipped, one that was interrupted
continues with the same command: repeat `timeout 500 python examples/reproduce.py ...` until it returns 0.
"""

import os

from ..cli import (
    add_evaluation_arguments,
    after_pipeline,
    check_output_folder,
    default_device,
    errors_as_lines,
    evaluation_settings,
    exit_on_sigterm,
    finite_number,
    local_path,
    new_parser,
    print_next,
    refuse_several_processes,
    whole_number,
)
from ..comparison import TRAINING_STAGES, Comparison
from ..evaluation import METRICS

STAGES = (*TRAINING_STAGES, "evaluate")


@errors_as_lines()
def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--preset", default="cifar10-tiny", help="settings of all four runs")
    parser.add_argument("--dataset", required=True, help="as for the training scripts")
    parser.add_argument(
        "--budget", type=finite_number, default=120, help="seconds of training in each of the four runs"
    )
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=STAGES, help="one or several")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto: a GPU if there is one")
    add_evaluation_arguments(parser)
    parser.add_argument("--metrics", nargs="+", choices=tuple(METRICS), default=tuple(METRICS), help="one or several")
    parser.add_argument("--batch-size", type=whole_number(1), help="of the training runs, instead of the preset's")
    parser.add_argument("--mixed-precision", help="of the training runs: no, fp16 or bf16")
    parser.add_argument("--output-dir", type=local_path, default="outputs/reproduce")
    args = parser.parse_args()
    refuse_several_processes(parser)
    evaluation = evaluation_settings(args)
    if args.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"  # read by every Accelerator
    check_output_folder(args.output_dir)
    exit_on_sigterm()

    names = ("image_column", "num_inference_steps", "batch_size", "mixed_precision")
    settings = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    comparison = Comparison(
        args.preset, args.dataset, args.output_dir, args.budget, args.train_split, args.seed, settings
    )
    training = [stage for stage in args.stage if stage in TRAINING_STAGES]
    comparison.check_data(training, args.test_split if "evaluate" in args.stage else None)
    for stage in args.stage:
        if stage == "evaluate":
            device = "cpu" if args.device == "cpu" else default_device(float64=True)
            written = comparison.evaluate(args.metrics, device, **evaluation)
            print(f"Written: {', '.join(map(str, written))}")
            if (bridge := comparison.run("bridge")).pipeline.is_dir():
                print_next(*after_pipeline(bridge.pipeline, bridge.path))
        else:
            comparison.train(stage)
