"""
Encode a data set once with a trained autoencoder, each process its share, into parquet files that train_prior.py and
train_pixelcnn.py read (`--latents`).

accelerate launch examples/encode_dataset.py --vqvae-from outputs/vq --dataset path/to/shards --streaming \
    --output-dir outputs/latents

After an interruption the same command goes on, with any number of processes.
"""

from ..cli import (
    add_repository_options,
    check_output_folder,
    command_line,
    default_device,
    errors_as_lines,
    local_path,
    new_parser,
    print_next,
    whole_number,
)


@errors_as_lines()
def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument(
        "--vqvae-from", type=local_path, required=True, help="an autoencoder's folder, or a run or pipeline with one"
    )
    parser.add_argument("--dataset", required=True, help="as for training: a folder, or the id of a data set")
    parser.add_argument("--output-dir", type=local_path, required=True, help="the folder that is written")
    parser.add_argument("--split", default="train", help="split to encode")
    parser.add_argument("--streaming", action="store_true", help="read without a copy: parquet, tar shards, the Hub")
    parser.add_argument("--image-column", help="column with the images, if there are several")
    parser.add_argument("--label-column", help="column with the classes, if it isn't a ClassLabel")
    parser.add_argument("--resolution", type=whole_number(1), help="side of the images, if not the autoencoder's")
    parser.add_argument("--what", choices=["latents", "codes"], default="latents", help="codes are for PixelCNN only")
    parser.add_argument("--precision", choices=["float16", "float32"], help="of latents; default: float16")
    parser.add_argument("--mirrored", action="store_true", help="write the mirror image of each image, too")
    parser.add_argument("--condition", help="write what a model draws from, too: as of train_prior.py")
    parser.add_argument("--batch-size", type=whole_number(1), default=64, help="images at a time, by each process")
    parser.add_argument("--push-to-hub", metavar="USER/NAME", help="upload what was encoded, with a card")
    parser.add_argument("--dataset-name", help="of the images, on that card; without it only one of the Hub is named")
    add_repository_options(parser)
    args = parser.parse_args()
    if (args.public or args.license) and not args.push_to_hub:
        parser.error("--public and --license go with --push-to-hub")
    if args.dataset_name and not args.push_to_hub:
        parser.error("--dataset-name goes with --push-to-hub: it is written on the card")
    if args.precision and args.what == "codes":
        parser.error("--precision goes with latents: codes are whole numbers")
    if args.condition and args.what == "codes":
        parser.error("--condition goes with latents: a PixelCNN draws from no images")
    check_output_folder(args.output_dir)
    target = None
    if args.push_to_hub:
        from ..hub import PushOptions

        target = PushOptions(args.push_to_hub, args.public, args.license)  # a wrong name is refused before the work

    from ..data import ImageCondition, load_images, stream_images
    from ..training import encode_images, launched_processes, load_autoencoder
    from ..training.presets import PRESETS

    accelerator = launched_processes(cpu=default_device().type == "cpu")
    vqvae = load_autoencoder(args.vqvae_from)
    options = {
        "split": args.split,
        "resolution": args.resolution or vqvae.config.sample_size,
        "channels": vqvae.config.in_channels,
        "image_column": args.image_column,
        "label_column": args.label_column,
    }
    condition = None
    if args.condition is not None:
        condition = ImageCondition.parse(args.condition, options["channels"], options["resolution"])
        options["condition_column"] = condition.column
    images = (
        stream_images(args.dataset, **options)
        if args.streaming
        else load_images(args.dataset, **options, in_memory=False)
    )
    encoding = encode_images(
        vqvae,
        images,
        args.output_dir,
        accelerator=accelerator,
        split=args.split,
        what=args.what,
        precision=args.precision or "float16",
        mirrored=args.mirrored,
        batch_size=args.batch_size,
        condition=condition,
    )
    with_condition = "" if condition is None else f", each with its condition {condition.name!r}"
    accelerator.print(
        f"{sum(encoding.rows or [])} rows of {encoding.what}, {' x '.join(map(str, encoding.shape or []))} in "
        f"{encoding.dtype}{with_condition}, in {encoding.parts} files: {args.output_dir}"
    )
    if target is not None and accelerator.is_main_process:
        from ..hub import push_encoded

        print(f"Pushed: {push_encoded(args.output_dir, target, args.dataset_name)}")
    if accelerator.is_main_process:
        verb = "train-prior" if args.what == "latents" else "train-pixelcnn"
        fits = [
            name
            for name, preset in PRESETS.items()
            if preset["common"]["resolution"] == options["resolution"]
            and preset["common"]["vqvae"]["latent_channels"] == vqvae.config.latent_channels
        ]
        given = ["--preset", (fits or ["PRESET"])[0], "--vqvae-from", args.vqvae_from, "--latents", args.output_dir]
        given += [] if args.condition is None else ["--condition", args.condition]
        print_next((command_line(verb, *given), "train a prior on them"))
    accelerator.end_training()
