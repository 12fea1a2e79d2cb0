"""What a row of the tables must answer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from diffusion_bridge_vq.training.presets import preset_values

from .data import Data, Split

CLASS_DROPOUT = 0.1  # fraction of labels replaced by the null class, for guidance; the package's default


class Learner(nn.Module):
    """A loss over what it trains: `forward(**tensors)` -> (). The tensors are those of [`Phase`], a batch of rows."""

    def set_progress(self, fraction: float) -> None:
        """Called before every step with the part of its time that a phase has used, in [0, 1]."""


@dataclass(frozen=True)
class Phase:
    """
    A part of a row's training.

    Attributes:
        learner ([`Learner`]): what is trained.
        tensors (`Callable`): what it learns from, of a [`Split`]: {argument of the learner: (n, ...)}.
        learning_rate (`float`): peak of AdamW.
        fraction (`float`): of the row's time.
        keep_best (`bool`): take the weights with the lowest loss on the test split, for networks that overfit.
    """

    learner: Learner
    tensors: Callable[[Split], dict[str, torch.Tensor]]
    learning_rate: float
    fraction: float = 1.0
    keep_best: bool = False


class Row(ABC):
    """
    One row of a table. A new row has fresh weights.

    Args:
        data ([`Data`]): of the comparison.
        learning_rate (`float`, *optional*): of its only phase, instead of its own.

    Attributes:
        title (`str`): in the table.
        packages (`tuple[str, ...]`): distributions that the rival comes from, for the column of versions.
        search (`dict[str, tuple]`): sampling options that are tried, one after the other, in this order. The first
            value of each holds until it is searched. Of "steps", network calls, the fewest that lose nothing win.
        tuned (`bool`): whether its learning rate is searched.
        splits_time (`bool`): whether the setting's `autoencoder_fraction` divides its time.
    """

    title: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ("diffusion-bridge-vq",)
    search: Mapping[str, Sequence[Any]] = {}
    tuned: ClassVar[bool] = True
    splits_time: ClassVar[bool] = False

    def __init__(self, data: Data, learning_rate: float | None = None):
        self.data, self.setting = data, data.setting
        self.preset = preset_values(self.setting.preset, "prior")
        self.learning_rate = learning_rate or self.preset["learning_rate"]
        self.null_class = data.num_classes

    @abstractmethod
    def phases(self) -> Iterable[Phase]:
        """Its training, in order; each is asked for when the one before it is trained."""

    def finish(self) -> None:  # noqa: B027 - most rows have nothing to finish
        """What it does with trained weights, within its time, before it draws."""

    @abstractmethod
    def networks(self) -> nn.ModuleDict:
        """What it trains and draws with; what is counted and saved."""

    @abstractmethod
    def draw(self, labels: torch.Tensor, **options: Any) -> torch.Tensor:
        """Images uint8 (n, C, H, W) of classes (n,), from torch's global generator; options as in `search`."""

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor | None:
        """Reconstructions of images, both uint8 (n, C, H, W); None without an autoencoder."""
        return None

    def labels_for(self, network: nn.Module, labels: torch.Tensor) -> torch.Tensor:
        """The labels (B,) that a network learns from: in training some are replaced by the null class."""
        if not network.training:
            return labels
        return torch.where(torch.rand(len(labels)) < CLASS_DROPOUT, self.null_class, labels)


class LossOf(Learner):
    """
    A learner made of a network and a function.

    Args:
        network (`nn.Module`): what is trained.
        loss (`Callable`): `loss(network, **tensors)` -> ().
    """

    def __init__(self, network: nn.Module, loss: Callable[..., torch.Tensor]):
        super().__init__()
        self.network = network
        # a function, because copies of a learner would copy the object of a bound method, with all its data
        self.loss = lambda *arguments, **tensors: loss(*arguments, **tensors)

    def forward(self, **tensors: torch.Tensor) -> torch.Tensor:
        return self.loss(self.network, **tensors)


class LatentScale(nn.Module):
    """The factor that brings the latents of an autoencoder to unit variance; 1 until it is fitted."""

    factor: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(()))

    def fit(self, latents: torch.Tensor) -> None:
        self.factor.copy_(latents.std().reciprocal())


class TokenizerRow(Row):
    """A row of table A: a prior over what the frozen tokenizer makes of images."""

    def __init__(self, data: Data, learning_rate: float | None = None):
        super().__init__(data, learning_rate)
        data.latents(data.training)  # before the clock of the row runs: all rows share them

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        return self.data.decode_latents(self.data.encode(images))


def guided(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    sample: torch.Tensor,
    labels: torch.Tensor,
    null_class: int,
    guidance_scale: float,
) -> torch.Tensor:
    """Classifier-free guidance (Ho and Salimans 2022) of `predict(sample, labels)`, in one call of twice the batch."""
    if guidance_scale == 1:
        return predict(sample, labels)
    both = torch.cat([labels, torch.full_like(labels, null_class)])
    with_class, without = predict(torch.cat([sample, sample]), both).chunk(2)
    return without + guidance_scale * (with_class - without)
