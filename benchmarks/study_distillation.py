"""
Two ways to make a student of a bridge, for the same seconds of CPU time: regression of the ends of its trajectories
(what `distill` does; drawing them counts), and consistency distillation (Song et al. 2023, algorithm 2). Prints a
table: the distance of the codes that each draws in 1, 2 and 4 steps to those of the training images, as
`study_steps.py` measures it.

    python benchmarks/study_distillation.py checkpoints/digits --seconds 200 --seeds 0 1 2

Consistency distillation takes the latents of a training image, adds noise up to a level, and lets the teacher take
one guided step of DDIM to the level below. The target of the student at the first is what its EMA predicts at the
second.
"""

import argparse
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator
from study_steps import SampleMeasure, draw_codes

from diffusion_bridge_vq import DiffusionBridgeVQPipeline
from diffusion_bridge_vq.cli import errors_as_lines, finite_number, whole_number
from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.data.encoded import EncodedImages
from diffusion_bridge_vq.data.pixels import to_pixels
from diffusion_bridge_vq.models import denoise, refuse_image_condition
from diffusion_bridge_vq.schedulers.few_steps import check_teacher
from diffusion_bridge_vq.training import draw_trajectories
from diffusion_bridge_vq.training.ema import AveragedWeights
from diffusion_bridge_vq.training.objectives.distillation import FEW_STEPS, DistillObjective, make_student_scheduler

BATCH, LEARNING_RATE, EMA_DECAY, STEPS_OF_TEACHER = 64, 5e-4, 0.99, 12
METHODS = ("trajectories", "consistency")


@errors_as_lines()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder of the teacher, a saved bridge")
    parser.add_argument("--dataset", default="digits", help="that it was trained on; default: digits")
    parser.add_argument("--split", default="train")
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=METHODS)
    parser.add_argument("--seconds", type=finite_number, default=200.0, help="of CPU time for each; default: 200")
    parser.add_argument("--num-trajectories", type=whole_number(1), default=1536)
    parser.add_argument("--guidance-scale", type=finite_number, default=1.0, help="that the student learns")
    parser.add_argument("--seeds", type=whole_number(0), nargs="+", default=[0])
    parser.add_argument("--steps", type=int, choices=list(FEW_STEPS), nargs="+", default=[1, 2, 4])
    parser.add_argument("--num-images", type=whole_number(1), default=1000, help="samples of each; default: 1000")
    args = parser.parse_args()
    args.features, args.batch_size = "latents", 250
    torch.set_num_threads(1)
    pipe: Any = DiffusionBridgeVQPipeline.from_pretrained(args.pipeline)
    check_before_work(pipe, args)
    measure = SampleMeasure(pipe, args)
    print("| student | seed | steps of training | calls | Frechet distance | KL of codes, nats |")
    print("|---|---|---|---|---|---|")
    for seed in args.seeds:
        for method in args.methods:
            torch.manual_seed(seed)
            train = {"trajectories": train_on_trajectories, "consistency": train_consistency}[method]
            student, taken = train(pipe, args, seed)
            student.set_progress_bar_config(disable=True)
            for steps in args.steps:
                values = measure(
                    draw_codes(student, args.num_images, args.batch_size, seed, num_inference_steps=steps)
                )
                print(f"| {method} | {seed} | {taken} | {steps} | {values['frechet']:.2f} | {values['kl']:.3f} |")


def check_before_work(pipe: Any, args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: a model that can't be the teacher of both methods on these data, or no time.
    """
    if args.seconds <= 0:
        raise ValueError(f"--seconds must be positive, got {args.seconds}.")
    check_teacher(pipe.scheduler)
    refuse_image_condition(pipe.unet, "this study doesn't take")
    config, classes = pipe.vqvae.config, (pipe.unet.config.num_class_embeds or 1) - 1
    images = load_images(args.dataset, split=args.split, resolution=config.sample_size, channels=config.in_channels)
    if classes and (pipe.config.get("label_words") or images.num_classes != classes):
        raise ValueError(
            f"The teacher has {classes} classes or words, and {images.name} has {images.num_classes or 'no'} classes: "
            "give the data of classes that it was trained on, or a teacher without classes."
        )


def train_on_trajectories(pipe: Any, args: argparse.Namespace, seed: int) -> tuple[DiffusionBridgeVQPipeline, int]:
    """The student of `distill`, and the steps of training that were left after drawing."""
    started = time.process_time()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "trajectories"
        encoding = draw_trajectories(
            pipe.vqvae,
            pipe.unet,
            pipe.scheduler,
            folder,
            accelerator=Accelerator(cpu=True),
            num_trajectories=args.num_trajectories,
            num_inference_steps=STEPS_OF_TEACHER,
            guidance_scale=args.guidance_scale,
            seed=seed,
        )
        rows = EncodedImages(folder)
        drawn = rows.__getitems__(list(range(len(rows))))
    timesteps = encoding.data["timesteps"]
    scheduler = make_student_scheduler(pipe.scheduler, timesteps, args.guidance_scale)
    objective = DistillObjective(pipe.vqvae, deepcopy(pipe.unet), scheduler, [len(scheduler) - 1, *timesteps[1:]])
    trajectories, labels = drawn["trajectories"], drawn.get("labels")
    averaged = AveragedWeights(objective.unet, EMA_DECAY)

    def loss(chosen: torch.Tensor) -> torch.Tensor:
        return objective(trajectories[chosen], None if labels is None else labels[chosen]).losses["distillation"]

    taken = train(objective.unet, averaged, loss, len(trajectories), started, args.seconds)
    return DiffusionBridgeVQPipeline(pipe.vqvae, averaged.module, scheduler), taken


def train_consistency(pipe: Any, args: argparse.Namespace, seed: int) -> tuple[DiffusionBridgeVQPipeline, int]:
    """A student by consistency distillation at the noise levels of a trajectory, and its steps of training."""
    started = time.process_time()
    config, teacher, unet = pipe.vqvae.config, pipe.scheduler, deepcopy(pipe.unet)
    images = load_images(args.dataset, split=args.split, resolution=config.sample_size, channels=config.in_channels)
    with torch.no_grad():
        parts = torch.arange(len(images)).split(args.batch_size)
        batches = [images.__getitems__(part.tolist()).tensors for part in parts]
        latents = torch.cat([pipe.vqvae.encode(to_pixels(batch["images"])).latents for batch in batches])
    labels = None
    if pipe.unet.config.num_class_embeds:
        labels = torch.cat([batch["labels"] for batch in batches])
    teacher.set_timesteps(STEPS_OF_TEACHER, timestep_spacing="logsnr")
    timesteps = teacher.timesteps.clone()
    scheduler = make_student_scheduler(teacher, timesteps.tolist(), args.guidance_scale)
    averaged = AveragedWeights(unet, EMA_DECAY)

    def predict(network: Any, z: torch.Tensor, t: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
        return teacher.predict_original_sample(denoise(network, teacher, z, t, classes), t, z)

    def loss(chosen: torch.Tensor) -> torch.Tensor:
        z_0, classes = latents[chosen], None if labels is None else labels[chosen]
        level = torch.randint(len(timesteps), (len(chosen),))
        t, noise = timesteps[level], torch.randn_like(z_0)
        z_t = teacher.add_noise(z_0, noise, t)
        with torch.no_grad():
            guess = predict(pipe.unet, z_t, t, classes)
            if classes is not None and args.guidance_scale != 1:
                null = torch.full_like(classes, pipe.unet.config.num_class_embeds - 1)
                without = predict(pipe.unet, z_t, t, null)
                guess = torch.lerp(without, guess, args.guidance_scale)
            last = level == len(timesteps) - 1
            below = timesteps[(level + 1).clamp(max=len(timesteps) - 1)]
            # DDIM keeps the noise that goes with the guess; after the last level there is none
            mean, spread = (teacher.add_noise(guess, torch.zeros_like(guess), t), spread_of(teacher, t, guess))
            z_s = teacher.add_noise(guess, (z_t - mean) / spread, below)
            target = predict(averaged.module, z_s, below, classes)
            target = torch.where(last.view(-1, 1, 1, 1), guess, target)
        return (predict(unet, z_t, t, classes) - target).square().mean()

    taken = train(unet, averaged, loss, len(latents), started, args.seconds)
    return DiffusionBridgeVQPipeline(pipe.vqvae, averaged.module, scheduler), taken


def spread_of(scheduler: Any, t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Standard deviation of z_t given z_0, (B, 1, 1, 1)."""
    zeros = torch.zeros_like(like)
    return (scheduler.add_noise(zeros, torch.ones_like(like), t) - scheduler.add_noise(zeros, zeros, t))[:, :1, :1, :1]


def train(unet: Any, averaged: Any, loss: Any, count: int, started: float, seconds: float) -> int:
    """AdamW with a linear fall of the rate, to the end of the time since `started`; returns the steps taken."""
    optimizer = torch.optim.AdamW(unet.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    began, taken, rows = time.process_time(), 0, batches_of(count)
    unet.train()
    while (now := time.process_time()) < started + seconds:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (started + seconds - now) / (started + seconds - began)
        value = loss(next(rows))
        value.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        taken += 1
        averaged.update_parameters(unet, min(EMA_DECAY, (1 + taken) / (10 + taken)))
    averaged.module.eval()
    return taken


def batches_of(count: int) -> Iterator[torch.Tensor]:
    while True:
        yield from torch.randperm(count).split(BATCH)


if __name__ == "__main__":
    main()
