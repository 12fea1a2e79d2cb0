"""
Draw the trajectories of a trained bridge once, each process its share, into parquet files that distill.py learns from.

python examples/draw_trajectories.py checkpoints/digits --num-trajectories 8192 --output-dir outputs/trajectories

After an interruption the same command goes on, with any number of processes.
"""

from ..cli import (
    check_output_folder,
    command_line,
    default_device,
    errors_as_lines,
    finite_number,
    local_path,
    new_parser,
    print_next,
    whole_number,
)


@errors_as_lines()
def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("teacher", type=local_path, help="folder of a saved bridge, or of the run that trained it")
    parser.add_argument("--output-dir", type=local_path, required=True, help="the folder that is written")
    parser.add_argument("--num-trajectories", type=whole_number(1), default=16384, help="in all")
    parser.add_argument("--num-inference-steps", type=whole_number(1), default=12, help="steps of DPM-Solver++")
    parser.add_argument(
        "--guidance-scale", type=finite_number, help="of a teacher with classes; default: the pipeline's own, or 1"
    )
    parser.add_argument(
        "--class-dropout",
        type=finite_number,
        help="of a teacher with classes: fraction of the trajectories without one; default: 0.1",
    )
    parser.add_argument("--dataset", help="of a teacher of words: data set whose labels are drawn, as for training")
    parser.add_argument("--image-column", help="its column with the images, if there are several")
    parser.add_argument("--label-column", help="its column with the texts, or several with commas between them")
    parser.add_argument("--seed", type=whole_number(0, 2**31 - 1), default=0, help="of noise and classes")
    parser.add_argument("--precision", choices=["float16", "float32"], default="float16", help="of what is written")
    parser.add_argument("--mixed-precision", choices=["no", "bf16"], default="no", help="arithmetic of the network")
    parser.add_argument("--batch-size", type=whole_number(1), default=64, help="drawn at a time, by each process")
    args = parser.parse_args()
    check_output_folder(args.output_dir)

    from ..data import load_images  # after `--help`
    from ..models.conditions import split_words
    from ..pipelines import DiffusionBridgeVQPipeline
    from ..training import draw_trajectories
    from ..training.agreement import launched_processes
    from ..training.data import label_texts

    accelerator = launched_processes(cpu=default_device().type == "cpu", mixed_precision=args.mixed_precision)
    pipe = DiffusionBridgeVQPipeline.from_pretrained(args.teacher)
    if args.class_dropout is not None and pipe.unet.config.num_class_embeds is None:
        raise ValueError(f"{args.teacher} has no classes: leave out --class-dropout.")
    words = bool(pipe.config.get("label_words"))
    if words and args.dataset is None:
        raise ValueError(
            f"{args.teacher} draws from words: name the `--dataset` whose labels are drawn, and its `--label-column`, "
            "such as those that it was trained on."
        )
    if not words and (args.dataset or args.label_column or args.image_column):
        raise ValueError(f"{args.teacher} doesn't draw from words, so it needs no data set: drop `--dataset`.")
    texts = None
    if words:
        images = load_images(
            args.dataset,
            resolution=pipe.vqvae.config.sample_size,
            channels=pipe.vqvae.config.in_channels,
            image_column=args.image_column,
            label_column=args.label_column,
            in_memory=False,
        )
        texts = [text for text in label_texts(images) if split_words(text)]  # others are as no words in training
        if not texts:
            raise ValueError(f"{args.dataset} has no texts as labels: name the column with them by `--label-column`.")
        if args.num_trajectories < len(texts):
            accelerator.print(
                f"{args.dataset} has {len(texts)} different texts, so {args.num_trajectories} trajectories leave some "
                "out; take more `--num-trajectories`."
            )
    scale = pipe.config.get("default_guidance_scale", 1.0) if args.guidance_scale is None else args.guidance_scale
    if args.guidance_scale is None and scale == 1 and pipe.unet.config.num_class_embeds:
        accelerator.print(
            "guidance scale 1, since the teacher has no default: its student will draw with that and no other. For "
            "images that show their class clearly, stop and give --guidance-scale, such as 2.5."
        )
    encoding = draw_trajectories(
        **pipe.components,
        folder=args.output_dir,
        accelerator=accelerator,
        num_trajectories=args.num_trajectories,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=scale,
        class_dropout=0.1 if args.class_dropout is None else args.class_dropout,
        seed=args.seed,
        precision=args.precision,
        batch_size=args.batch_size,
        name=args.teacher.name,
        class_names=None if pipe.id2label is None else list(pipe.id2label.values()),
        texts=texts,
    )
    accelerator.print(
        f"{sum(encoding.rows or [])} trajectories of {len(encoding.data['timesteps'])} points, guidance scale "
        f"{encoding.data['guidance_scale']:g}: {args.output_dir}"
    )
    if accelerator.is_main_process:
        student = args.output_dir.with_name(f"{args.output_dir.name}-student")
        where = ("--trajectories", args.output_dir, "--output-dir", student)
        following = command_line("distill", "--init-from", args.teacher, *where)
        print_next((following, "train a student on them"))
    accelerator.end_training()
