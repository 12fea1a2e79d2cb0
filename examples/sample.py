"""Draw images from a saved pipeline and write them as one grid."""

import argparse
import itertools
import math
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from diffusion_bridge_vq import DenoisingChain, DiffusionBridgeVQPipeline
from diffusion_bridge_vq.figures import chain_sheet
from diffusion_bridge_vq.grids import image_grid

_CHAIN_IMAGES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("pipeline", help="folder of a saved pipeline, or its id on the Hub")
    parser.add_argument("--num-images", type=int, default=64)
    parser.add_argument("--num-inference-steps", type=int, default=20)
    parser.add_argument(
        "--solver",
        choices=("dpmsolver++", "ddim", "ancestral"),
        help="ancestral is the paper's, for 50 steps or more; none: dpmsolver++, or a stock scheduler's own",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile: worth it for many batches")
    parser.add_argument("--batch-size", type=int, default=64, help="images drawn at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--class-labels", type=int, nargs="+", help="of a class-conditional model: classes of the images, by turns"
    )
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="1 is no guidance")
    parser.add_argument("--tile-size", type=int, default=64, help="pixels that small images are enlarged to")
    parser.add_argument("--chain-steps", type=int, default=0, help="columns of chain.png (Figure 9); 0 for none")
    parser.add_argument("--output", type=Path, default=Path("samples.png"))
    args = parser.parse_args()
    if args.num_images < 1 or args.batch_size < 1 or args.chain_steps < 0:
        parser.error("--num-images and --batch-size must be at least 1, --chain-steps at least 0")

    try:
        draw(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def draw(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError, OSError: no pipeline there, or one that doesn't take such a call.
    """
    pipe = DiffusionBridgeVQPipeline.from_pretrained(args.pipeline)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    if args.compile:
        pipe.compile(args.batch_size)
    generator = torch.Generator(pipe.device).manual_seed(args.seed)
    steps = torch.linspace(0, args.num_inference_steps - 1, args.chain_steps).long().tolist()
    chain = DenoisingChain(steps, output_type="pt") if steps else None
    images: list[Image.Image] = []
    labels = itertools.cycle(args.class_labels) if args.class_labels else None
    while len(images) < args.num_images:
        batch_size = min(args.batch_size, args.num_images - len(images))
        images += pipe(
            batch_size=batch_size,
            num_inference_steps=args.num_inference_steps,
            solver=args.solver,
            generator=generator,
            class_labels=labels and list(itertools.islice(labels, batch_size)),
            guidance_scale=args.guidance_scale,
            callback_on_step_end=chain if not images else None,  # the chain of the first batch
        ).images
    args.output.parent.mkdir(parents=True, exist_ok=True)
    image_grid(images, columns=math.ceil(math.sqrt(len(images))), tile_size=args.tile_size).save(args.output)
    if chain is not None:
        rows = torch.stack(chain.images)[:, :_CHAIN_IMAGES].cpu().contiguous()
        save_file({"chain": rows}, args.output.parent / "chain.safetensors")
        chain_sheet(args.output.parent)
    print(f"{len(images)} images, seed {args.seed}, {args.num_inference_steps} steps: {args.output}")


if __name__ == "__main__":
    main()
