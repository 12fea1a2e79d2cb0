"""Draw images from a saved pipeline and write them as one grid."""

import argparse
import itertools
import math
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from ..cli import (
    check_output_image,
    class_label,
    errors_as_lines,
    finite_number,
    local_path,
    new_parser,
    whole_number,
)
from ..figures import chain_sheet
from ..grids import image_grid
from ..pipelines import DenoisingChain, DiffusionBridgeVQPipeline

CHAIN_IMAGES = 4


@errors_as_lines()
def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("pipeline", help="folder of a saved pipeline or of a run, or the pipeline's id on the Hub")
    parser.add_argument("--num-images", type=whole_number(1, 100_000), default=64)
    parser.add_argument("--num-inference-steps", type=whole_number(1), help="none: the pipeline's own number, or 20")
    parser.add_argument(
        "--solver",
        choices=("dpmsolver++", "ddim", "ancestral"),
        help="ancestral is the paper's, for 50 steps or more; none: dpmsolver++, or a stock scheduler's own",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile: worth it for many batches")
    parser.add_argument("--batch-size", type=whole_number(1, 100_000), default=64, help="images drawn at once")
    parser.add_argument("--seed", type=whole_number(0, 2**63 - 1), default=0)
    parser.add_argument(
        "--class-labels",
        type=class_label,
        nargs="+",
        help="of a class-conditional model: names or numbers of classes; the images take them in turn",
    )
    parser.add_argument(
        "--guidance-scale", type=finite_number, help="1 is no guidance; none: the pipeline's own, or 1"
    )
    parser.add_argument(
        "--tile-size", type=whole_number(1, 4096), default=64, help="pixels that small images are enlarged to"
    )
    parser.add_argument(
        "--chain-steps", type=whole_number(0, 1000), default=0, help="columns of chain.png (Figure 9); 0 for none"
    )
    parser.add_argument("--output", type=local_path, default="samples.png")
    args = parser.parse_args()
    check_output_image(args.output)

    pipe = DiffusionBridgeVQPipeline.from_pretrained(args.pipeline)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    images, chain = draw(pipe, args)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    image_grid(images, columns=math.ceil(math.sqrt(len(images))), tile_size=args.tile_size).save(args.output)
    if chain is not None:
        rows = torch.stack(chain.images)[:, :CHAIN_IMAGES].cpu().contiguous()
        save_file({"chain": rows}, args.output.parent / "chain.safetensors")
        chain_sheet(args.output.parent)
    print(f"{len(images)} images, seed {args.seed}, {pipe.num_timesteps} steps: {args.output}")


def draw(pipe: Any, args: argparse.Namespace) -> tuple[list[Image.Image], DenoisingChain | None]:
    """The images, and the chain of the first batch."""
    steps = args.num_inference_steps or pipe.config.get("default_num_inference_steps", 20)
    chain = None
    if args.chain_steps:
        chain = DenoisingChain(torch.linspace(0, steps - 1, args.chain_steps).long().tolist(), output_type="pt")
    if args.compile:
        pipe.compile(args.batch_size)
    generator = torch.Generator(pipe.device).manual_seed(args.seed)
    labels = itertools.cycle(args.class_labels or ())
    images: list[Image.Image] = []
    while len(images) < args.num_images:
        batch_size = min(args.batch_size, args.num_images - len(images))
        images += pipe(
            batch_size=batch_size,
            num_inference_steps=steps,
            solver=args.solver,
            generator=generator,
            class_labels=list(itertools.islice(labels, batch_size)) or None,
            guidance_scale=args.guidance_scale,
            callback_on_step_end=None if images else chain,
        ).images
    return images, chain
