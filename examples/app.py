"""
A page to try a saved pipeline: draw pictures, open one, complete it, see how it came about, swap its codes.

Needs the extra `demo`. docs/how-to/page.md has its API, examples/space/README.md says how it becomes a Space.
"""

import os
from pathlib import Path

from diffusion_bridge_vq import DiffusionBridgeVQPipeline
from diffusion_bridge_vq.cli import default_device, errors_as_lines, new_parser
from diffusion_bridge_vq.page import Demo

DEMO = "checkpoints/digits"


@errors_as_lines()
def main() -> None:
    parser = new_parser(__doc__)
    help = "folder of a saved pipeline, or user/model of the Hub; $MODEL_ID, if that is set"
    parser.add_argument("model", nargs="?", default=os.environ.get("MODEL_ID", DEMO), help=help)
    model = parser.parse_args().model
    if model == DEMO and not Path(DEMO).is_dir():
        parser.error(f"{DEMO} isn't here: run this from the repository, or name a folder or a model of the Hub.")
    from diffusion_bridge_vq.page.server import launch  # needs gradio, which says so

    pipe = DiffusionBridgeVQPipeline.from_pretrained(model)
    launch(Demo(pipe.to(default_device())))


if __name__ == "__main__":
    main()
