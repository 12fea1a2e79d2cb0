"""Hide part of some images and let a saved pipeline complete them (Figures 6, 7, 8, 17 and 18)."""

import argparse
import json
import sys
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from ..cli import (
    PICTURE,
    check_output_folder,
    class_label,
    command_line,
    default_device,
    errors_as_lines,
    finite_number,
    local_path,
    new_parser,
    print_next,
    refuse_several_processes,
    whole_number,
)
from ..cli.conditions import read_conditions
from ..data import load_images
from ..evaluation.paper_masks import MASKS, paper_mask
from ..figures import chain_sheet, inpainting_sheet
from ..home_folder import expand_home
from ..pipelines import DenoisingChain, DiffusionBridgeVQInpaintPipeline
from ..sampling.chain import MAX_REPETITIONS


@errors_as_lines()
def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("pipeline", help="folder of a saved pipeline or of a run, or the pipeline's id on the Hub")
    parser.add_argument(
        "--dataset",
        help="images to complete, as for the training scripts; default: digits, if the model's are 16x16 gray",
    )
    parser.add_argument("--split", default="test", help="of the data set; a folder of images without splits is train")
    parser.add_argument("--image-column", help="column with the images, if there are several")
    parser.add_argument("--num-images", type=whole_number(1), default=3, help="taken evenly from the data set")
    parser.add_argument("--num-completions", type=whole_number(1), default=4, help="independent ones of each image")
    parser.add_argument(
        "--mask",
        default="center",
        help=f"{', '.join(MASKS)} (the given half), or an image file of the model's size, white where hidden",
    )
    parser.add_argument(
        "--class-labels",
        type=class_label,
        nargs="+",
        help="one for each image, or one: names or numbers of classes, or texts where these are words",
    )
    parser.add_argument(
        "--condition",
        type=local_path,
        nargs="+",
        help="pictures for a model that draws from them, one for each image, or one; default: those of the data set",
    )
    parser.add_argument(
        "--guidance-scale", type=finite_number, help="1 is no guidance; default: the pipeline's own, or 1"
    )
    parser.add_argument("--num-inference-steps", type=whole_number(1), default=50, help="reverse steps")
    parser.add_argument(
        "--jump-length", type=whole_number(1), help="resampling: steps between two jumps back; default: 10"
    )
    parser.add_argument(
        "--jump-n-sample",
        type=whole_number(1, MAX_REPETITIONS),
        default=5,
        help="resampling: repetitions of each stretch; 1 for none",
    )
    parser.add_argument(
        "--composite-strength", type=finite_number, default=0.0, help="1 keeps known pixels as they are"
    )
    parser.add_argument(
        "--chain-steps", type=whole_number(0, 1000), default=8, help="columns of the sheet of the chain; 0 for none"
    )
    parser.add_argument("--seed", type=whole_number(0, 2**63 - 1), default=0, help="of all noise")
    parser.add_argument("--output-dir", type=local_path, default="outputs/inpaint")
    args = parser.parse_args()
    refuse_several_processes(parser)
    if args.jump_length is not None and args.jump_n_sample == 1:
        parser.error("--jump-length goes with a --jump-n-sample above 1: without resampling there are no jumps")
    check_output_folder(args.output_dir)

    pipe: Any = DiffusionBridgeVQInpaintPipeline.from_pretrained(args.pipeline)
    pipe.to(default_device())
    pipe.set_progress_bar_config(disable=None)  # on a terminal only
    mask = read_mask(pipe, args.mask)
    given = read_conditions(pipe, args.condition) if args.condition else None
    images, own, chosen = read_images(pipe, args)
    chain = DenoisingChain(args.chain_steps, output_type="pt") if args.chain_steps else None
    options = {"num_inference_steps": args.num_inference_steps, "output_type": "pt"}
    options["condition"] = own if given is None else given
    completions = pipe(
        images,
        mask,
        num_completions=args.num_completions,
        generator=torch.Generator(pipe.device).manual_seed(args.seed),
        jump_length=args.jump_length or 10,
        jump_n_sample=args.jump_n_sample,
        composite_strength=args.composite_strength,
        class_labels=args.class_labels,
        guidance_scale=args.guidance_scale,
        callback_on_step_end=chain,
        **options,
    ).images.cpu()
    with torch.no_grad():
        decoded = pipe.vqvae(images.to(pipe.device, pipe.vqvae.dtype) * 2 - 1).sample.float()
    reconstructions = (decoded / 2 + 0.5).clamp(0, 1).cpu()
    hidden = pipe.read_mask(mask, args.num_images)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    saved = {
        "masked": torch.where(hidden, 0.5, reconstructions),
        "completions": completions.unflatten(0, (args.num_images, args.num_completions)),
        "reconstructions": reconstructions,
    }
    save_file({name: t.contiguous() for name, t in saved.items()}, args.output_dir / "inpainting.safetensors")
    sheets = [inpainting_sheet(args.output_dir)]
    if chain is not None:  # of the first completion of each image
        first = torch.stack(chain.images)[:, :: args.num_completions].cpu().contiguous()
        save_file({"chain": first}, args.output_dir / "chain.safetensors")
        sheets.append(chain_sheet(args.output_dir))
    steps = [] if chain is None else chain.image_steps
    record = {"command": " ".join(sys.argv), "images": chosen, "chain_steps": steps}
    (args.output_dir / "inpainting.json").write_text(json.dumps(record, indent=1))
    print(f"{len(completions)} completions, seed {args.seed}: {', '.join(str(sheet) for sheet in sheets)}")
    pictures = () if pipe.image_condition is None else ("--condition", *(args.condition or [PICTURE]))
    print_next((command_line("sample", args.pipeline, *pictures), "draw whole images"))


def read_images(
    pipe: DiffusionBridgeVQInpaintPipeline, args: argparse.Namespace
) -> tuple[torch.Tensor, torch.Tensor | None, list[int]]:
    """
    Images (n, C, H, W) in [0, 1], evenly from the data set, what each is drawn from, (n, c, s, s), if the model draws
    from images, and their numbers.
    """
    size, channels = pipe.vqvae.config.sample_size, pipe.vqvae.config.in_channels
    if args.dataset is None and (size, channels) != (16, 1):
        raise ValueError(
            f"--dataset: say which images to complete; the default, digits, isn't for a model of {size}x{size} with "
            f"{channels} channel(s)"
        )
    wanted = pipe.image_condition
    column = None if wanted is None or args.condition else wanted.column
    dataset = load_images(
        args.dataset or "digits",
        resolution=size,
        channels=channels,
        split=args.split,
        image_column=args.image_column,
        condition_column=column,
    )
    if args.num_images > len(dataset):
        raise ValueError(f"--num-images: {dataset.name} has {len(dataset)}")
    chosen = torch.linspace(0, len(dataset) - 1, args.num_images).long().tolist()
    items = [dataset[i] for i in chosen]
    batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    own = None if wanted is None or args.condition else wanted.of_items(batch).float() / 255
    return batch["images"].float() / 255, own, chosen


def read_mask(pipe: DiffusionBridgeVQInpaintPipeline, text: str) -> torch.Tensor | Image.Image:
    """One of the paper's masks, in pixels, or a picture."""
    if text in MASKS:
        factor = pipe.vqvae.downsampling_factor
        side = pipe.vqvae.config.sample_size // factor
        hidden = paper_mask(text, side, side).float()
        return hidden.repeat_interleave(factor, 0).repeat_interleave(factor, 1)[None, None]
    path = expand_home(text)
    if not path.is_file():
        raise ValueError(f"--mask: {text} is neither one of {', '.join(MASKS)} nor a file")
    return Image.open(path)
