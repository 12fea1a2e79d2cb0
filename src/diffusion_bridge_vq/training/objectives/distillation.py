"""A student that draws in one to four steps, from the trajectories of a trained bridge."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import nn

from ... import pretrained
from ...data.encoded_shards import Encoding
from ...models import (
    CodeUNet2DModel,
    GumbelVQModel,
    check_channels,
    denoise,
    refuse_image_condition,
    take_several_classes,
)
from ...models.code_unet import check_process
from ...models.network_sizes import latent_sides
from ...run_folder import RunFolder
from ...sampling import sample_latents
from ...schedulers import OUBridgeScheduler
from ...schedulers.few_steps import check_teacher, default_number_of_steps
from ..build import build_autoencoder
from ..kinds import DistillConfig
from ..trajectories import COLUMN, NO_CLASS, teacher_fingerprint
from .base import Objective, ObjectiveOutput, root_mean_square, trains
from .bridge import all_classes

# Half log-SNRs at which a student's steps begin after the first, which begins at noise alone, by their number. Lower
# noise lets errors of the teacher add up (docs/reports, few steps).
FEW_STEPS = {1: (), 2: (-2.3,), 3: (-2.3, -1.6), 4: (-3.0, -2.3, -1.6)}
_NEAR = 2.0  # how far from these the points of a trajectory may be


@trains(DistillConfig)
class DistillObjective(Objective):
    """
    Plain regression of z_0, the end of a trajectory, from any of its points (the "consistency mid-training" of
    arXiv 2509.24526): the target is fixed, and guidance is in it.

    Args:
        vqvae ([`GumbelVQModel`]): the teacher's, frozen, stays in eval mode.
        unet (`UNet2DModel`): trained; starts from the teacher's weights.
        scheduler ([`OUBridgeScheduler`]): of the student, from [`make_student_scheduler`].
        timesteps (`list[int]`): of the points of a trajectory.
    """

    trained = ("unet",)
    saved = ("vqvae", "unet", "scheduler")
    shardable = True
    cached_input = COLUMN
    samples_from = 0
    timesteps: torch.Tensor

    def __init__(
        self, vqvae: GumbelVQModel, unet: UNet2DModel, scheduler: OUBridgeScheduler, timesteps: Sequence[int]
    ):
        super().__init__()
        self.vqvae, self.unet, self.scheduler = vqvae.requires_grad_(False).eval(), unet, scheduler
        self.register_buffer("timesteps", torch.tensor(timesteps), persistent=False)

    @classmethod
    def from_config(
        cls, config: DistillConfig, num_classes: int | None, class_names: Sequence[str] | None = None
    ) -> "DistillObjective":
        assert config.init_from is not None and config.trajectories is not None
        encoding = Encoding.read(config.trajectories)
        if encoding.what != COLUMN:
            raise ValueError(
                f"{config.trajectories} holds {encoding.what}, expected trajectories: write them with "
                "draw_trajectories."
            )
        vqvae = build_autoencoder(config)
        unet, scheduler = _load_teacher(RunFolder(config.init_from), vqvae)
        if encoding.data["teacher"] != teacher_fingerprint(unet, scheduler):
            raise ValueError(
                f"The trajectories in {config.trajectories} are those of another network or process than that in "
                f"{config.init_from}: draw them again, or give their teacher as `init_from`."
            )
        _check_classes(encoding, RunFolder(config.init_from), config.trajectories)
        if encoding.words is not None:
            take_several_classes(unet)
        student = make_student_scheduler(scheduler, encoding.data["timesteps"], encoding.data["guidance_scale"])
        return cls(vqvae, unet, student, _begin_at_noise(student, encoding.data["timesteps"]))

    def networks(self) -> list[nn.Module]:
        return [self.unet, *super().networks()]

    def train(self, mode: bool = True) -> "DistillObjective":
        super().train(mode)
        self.vqvae.eval()
        return self

    def forward(self, trajectories: torch.Tensor, class_labels: torch.Tensor | None = None) -> ObjectiveOutput:
        """
        Trajectories (B, points + 1, d, h, w), the last of each being z_0, and classes (B,), -1 for none, or vectors
        over the classes (B, K + 1).
        """
        rows = torch.arange(len(trajectories), device=trajectories.device)
        point = torch.randint(trajectories.shape[1] - 1, rows.shape, device=rows.device)
        z_t, z_0, timesteps = trajectories[rows, point], trajectories[:, -1], self.timesteps[point]
        if class_labels is not None and class_labels.ndim == 1:
            no_class = self.unet.config.num_class_embeds - 1
            class_labels = torch.where(class_labels == NO_CLASS, no_class, class_labels)
        output = denoise(self.unet, self.scheduler, z_t, timesteps, class_labels)
        predicted = self.scheduler.predict_original_sample(output, timesteps, z_t)
        loss = (predicted.float() - z_0).square().mean()
        return ObjectiveOutput({"distillation": loss}, {"latent_rms": root_mean_square(z_0)})

    @torch.no_grad()
    def draw_samples(self, components: Mapping[str, Any], count: int, num_inference_steps: int) -> torch.Tensor | None:
        """As the base class, in the student's own number of steps."""
        vqvae, unet, scheduler = (components[name] for name in self.saved)
        device, config = next(unet.parameters()).device, unet.config
        shape = (count, config.in_channels, *latent_sides(unet.config.sample_size))
        labels = all_classes(config.num_class_embeds, count, device)
        if self.sample_labels is not None:
            labels = self.sample_labels[torch.arange(count) % len(self.sample_labels)].to(device)
        steps = default_number_of_steps(scheduler, num_inference_steps)
        z_0 = sample_latents(unet, scheduler, shape, steps, device=device, class_labels=labels)
        return vqvae.decode(z_0).sample

    def random_inputs(self, batch_size: int) -> dict[str, torch.Tensor]:
        sides = latent_sides(self.unet.config.sample_size)
        shape = (batch_size, len(self.timesteps) + 1, self.unet.config.in_channels, *sides)
        device = self.timesteps.device
        labels = all_classes(self.unet.config.num_class_embeds, batch_size, device)
        return {COLUMN: torch.randn(shape, device=device)} | ({} if labels is None else {"class_labels": labels})


def make_student_scheduler(
    teacher: OUBridgeScheduler, timesteps: Sequence[int], guidance_scale: float
) -> OUBridgeScheduler:
    """
    The teacher's process for a student that was trained at some timesteps: 1 to 4 steps that begin at them, fewer if
    they are too few. Each step has the nearest point that is still free, the step with the least noise first.

    Args:
        teacher ([`OUBridgeScheduler`]): the scheduler of the teacher.
        timesteps (`list[int]`): of the points of its trajectories, descending.
        guidance_scale (`float`): of its trajectories.

    Raises:
        ValueError: the teacher is a student, or predicts the noise.
    """
    check_teacher(teacher)
    levels = _begin_at_noise(teacher, timesteps)
    log_snr = 0.5 * teacher.signal_to_noise(torch.tensor(levels)).log()
    table: dict[str, list[int]] = {}
    for number, wanted in FEW_STEPS.items():
        chosen = {levels[0]}
        for value in reversed(wanted):  # two steps may have the same nearest level, which is taken once
            near = {level: float(abs(own - value)) for level, own in zip(levels, log_snr, strict=True)}
            near = {level: distance for level, distance in near.items() if level not in chosen and distance < _NEAR}
            chosen |= {min(near, key=near.__getitem__)} if near else set()
        if len(chosen) == number:  # fewer where trajectories have few points
            table[str(number)] = sorted(chosen, reverse=True)
    return OUBridgeScheduler.from_config(
        teacher.config, few_step_timesteps=table, distilled_guidance_scale=float(guidance_scale)
    )


def _check_classes(encoding: Encoding, teacher: RunFolder, trajectories: Path) -> None:
    """
    Raises:
        ValueError: the classes of the trajectories have other names than the teacher's, or only one's are words.
    """
    named = teacher.read_id2label()
    names = None if named is None else [named[number] for number in sorted(named)]
    drawn = encoding.class_names if encoding.words is None else encoding.words
    words = teacher.draws_from_words()
    if words != (encoding.words is not None) or (names is not None and drawn is not None and names != drawn):
        kinds = ["words" if of_words else "classes" for of_words in (encoding.words is not None, words)]
        raise ValueError(
            f"The trajectories in {trajectories} were drawn for other {kinds[0]} than the {kinds[1]} that the teacher "
            f"in {teacher.path} has now: draw them again."
        )


def _begin_at_noise(scheduler: OUBridgeScheduler, timesteps: Sequence[int]) -> list[int]:
    """The timesteps of a trajectory's points; the first is noise alone and counts as T - 1, where samplers begin."""
    return [len(scheduler) - 1, *timesteps[1:]]


def _load_teacher(folder: RunFolder, vqvae: GumbelVQModel) -> tuple[UNet2DModel, OUBridgeScheduler]:
    """
    Raises:
        ValueError: no bridge in the folder, or one that doesn't fit the autoencoder.
    """
    places = [folder.find_component(name) for name in ("unet", "scheduler")]
    if places[0] is None or places[1] is None:
        raise ValueError(
            f"There is no teacher in {folder.path}: expected the folder of a bridge, with `unet` and `scheduler`."
        )
    config = pretrained.read_json(places[0] / UNet2DModel.config_name)
    cls = CodeUNet2DModel if config.get("_class_name") == CodeUNet2DModel.__name__ else UNet2DModel
    unet: UNet2DModel = pretrained.load_component(cls, places[0])
    scheduler: OUBridgeScheduler = pretrained.load_component(OUBridgeScheduler, places[1])
    refuse_image_condition(unet, "students don't take")
    check_channels(unet, vqvae)
    check_process(unet, vqvae, scheduler)
    return unet, scheduler
