"""Draw images from a saved pipeline and write them as one grid."""

import argparse
import math
from pathlib import Path

import torch
from diffusers.utils import make_image_grid
from PIL import Image, ImageOps

from diffusion_bridge_vq import DiffusionBridgeVQPipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("pipeline", help="folder of a saved pipeline")
    parser.add_argument("--num-images", type=int, default=64)
    parser.add_argument("--num-inference-steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=64, help="images drawn at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--class-label", type=int, help="class of all images, for a class-conditional model")
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="1 is no guidance")
    parser.add_argument("--scale", type=int, default=4, help="size of a pixel in the grid")
    parser.add_argument("--output", type=Path, default=Path("samples.png"))
    args = parser.parse_args()
    if args.num_images < 1 or args.batch_size < 1 or args.scale < 1:
        parser.error("--num-images, --batch-size and --scale must be at least 1")

    pipe = DiffusionBridgeVQPipeline.from_pretrained(args.pipeline)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(pipe.device).manual_seed(args.seed)
    images: list[Image.Image] = []
    while len(images) < args.num_images:
        images += pipe(
            batch_size=min(args.batch_size, args.num_images - len(images)),
            num_inference_steps=args.num_inference_steps,
            generator=generator,
            class_labels=args.class_label,
            guidance_scale=args.guidance_scale,
        ).images
    tiles = [t.resize((t.width * args.scale, t.height * args.scale), Image.Resampling.NEAREST) for t in images]
    tiles = [ImageOps.expand(t, border=2, fill="gray") for t in tiles]
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    tiles += [Image.new(tiles[0].mode, tiles[0].size)] * (rows * columns - len(tiles))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    make_image_grid(tiles, rows=rows, cols=columns).save(args.output)
    print(f"{len(images)} images, seed {args.seed}, {args.num_inference_steps} steps: {args.output}")


if __name__ == "__main__":
    main()
