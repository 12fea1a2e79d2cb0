"""
The package against what people would use instead, at equal CPU time. Trains, draws and measures every row, and writes
tables and sheets of samples. Run again, it continues: a row that is finished isn't run again.
"""

import argparse
import sys
from dataclasses import replace

import torch

from diffusion_bridge_vq.cli import (
    check_output_folder,
    errors_as_lines,
    exit_on_sigterm,
    finite_number,
    local_path,
    new_parser,
    whole_number,
)
from diffusion_bridge_vq.evaluation import EXTRACTORS

from .data import Data
from .measure import Figures
from .report import write_report
from .results import RowFolder, run_row, seconds_of, seeds_of, time_again
from .rows import ROWS, check_packages, row_class
from .settings import SETTINGS


@errors_as_lines()
def main(arguments: list[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    setting = SETTINGS[args.data]
    if args.autoencoder_fraction is not None:
        setting = replace(setting, autoencoder_fraction=args.autoencoder_fraction)
    dataset = args.dataset or ("digits" if args.data == "digits" else None)
    if dataset is None:
        raise ValueError(f"--data {args.data} needs --dataset, a folder or a data set of the Hub, with classes.")
    everything = [name for rows in ROWS.values() for name in rows]
    names = args.rows or [name for table in args.tables for name in ROWS[table]]
    check_packages([] if args.report_only else names)
    check_output_folder(args.output_dir)
    exit_on_sigterm()
    torch.set_num_threads(1)
    data = Data(setting, dataset)
    features = args.features or setting.features
    shared = {
        "data": args.data,
        "images": data.fingerprint,
        "features": features,
        "num_images": args.num_images or setting.num_images,
        "search_images": setting.search_images if args.search_images is None else args.search_images,
        "tune_fraction": args.tune_fraction,
        "max_steps": args.max_steps,
    }

    def folder(name: str, seed: int) -> RowFolder:
        own = {"seed": seed, "seconds": seconds_of(name, setting, args.seconds)}
        changed = setting.autoencoder_fraction != SETTINGS[args.data].autoencoder_fraction
        own["autoencoder_fraction"] = setting.autoencoder_fraction if changed and row_class(name).splits_time else None
        return RowFolder(args.output_dir, name, shared | own)

    if args.time_again:
        for seed in args.seeds:
            for name in names:
                time_again(folder(name, seed), data)
    elif not args.report_only:
        figures = Figures(data, features, shared["num_images"], args.output_dir / args.data / "features")
        if shared["search_images"]:
            figures.check_count("--search-images", shared["search_images"])
        for seed in args.seeds:
            for name in names:
                run_row(folder(name, seed), data, figures, args.tune_fraction, args.max_steps)
    others = seeds_of(args.output_dir / args.data) - set(args.seeds)
    folders = [folder(name, seed) for name in everything for seed in sorted({*args.seeds, *others})]
    folders = [each for each in folders if each.settings["seed"] in args.seeds or each.is_alike()]
    written = write_report(folders, args.output_dir)
    print(f"Written: {', '.join(map(str, written))}")


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.prog = "python -m benchmarks.peers"
    parser.add_argument("--data", choices=SETTINGS, default="digits", help="what is learned")
    parser.add_argument("--dataset", help="folder or Hub id of the images, with classes; digits are embedded")
    parser.add_argument("--tables", choices=ROWS, nargs="+", default=list(ROWS), help="A: priors; B: whole systems")
    parser.add_argument("--rows", choices=[n for rows in ROWS.values() for n in rows], nargs="+", help="only these")
    parser.add_argument("--seconds", type=_positive, help="CPU seconds of training of a row; default: the setting's")
    parser.add_argument("--tune-fraction", type=_fraction, default=0.1, help="of it, for each learning rate; 0: none")
    parser.add_argument(
        "--autoencoder-fraction",
        type=_fraction,
        help="of a row of table B, for its first stage; default: as set",
    )
    parser.add_argument("--num-images", type=whole_number(1), help="samples of a row; default: the setting's")
    parser.add_argument(
        "--search-images", type=whole_number(0), help="samples for each sampling setting; 0: no search"
    )
    parser.add_argument("--features", choices=("latents", *EXTRACTORS), help="that compare images")
    parser.add_argument("--seeds", type=whole_number(0), nargs="+", default=[0], help="each trains its own networks")
    parser.add_argument("--max-steps", type=whole_number(1), help="of each phase, to try the machinery")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--report-only", action="store_true", help="write the tables of what is there")
    only.add_argument("--time-again", action="store_true", help="measure only the seconds per image of finished rows")
    parser.add_argument("--output-dir", type=local_path, default="outputs/peers")
    return parser


def _positive(text: str) -> float:
    value = finite_number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return value


def _fraction(text: str) -> float:
    value = finite_number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be in [0, 1], got {text}")
    return value


if __name__ == "__main__":
    sys.argv[0] = "benchmarks.peers"  # the name in errors
    main()
