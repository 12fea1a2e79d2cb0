"""
Place few sampling steps where they lose least for one trained bridge, and save them in its scheduler's config.

python examples/fit_timesteps.py outputs/demo/pipeline --steps 4 6 8

The steps end nearest to where 32 steps end from the same noise. The pipeline takes them where a call asks for as many
steps of "dpmsolver++" and for no spacing.
"""

from ..cli import (
    check_output_folder,
    default_device,
    errors_as_lines,
    finite_number,
    local_path,
    new_parser,
    refuse_several_processes,
    whole_number,
)


@errors_as_lines()
def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("pipeline", type=local_path, help="folder of a saved bridge, or of the run that trained it")
    parser.add_argument("--steps", type=whole_number(2, 31), nargs="+", default=[4, 6, 8], help="numbers of steps")
    parser.add_argument("--num-samples", type=whole_number(1), default=64, help="that are compared")
    parser.add_argument(
        "--guidance-scale", type=finite_number, help="of a model with classes; default: the pipeline's own, or 1"
    )
    parser.add_argument("--mixed-precision", choices=["no", "bf16"], default="no", help="arithmetic of the network")
    parser.add_argument(
        "--seed", type=whole_number(0, 2**31 - 1), default=0, help="of the noise that samples start from"
    )
    args = parser.parse_args()
    refuse_several_processes(parser)

    import torch  # after `--help`

    from ..models import refuse_image_condition, words_to_labels
    from ..models.network_sizes import latent_sides
    from ..pipelines import DiffusionBridgeVQPipeline
    from ..pipelines.saved_folder import find_pipeline_folder
    from ..sampling import fit_timesteps

    folder = find_pipeline_folder(args.pipeline)
    if folder is None:
        raise ValueError(
            f"There is no folder {args.pipeline}, and the steps are saved in one: fetch a pipeline of the Hub with "
            f"`hf download {args.pipeline} --local-dir FOLDER`, and give that."
        )
    check_output_folder(folder / "scheduler")
    pipe = DiffusionBridgeVQPipeline.from_pretrained(folder)
    pipe.to(default_device())
    unet, scale, labels = pipe.unet, 1.0, None
    refuse_image_condition(unet, "this command doesn't take")
    sides = latent_sides(unet.config.sample_size)
    generator = torch.Generator().manual_seed(args.seed)
    noise = torch.randn(args.num_samples, unet.config.in_channels, *sides, generator=generator).to(pipe.device)
    if unet.config.num_class_embeds is None:
        if args.guidance_scale not in (None, 1.0):
            raise ValueError("This model has no classes: leave out --guidance-scale.")
    else:
        labels = torch.arange(args.num_samples, device=pipe.device) % (unet.config.num_class_embeds - 1)
        if pipe.config.get("label_words"):
            if not pipe.label_examples:
                raise ValueError(
                    f"The classes of this model are words, and no image has one alone: write some texts "
                    f'into {folder / "model_index.json"}, to fit steps for them: "label_examples": {{"0": "TEXT"}}.'
                )
            vectors = words_to_labels(pipe.label_examples, list((pipe.id2label or {}).values()))
            labels = vectors[torch.arange(args.num_samples) % len(vectors)].to(pipe.device)
        scale = pipe.config.get("default_guidance_scale", 1.0) if args.guidance_scale is None else args.guidance_scale
    with torch.autocast(pipe.device.type, torch.bfloat16, enabled=args.mixed_precision == "bf16"):
        fitted = fit_timesteps(unet, pipe.scheduler, noise, args.steps, labels, scale)
    table = dict(pipe.scheduler.config.few_step_timesteps or {})
    for number, found in fitted.items():
        print(f"{number} steps: {found.timesteps}, error {found.error:.4f}, before {found.error_before:.4f}")
        table[str(number)] = found.timesteps
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, few_step_timesteps=table)
    scheduler.save_pretrained(folder / "scheduler")
    print(f"Saved: {folder / 'scheduler'}")
