"""What a run is about to do, on one screen: data, networks, phases, files, and an estimate of time and memory."""

import math

import torch

from ...data import StreamedImages
from ...data.encoded import EncodedImages
from ...run_folder import RunFolder
from ..config import RunConfig
from ..data import Images
from ..objectives import Objective
from .quantities import duration, number_of_weights, size


def phases_within(config: RunConfig, objective: Objective) -> dict[int, str]:
    """Those of [`Objective.phases`] that begin before the last step."""
    return {start: trained for start, trained in objective.phases().items() if start < config.max_train_steps}


def describe_run(config: RunConfig, objective: Objective, images: Images, device: torch.device, processes: int) -> str:
    """
    A run before its first step, a line for each subject.

    Args:
        config (`RunConfig`), objective ([`Objective`]), images (`Images`), device (`torch.device`): of the run.
        processes (`int`): how many train it.
    """
    folder = RunFolder(config.output_dir)
    lines = {
        "run": f"{config.kind}, preset {config.preset}, on {_count(processes, 'process')} ({device}, "
        f"{'float32' if config.mixed_precision == 'no' else config.mixed_precision})",
        "data": _describe_data(config, objective, images),
        "latents": _describe_latents(config, objective),
        "networks": _describe_networks(objective),
        "training": _describe_training(config, images, processes),
        "phases": _describe_phases(config, objective),
        "pictures": f"every {config.image_every:,} steps and at the end" if config.image_every else "at the end",
    }
    if objective.start:
        lines["start"] = objective.start
    if not config.dry_run:
        lines["settings"] = f"all in {folder.config}"
    return "\n".join(f"{subject:<10}{text}" for subject, text in lines.items())


def describe_estimate(
    config: RunConfig, objective: Objective, step_seconds: float, memory: float, begun: float = 0.0
) -> str:
    """
    What a whole run takes, from the time of a step.

    Args:
        config (`RunConfig`), objective ([`Objective`]): of the run.
        step_seconds (`float`): of an optimizer step.
        memory (`float`): of each process, in bytes.
        begun (`float`, *optional*, defaults to 0.0): seconds of training before this start.
    """
    limit, steps = config.max_train_time, float(config.max_train_steps)
    if limit is not None:
        steps = max(1.0, min(steps, (limit - begun) / step_seconds))
    text = f"{duration(step_seconds)} per step, {duration(steps * step_seconds)} in all"
    if limit is not None and steps < config.max_train_steps:
        text += f" (`max_train_time`: about {round(steps):,} steps)"
    first = _first_grid(config, steps, 0)
    pictures = f"first pictures after {duration(first * step_seconds)}"
    if objective.samples_from is not None:
        samples = _first_grid(config, steps, objective.samples_from / config.max_train_steps * steps)
        if samples > first:
            pictures += f", samples after {duration(samples * step_seconds)}"
    return f"{'estimate':<10}{text}; {pictures}; memory {size(memory)}"


def _first_grid(config: RunConfig, steps: float, start: float) -> float:
    """The first step after which grids are drawn, and not before step `start`."""
    if not config.image_every:
        return steps
    return min(steps, config.image_every * max(1, math.ceil(start / config.image_every)))


def _describe_data(config: RunConfig, objective: Objective, images: Images) -> str:
    color = "gray" if config.channels == 1 else "color"
    shape = f"{config.resolution} x {config.resolution} {color}"
    if isinstance(images, StreamedImages):
        text = f"a stream of {images.name}, {shape}"
    else:
        count = images.num_images if isinstance(images, EncodedImages) else len(images)
        kind = "encoded images" if isinstance(images, EncodedImages) else "images"
        text = f"{images.name}: {count:,} {kind}, {shape}"
        if (rule := objective.early_stopping) is not None:
            text += f", {rule.holdout_fraction:.0%} of them held out for early stopping"
    if images.num_classes is not None:
        what, number = "classes", images.num_classes
        if config.uses_words:  # "" is the text of trajectories without words
            what, number = "texts", sum(name != "" for name in images.class_names or ())
        text += f", {number} {what}{'' if config.uses_classes else ' (not used)'}"
    return text


def _describe_latents(config: RunConfig, objective: Objective) -> str:
    vqvae = objective.vqvae.config
    side = config.resolution // objective.vqvae.downsampling_factor
    channels = vqvae.vq_embed_dim or vqvae.latent_channels
    return f"{side} x {side} positions, {channels} channels, {vqvae.num_vq_embeddings} codes"


def _describe_networks(objective: Objective) -> str:
    """Weights of each network; those of frozen features are left out."""
    parts = []
    for name, module in objective.named_children():
        if name in (*objective.trained, *objective.saved):
            weights = sum(p.numel() for p in module.parameters())
            parts.append(f"{name} {number_of_weights(weights)}{'' if name in objective.trained else ' (frozen)'}")
    return f"{', '.join(parts)} weights"


def _describe_training(config: RunConfig, images: Images, processes: int) -> str:
    batch = config.batch_size * config.gradient_accumulation_steps * processes
    text = f"{config.max_train_steps:,} steps of {batch} images"
    if config.balance_classes:
        text += ", all classes about equally often"
    elif not isinstance(images, StreamedImages):
        count = images.num_images if isinstance(images, EncodedImages) else len(images)
        epochs = config.max_train_steps * batch / count
        text += f" ({epochs:,.0f} epochs)" if epochs >= 10 else f" ({epochs:.3g} epochs)"
    if config.max_train_time is not None:
        text += f" or {duration(config.max_train_time)}, whichever comes first"
    warm_up = f", {config.lr_warmup_steps:,} steps of warm-up" if config.lr_warmup_steps else ""
    return f"{text}; AdamW, learning rate {config.learning_rate:g}, {config.lr_schedule}{warm_up}"


def _describe_phases(config: RunConfig, objective: Objective) -> str:
    parts = []
    for start, trained in phases_within(config, objective).items():
        place = f"{start / config.max_train_steps:.0%}" if config.max_train_time else f"step {start:,}"
        parts.append(f"from {place} on: {trained}")
    return "; ".join(parts)


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}es"
