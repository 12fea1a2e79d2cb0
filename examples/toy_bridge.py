"""The toy of section 4.1 and appendix 10: a bridge over walks on eight points of a circle."""

import argparse
import json
import platform
import sys
import time

import torch
from safetensors.torch import save_file

from diffusion_bridge_vq.cli import check_output_folder, errors_as_lines, local_path, new_parser, whole_number
from diffusion_bridge_vq.sampling.chain import MAX_REPETITIONS
from diffusion_bridge_vq.toy.experiment import FEWEST_SAMPLES, run_toy
from diffusion_bridge_vq.toy.figures import plot_toy


def position(text: str) -> tuple[int, int]:
    s, _, code = text.partition("=")
    if not (s.isdecimal() and code.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected S=Q, such as 1=0, got {text!r}")
    return int(s), int(code)


@errors_as_lines()
def main() -> None:
    started = time.perf_counter()
    parser = new_parser(__doc__)
    parser.add_argument("--network", choices=("residual", "paper"), default="residual", help="see ToyConfig")
    parser.add_argument("--max-train-steps", type=whole_number(1), help="instead of the network's own number")
    parser.add_argument("--num-samples", type=whole_number(FEWEST_SAMPLES), default=1000, help="behind every share")
    parser.add_argument("--fix", type=position, nargs="+", default=[(1, 0), (5, 4)], metavar="S=Q", help="q_s to fix")
    parser.add_argument(
        "--jump-n-sample",
        type=whole_number(1, MAX_REPETITIONS),
        default=10,
        help="resampling when inpainting; 1 for none",
    )
    parser.add_argument("--seed", type=whole_number(0, 2**63 - 1), default=0, help="of everything")
    parser.add_argument("--output-dir", type=local_path, default="outputs/toy")
    args = parser.parse_args()
    if len(dict(args.fix)) < len(args.fix):
        parser.error("--fix names a position twice")
    check_output_folder(args.output_dir)

    options = {name: getattr(args, name) for name in ("max_train_steps", "num_samples", "jump_n_sample", "seed")}
    found = run_toy(dict(args.fix), args.network == "paper", **options)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in found.tensors.items()}, args.output_dir / "toy.safetensors")
    record = {
        "command": " ".join(["python", *sys.argv]),
        "device": f"CPU, {torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}",
        "settings": found.settings | {"seed": args.seed, "fixed": dict(args.fix)},
        "seconds": round(time.perf_counter() - started),
        "results": found.shares,
        "chain": found.chain,
    }
    (args.output_dir / "toy.json").write_text(json.dumps(record, indent=1))
    figures = plot_toy(args.output_dir)
    print(f"{record['seconds']} s; results and {len(figures)} figures in {args.output_dir}")


if __name__ == "__main__":
    main()
