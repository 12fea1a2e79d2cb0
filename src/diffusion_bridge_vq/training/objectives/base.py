"""
What a kind of run answers for itself. The trainer asks; it never tests for a kind.

An objective is one module whose `forward(images)` computes every loss in one call. One forward matters under
DistributedDataParallel: calling an inner model without the wrapper would skip the gradient synchronisation.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import nn

from ...data import ImageCondition
from ...models import GumbelVQModel
from ..config import RunConfig

ObjectiveClass = TypeVar("ObjectiveClass", bound="type[Objective]")

_OBJECTIVES: "dict[type[RunConfig], type[Objective]]" = {}


class ObjectiveOutput(NamedTuple):
    """`losses`: weighted terms, whose sum is minimized. `metrics`: detached numbers to look at. All are scalars."""

    losses: dict[str, torch.Tensor]
    metrics: dict[str, torch.Tensor]


class EarlyStoppingRule(NamedTuple):
    """
    What an objective asks of early stopping.

    Attributes:
        score (`str`): name of the score in the log, e.g. "bits_per_code"; lower is better.
        holdout_fraction (`float`): fraction of the images that is held out, between 0 and 1.
        every (`int`): steps between two scores.
        patience (`int`): scores without a better one after which the run stops.
    """

    score: str
    holdout_fraction: float
    every: int
    patience: int


class Objective(nn.Module):
    """
    Base of all objectives.

    A subclass says what it trains and saves, builds itself from its configuration, and computes its losses. The other
    answers have defaults: nothing is cached, the run stops after its last step, and no samples are drawn.

    Attributes:
        trained (`tuple[str, ...]`): names of the submodules that are trained, averaged and checkpointed. One that is
            None is left out.
        saved (`tuple[str, ...]`): names of the components that the run returns and a pipeline consists of.
        shardable (`bool`): whether FSDP or DeepSpeed may split what is trained. That must be a single module which
            no forward pass changes.
        vqvae ([`GumbelVQModel`]): the autoencoder.
        cached_input (`str`, *optional*): argument of `forward` that may be given instead of images. If set, the data
            set is encoded once, by `encode`.
        condition ([`ImageCondition`], *optional*): what it draws from. `forward` takes it as `condition`; without
            images, which it may be made of, it must be given.
        early_stopping ([`EarlyStoppingRule`], *optional*): whether and how the run stops early, by `held_out_score`.
        start (`str`): what it started from, in words for people; "" if its prior is fresh.
        sample_labels (`torch.Tensor`, *optional*): vectors over the classes (n, K + 1) that `draw_samples` takes in
            turn; all classes in turn if None.
        samples_from (`int`, *optional*): step of the schedule from which on `draw_samples` draws; never if None.
    """

    trained: ClassVar[tuple[str, ...]]
    saved: ClassVar[tuple[str, ...]]
    shardable: ClassVar[bool] = False
    vqvae: GumbelVQModel
    cached_input: str | None = None
    condition: ImageCondition | None = None
    early_stopping: EarlyStoppingRule | None = None
    start: str = ""
    sample_labels: torch.Tensor | None = None
    samples_from: int | None = None

    @classmethod
    def from_config(
        cls, config: Any, num_classes: int | None, class_names: Sequence[str] | None = None
    ) -> "Objective":
        """
        Build the objective with its components.

        Args:
            config (`RunConfig`): of the class that the objective was registered for.
            num_classes (`int`, *optional*): classes of the data; None without labels.
            class_names (`Sequence[str]`, *optional*): their names.

        Raises:
            ValueError: settings that don't fit together, or components that the run starts from and that don't fit.
        """
        raise NotImplementedError

    def forward(self, images: torch.Tensor, class_labels: torch.Tensor | None = None) -> ObjectiveOutput:
        """Images (B, C, H, W) in [-1, 1] and optional classes (B,) -> named losses."""
        raise NotImplementedError

    def set_step(self, step: float) -> None:
        """Called before every optimizer step with its place in the schedule; phases and ramps depend on it."""

    def trained_part(self) -> nn.ModuleDict:
        """What training changes, by name."""
        return nn.ModuleDict({name: part for name, part in self.named_children() if name in self.trained})

    def phases(self) -> dict[int, str]:
        """
        What is trained, by the step of the schedule from which on it is: {0: "unet"}. For people; the phases of a run
        differ in time and memory.
        """
        return {0: " and ".join(name for name, _ in self.trained_part().named_children())}

    def components(self, averaged: Mapping[str, nn.Module]) -> dict[str, Any]:
        """The components to save, by name: those of `averaged` instead of the objective's own."""
        return {name: averaged[name] if name in averaged else getattr(self, name) for name in self.saved}

    @property
    def has_unused_parameters(self) -> bool:
        """Whether some parameter gets no gradient in some steps, which DistributedDataParallel must know."""
        return False

    def networks(self) -> list[nn.Module]:
        """What is worth compiling: not quantizer, normalizer and losses, whose shapes and phases change."""
        return [self.vqvae.encoder, self.vqvae.decoder]

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) in [-1, 1] -> what `cached_input` takes for them."""
        raise NotImplementedError

    def held_out_score(self, components: Mapping[str, Any], inputs: Iterable[dict[str, torch.Tensor]]) -> float:
        """
        The score of early stopping; lower is better.

        Args:
            components (`Mapping[str, Any]`): as `components` gives them.
            inputs (`Iterable[dict[str, torch.Tensor]]`): arguments of `forward`, batch by batch.
        """
        raise NotImplementedError

    def draw_samples(self, components: Mapping[str, Any], count: int, num_inference_steps: int) -> torch.Tensor | None:
        """
        `count` images (count, C, H, W), about [-1, 1], of `sample_labels` or all classes in turn. None if the run
        trains no prior, or has not begun to.
        """
        return None

    def draw_rows(
        self, components: Mapping[str, Any], inputs: Mapping[str, torch.Tensor], num_inference_steps: int
    ) -> torch.Tensor | None:
        """
        Images (4 n, C, H, W) of n inputs of `forward`: what each is drawn from, two that are drawn, and its own image.
        None if the run draws from no images, or has not begun to.
        """
        return None

    def random_inputs(self, batch_size: int) -> dict[str, torch.Tensor]:
        """Arguments of `forward` made of noise, on the objective's device: what a step costs without data."""
        channels, side = self.vqvae.config.in_channels, self.vqvae.config.sample_size
        device = next(self.parameters()).device
        images = torch.rand(batch_size, channels, side, side, device=device) * 2 - 1
        if self.cached_input is None:
            return {"images": images}
        with torch.no_grad():
            return {self.cached_input: self.encode(images)}


def trains(config: type[RunConfig]) -> Callable[[ObjectiveClass], ObjectiveClass]:
    """Class decorator: runs of this configuration train this objective."""

    def register(objective: ObjectiveClass) -> ObjectiveClass:
        _OBJECTIVES[config] = objective
        return objective

    return register


def objective_class(config: RunConfig) -> type[Objective]:
    """
    The class of objective that runs of this configuration train.

    Raises:
        TypeError: none was registered with [`trains`].
    """
    for cls in type(config).__mro__:
        if cls in _OBJECTIVES:
            return _OBJECTIVES[cls]
    known = ", ".join(cls.__name__ for cls in _OBJECTIVES)
    raise TypeError(f"No objective trains a {type(config).__name__}; expected {known}, or one marked by `trains`.")


def config_classes() -> list[type[RunConfig]]:
    """The configurations that some objective trains."""
    return list(_OBJECTIVES)


def build_objective(
    config: RunConfig, num_classes: int | None = None, class_names: Sequence[str] | None = None
) -> Objective:
    """
    Components and objective of a run, with fresh weights or those of `config.init_from` or `config.vqvae_from`.

    Sizes follow from `config.resolution`, also those of loaded components: pipelines draw what was trained. Loaded
    components keep their other settings.

    Args:
        config (`RunConfig`): of any kind.
        num_classes (`int`, *optional*): classes of the data; None without labels.
        class_names (`Sequence[str]`, *optional*): their names.

    Raises:
        ValueError: constructor arguments that a component refuses, or that differ from those of a loaded one; no
            autoencoder in `init_from` or `vqvae_from`; class-conditional without labels.
    """
    return objective_class(config).from_config(config, num_classes, class_names)


def root_mean_square(latents: torch.Tensor) -> torch.Tensor:
    return latents.detach().float().square().mean().sqrt()
