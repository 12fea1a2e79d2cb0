"""
What a model that draws from images adds to them: its draws, the images that it is given and what its autoencoder
makes of the originals, each compared with the originals of a test split. Prints a table, and draws a sheet: given, two
draws, from the codes of the original, original.

    python benchmarks/study_condition.py outputs/color --dataset uoft-cs/cifar10 --num-images 1500 --output color.png

The PSNR rewards means, which a draw isn't: it falls short of the best guess by as much as there is to choose. The
Frechet distance (EfficientNet-Lite2) is to as many other images of the split. Low resolution is enlarged by bicubic
interpolation.
"""

import argparse
import math
from typing import Any

import torch
import torch.nn.functional as F

from diffusion_bridge_vq import DiffusionBridgeVQPipeline
from diffusion_bridge_vq.cli import (
    check_output_image,
    errors_as_lines,
    finite_number,
    local_path,
    whole_number,
)
from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.data.pixels import to_bytes, to_pixels
from diffusion_bridge_vq.evaluation import frechet_distance, load_extractor
from diffusion_bridge_vq.grids import image_grid

BATCH, ROWS, FEATURES = 64, 12, 1280


@errors_as_lines()
@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder of a run or of a saved pipeline that draws from images")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument(
        "--num-images",
        type=whole_number(1),
        default=1500,
        help="the first of the split; as many others are compared with; default: 1500",
    )
    parser.add_argument("--num-inference-steps", type=whole_number(1), default=12)
    parser.add_argument("--guidance-scale", type=finite_number, default=1.0)
    parser.add_argument("--seed", type=whole_number(0), default=0)
    parser.add_argument("--output", type=local_path, default="condition.png", help="the sheet")
    args = parser.parse_args()
    if args.num_images <= FEATURES:
        parser.error(
            f"--num-images {args.num_images} is too few for a Frechet distance of {FEATURES} features: give more than "
            f"{FEATURES}"
        )
    check_output_image(args.output)
    pipe: Any = DiffusionBridgeVQPipeline.from_pretrained(args.pipeline)
    pipe.set_progress_bar_config(disable=True)
    wanted, config = pipe.image_condition, pipe.vqvae.config
    if wanted is None:
        raise ValueError(f"{args.pipeline} doesn't draw from images: give a model that was trained with --condition.")
    images = load_images(
        args.dataset,
        split=args.split,
        resolution=config.sample_size,
        channels=config.in_channels,
        in_memory=False,
        **({} if wanted.column is None else {"condition_column": wanted.column}),
    )
    generator = torch.Generator().manual_seed(args.seed)
    settings = {"num_inference_steps": args.num_inference_steps, "guidance_scale": args.guidance_scale}
    parts: dict[str, list[torch.Tensor]] = {"given": [], "drawn": [], "again": [], "decoded": [], "original": []}
    count = args.num_images
    if len(images) < 2 * count:
        raise ValueError(f"{args.split!r} has {len(images)} images: take at most {len(images) // 2} `--num-images`.")
    indices = range(count)
    for start in indices[::BATCH]:
        batch = images.__getitems__(indices[start : start + BATCH]).tensors
        original = to_pixels(batch["images"])
        given = wanted.derive(original) if wanted.column is None else to_pixels(batch["conditions"])
        enlarged = F.interpolate(given, size=original.shape[-2:], mode="bicubic").clamp(-1, 1)
        parts["original"].append(original)
        parts["given"].append(enlarged.expand_as(original))
        parts["decoded"].append(pipe.vqvae(original).sample.clamp(-1, 1))
        for name in ("drawn", "again")[: 2 if start == 0 else 1]:
            drawn = pipe(condition=(given + 1) / 2, generator=generator, output_type="pt", **settings).images
            parts[name].append(drawn * 2 - 1)
    found = {name: torch.cat(tensors) for name, tensors in parts.items()}
    rows = torch.stack([found[name][:ROWS] for name in ("given", "drawn", "again", "decoded", "original")], dim=1)
    tiles = pipe.image_processor.postprocess(rows.flatten(0, 1), output_type="pil")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    image_grid(tiles, columns=10).save(args.output)
    extract = load_extractor("efficientnet-lite2")

    def features(pixels: torch.Tensor) -> torch.Tensor:
        return torch.cat([extract(to_bytes(part)) for part in pixels.split(BATCH)])

    others = [
        images.__getitems__(range(i, min(i + BATCH, 2 * count))).tensors["images"]
        for i in range(count, 2 * count, BATCH)
    ]
    reference, original = torch.cat([extract(part) for part in others]), found["original"]
    print(f"| {count} images of {args.split} | PSNR, dB | Frechet distance to others |\n| --- | --- | --- |")
    for name, what in (
        ("given", "the condition"),
        ("drawn", "drawn"),
        ("decoded", "the codes of the original"),
        ("original", "the original"),
    ):
        error = ((found[name] - original) / 2).square().mean().item()  # of all: one of them may be gray itself
        psnr = f"{-10 * math.log10(error):.2f}" if error else ""
        print(f"| {what} | {psnr} | {frechet_distance(features(found[name]), reference):.1f} |", flush=True)


if __name__ == "__main__":
    main()
