"""Upload a run (weights, card, grids, settings, evaluation) to the Hub, in one commit. Needs `hf auth login`."""

from ..cli import (
    PICTURE,
    add_repository_options,
    command_line,
    errors_as_lines,
    local_path,
    new_parser,
    print_next,
    refuse_several_processes,
)
from ..hub import push_run
from ..run_folder import RunFolder


@errors_as_lines()
def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("folder", type=local_path, help="what a training script wrote, or a saved pipeline")
    parser.add_argument("repo_id", metavar="user/model", help="created if it doesn't exist")
    add_repository_options(parser)
    parser.add_argument("--evaluated-as", help="the model's name in evaluation/results.json, if that has several")
    parser.add_argument("--dataset-name", help="of the training data; without it only one of the Hub is named")
    args = parser.parse_args()
    refuse_several_processes(parser)
    address = push_run(
        args.folder,
        args.repo_id,
        private=not args.public,
        license=args.license,
        evaluated_as=args.evaluated_as,
        dataset_name=args.dataset_name,
    )
    print(f"Pushed: {address}")
    if (args.folder / "pipeline").is_dir() or (args.folder / "model_index.json").is_file():
        pictures = () if RunFolder(args.folder).read_condition() is None else ("--condition", PICTURE)
        print_next((command_line("sample", args.repo_id, *pictures), "draw from the Hub, on any machine"))
