"""
Draw images from a saved pipeline: as one grid, or with --output-dir as image files, each process its share.

accelerate launch examples/sample.py outputs/mine/pipeline --num-images 50000 --output-dir samples

After an interruption the same command goes on, with any number of processes.
"""

import argparse
import itertools
import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from ..cli import (
    REPOSITORY,
    check_grid,
    check_output_folder,
    check_output_image,
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
from ..figures import chain_sheet
from ..grids import image_grid
from ..models.network_sizes import count_classes
from ..pipelines import DenoisingChain, DiffusionBridgeVQPipeline
from ..pipelines.class_labels import read_class_labels
from ..sample_folder import draw_into_folder
from ..sampling import Solver, default_solver
from ..sampling.steppers import make_stepper
from ..schedulers.few_steps import is_student
from ..training import launched_processes

CHAIN_IMAGES = 4


@errors_as_lines()
def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("pipeline", help="folder of a saved pipeline or of a run, or the pipeline's id on the Hub")
    parser.add_argument("--num-images", type=whole_number(1, 10_000_000), default=64, help="drawn in all")
    parser.add_argument(
        "--num-inference-steps", type=whole_number(1), help="default: the pipeline's own number, or 20"
    )
    parser.add_argument(
        "--solver",
        choices=("dpmsolver++", "ddim", "ancestral"),
        help="ancestral is the paper's, for 50 steps or more; default: dpmsolver++, or a stock scheduler's own",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile: worth it for many batches")
    parser.add_argument("--batch-size", type=whole_number(1, 100_000), default=64, help="images drawn at once")
    parser.add_argument("--seed", type=whole_number(0, 2**63 - 1), default=0, help="of all noise")
    parser.add_argument(
        "--class-labels",
        type=class_label,
        nargs="+",
        help="of a class-conditional model: names or numbers of classes; the images take them in turn",
    )
    parser.add_argument(
        "--condition",
        type=local_path,
        nargs="+",
        help="pictures for a model that draws from them, such as those to be colored; the images take them in turn",
    )
    parser.add_argument("--all-classes", action="store_true", help="all classes of the model in turn")
    parser.add_argument(
        "--guidance-scale", type=finite_number, help="1 is no guidance; default: the pipeline's own, or 1"
    )
    parser.add_argument(
        "--tile-size", type=whole_number(1, 4096), default=64, help="pixels that small images are enlarged to"
    )
    parser.add_argument(
        "--chain-steps", type=whole_number(0, 1000), default=0, help="columns of chain.png (Figure 9); 0 for none"
    )
    parser.add_argument("--output", type=local_path, help="the grid, without --output-dir; default: samples.png")
    parser.add_argument(
        "--output-dir",
        type=local_path,
        help="write each image into a file of its own, with a grid; image i depends on the seed and i alone",
    )
    parser.add_argument("--npz", action="store_true", help="with --output-dir: all in one file for FID tools, too")
    args = parser.parse_args()
    if args.all_classes and args.class_labels:
        parser.error("--all-classes and --class-labels exclude each other")
    if args.output_dir is None and args.npz:
        parser.error("--npz goes with --output-dir")
    if args.output_dir is not None and args.chain_steps:
        parser.error("--chain-steps goes without --output-dir")
    if args.output_dir is not None and args.output is not None:
        parser.error("--output and --output-dir exclude each other: the folder has a grid, too")
    args.output = args.output or Path("samples.png")
    if args.output_dir is None:
        refuse_several_processes(parser, "give --output-dir for files, or start it without `accelerate launch`")
        check_output_image(args.output)
    else:
        check_output_folder(args.output_dir)

    pipe = DiffusionBridgeVQPipeline.from_pretrained(args.pipeline)
    if args.all_classes:
        if pipe.unet.config.num_class_embeds is None:
            raise ValueError("This model has no classes: leave out --all-classes.")
        args.class_labels = list(range(pipe.unet.config.num_class_embeds - 1))
    if args.output_dir is not None:
        write_files(pipe, args)
        return
    width = pipe.vqvae.config.sample_size
    check_grid(args.output, args.num_images, width * max(1, args.tile_size // width) + 4)
    pipe.to(default_device())
    pipe.set_progress_bar_config(disable=None)  # on a terminal only
    images, chain = draw(pipe, args)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    image_grid(images, columns=math.ceil(math.sqrt(len(images))), tile_size=args.tile_size).save(args.output)
    if chain is not None:
        rows = torch.stack(chain.images)[:, :CHAIN_IMAGES].cpu().contiguous()
        save_file({"chain": rows}, args.output.parent / "chain.safetensors")
        chain_sheet(args.output.parent)
    print(f"{len(images)} images, seed {args.seed}, {pipe.num_timesteps} steps: {args.output}")
    print_next(*next_steps(pipe, args))


def write_files(pipe: Any, args: argparse.Namespace) -> None:
    """All images as files, on all processes."""
    conditions = read_conditions(pipe, args.condition)
    labels, guidance = args.class_labels, args.guidance_scale
    if labels is not None and not pipe.config.get("label_words"):
        classes, device = count_classes(pipe.unet), torch.device("cpu")
        numbers = read_class_labels(labels, len(labels), classes, pipe.id2label, device)
        labels = numbers if numbers is None else numbers.tolist()
        if guidance is None and not is_student(pipe.scheduler):  # a student's is part of its weights
            guidance = pipe.config.get("default_guidance_scale", 1.0)
    if guidance is None and conditions:
        guidance = pipe.config.get("default_guidance_scale", 1.0)
    solver = args.solver or default_solver(pipe.scheduler)
    check_call(pipe, labels, guidance, number_of_steps(pipe, args), solver)
    accelerator = launched_processes(cpu=default_device().type == "cpu")
    pipe.to(accelerator.device)
    pipe.set_progress_bar_config(disable=True)
    if args.compile:
        pipe.compile(args.batch_size)
    written = draw_into_folder(
        pipe,
        args.output_dir,
        num_images=args.num_images,
        accelerator=accelerator,
        seed=args.seed,
        batch_size=args.batch_size,
        class_labels=labels,
        conditions=conditions,
        npz=args.npz,
        tile_size=args.tile_size,
        num_inference_steps=number_of_steps(pipe, args),
        solver=solver,
        guidance_scale=guidance,
    )
    names = ", ".join(map(str, [args.output_dir / "images", *written]))
    accelerator.print(f"{args.num_images} images, seed {args.seed}: {names}")
    if accelerator.is_main_process:
        print_next(*next_steps(pipe, args))
    accelerator.end_training()


def check_call(
    pipe: Any, labels: list[int | str] | None, guidance: float | None, steps: int, solver: Solver | None
) -> None:
    """
    Before a file is made: does the pipeline take these arguments?

    Raises:
        ValueError: as the pipeline's call.
    """
    images = len(labels or (0,))
    classes, _ = pipe._read_classes(labels, guidance, images)
    noise = torch.zeros(images, pipe.unet.config.out_channels, *pipe._latent_size(), device=pipe.device)
    make_stepper(pipe.unet, pipe.scheduler, noise, steps, class_labels=classes, solver=solver)


def number_of_steps(pipe: Any, args: argparse.Namespace) -> int:
    """As asked for, or the pipeline's own."""
    return args.num_inference_steps or pipe.config.get("default_num_inference_steps", 20)


def next_steps(pipe: Any, args: argparse.Namespace) -> list[tuple[str, str]]:
    """Compare with real images, and share."""
    folder = Path(args.pipeline)
    where = ("--output-dir", folder / "evaluation") if folder.is_dir() else ()
    model = ("--model", f"mine={args.pipeline}", "--dataset", "DATASET")
    steps: tuple[str, ...] = ()
    if is_student(pipe.scheduler):  # else evaluate.py has a number of its own
        steps = ("--num-inference-steps", str(number_of_steps(pipe, args)))
    share = (command_line("push-to-hub", args.pipeline, REPOSITORY), "share it")
    return [(command_line("evaluate", "fid", *model, *steps, *where), "compare with real images"), share]


def draw(pipe: Any, args: argparse.Namespace) -> tuple[list[Image.Image], DenoisingChain | None]:
    """The images, and the chain of the first batch."""
    steps = number_of_steps(pipe, args)
    chain = DenoisingChain(args.chain_steps, output_type="pt") if args.chain_steps else None
    if args.compile:
        pipe.compile(args.batch_size)
    generator = torch.Generator(pipe.device).manual_seed(args.seed)
    labels = itertools.cycle(args.class_labels or ())
    given = itertools.cycle(read_conditions(pipe, args.condition))
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
            condition=list(itertools.islice(given, batch_size)) or None,
            callback_on_step_end=None if images else chain,
        ).images
    return images, chain
