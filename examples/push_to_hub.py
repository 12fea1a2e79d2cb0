"""Upload a run (weights, card, grids, settings, evaluation) to the Hub, in one commit. Needs `hf auth login`."""

import argparse
from pathlib import Path

from diffusion_bridge_vq.hub import push_run
from diffusion_bridge_vq.hub.push import add_repository_options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folder", type=Path, help="what a training script wrote, or a saved pipeline")
    parser.add_argument("repo_id", metavar="user/model", help="made if there is none")
    add_repository_options(parser)
    parser.add_argument("--evaluated-as", help="the model's name in evaluation/results.json, if that has several")
    args = parser.parse_args()
    try:
        address = push_run(
            args.folder,
            args.repo_id,
            private=not args.public,
            license=args.license,
            evaluated_as=args.evaluated_as,
        )
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"Pushed: {address}")


if __name__ == "__main__":
    main()
