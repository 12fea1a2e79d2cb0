"""Write the pipeline of a checkpoint, to look at a run before it ends: sample.py and the others take the result."""

from ..cli import (
    after_pipeline,
    check_output_folder,
    errors_as_lines,
    local_path,
    new_parser,
    print_next,
    refuse_several_processes,
)
from ..pipelines import save_trained
from ..run_folder import RunFolder
from ..training.checkpoint_components import load_components


@errors_as_lines()
def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument(
        "checkpoint", type=local_path, help="checkpoints/step-N of a run, or the folder of a run, for its newest one"
    )
    for option in ("--init-from", "--vqvae-from"):
        parser.add_argument(option, type=local_path, help=f"where the run's {option} is now, if it was moved")
    parser.add_argument("--output-dir", type=local_path, required=True, help="gets a folder pipeline/ (or vqvae/)")
    args = parser.parse_args()
    refuse_several_processes(parser)
    if args.init_from and args.vqvae_from:
        parser.error("--init-from and --vqvae-from exclude each other: a run started from one folder")
    check_output_folder(args.output_dir)
    output = RunFolder(args.output_dir)
    if output.finished() or output.config.exists():
        parser.error(f"{output.path} holds a run or a pipeline already: give another --output-dir")
    start = args.init_from or args.vqvae_from
    components, checkpoint = load_components(args.checkpoint, start)
    run = RunFolder(checkpoint.absolute().parent.parent)
    saved = save_trained(components, run, output, start)
    print(f"{checkpoint}: {', '.join(map(str, saved))}")
    if output.find_component("unet") is not None:
        print_next(*after_pipeline(output.pipeline, output.path))
