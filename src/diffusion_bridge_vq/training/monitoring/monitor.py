"""What is made of a run's averaged weights: values on images that it isn't trained on, pictures, and its result."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from diffusers import UNet2DModel

from ...data import ImageDataset, StreamedImages
from ...models import GumbelVQModel, PixelCNNPrior
from ...schedulers import OUBridgeScheduler
from ..config import PixelCNNConfig, RunConfig
from ..data import EncodedImages, preview_images
from ..ema import AveragedWeights
from ..objectives import Objective
from ..sharding import whole_copy
from .early_stopping import EarlyStopping, bits_per_code
from .previews import GRID_IMAGES, draw_grids
from .validation import make_validation


@dataclass
class TrainedComponents:
    """
    What a run made, with averaged weights, in eval mode.

    After "vq" there is `vqvae` alone, after "prior" and "e2e" also `unet` and `scheduler`, after "pixelcnn" `prior`.
    """

    vqvae: GumbelVQModel
    unet: UNet2DModel | None = None
    scheduler: OUBridgeScheduler | None = None
    prior: PixelCNNPrior | None = None


Evaluate = Callable[[TrainedComponents, int], dict[str, float]]


class Appraisal:
    """
    Looks at the averaged weights of a run, the best of them with early stopping. All processes call its methods.

    Args:
        config (`RunConfig`), accelerator (`Accelerator`), objective ([`Objective`]): of the run.
        ema ([`AveragedWeights`]): of what `objective` trains.
        images (`ImageDataset` or `StreamedImages`): for reconstructions.
        held_out (`EncodedImages`, *optional*): for the early stopping of a PixelCNN.
        evaluate (`Callable`, *optional*): see `train`.
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        objective: Objective,
        ema: AveragedWeights,
        images: ImageDataset | StreamedImages,
        held_out: EncodedImages | None,
        evaluate: Evaluate | None,
    ):
        self.config, self.accelerator, self.objective, self.ema = config, accelerator, objective, ema
        self.held_out, self._evaluate = held_out, evaluate
        self.preview = preview_images(images, GRID_IMAGES // 2)
        self.validation = make_validation(config, accelerator, images)
        self.stopping: EarlyStopping | None = None
        if isinstance(config, PixelCNNConfig) and held_out is not None:
            self.stopping = EarlyStopping(ema.module, config.patience)

    def held_out_bits(self) -> float:
        """Bits per code of the newest averages on held-out images, the same on all processes; the best are kept."""
        assert self.stopping is not None and self.held_out is not None
        averaged: Any = whole_copy(self.ema.module)
        with self.accelerator.autocast():
            bits = bits_per_code(averaged.prior, self.held_out, self.config.batch_size)
        # all processes must stop at the same step, whatever their rounding
        bits = broadcast(torch.tensor(bits, device=self.accelerator.device)).item()
        self.stopping.update(bits, self.ema.module)
        return bits

    def validate(self) -> dict[str, float]:
        """Losses on the validation split."""
        assert self.validation is not None
        return self.validation(self.objective, self._parts())

    def grids(self) -> dict[str, torch.Tensor]:
        """Pixels of reconstructions (originals beside them) and samples by name; nothing but on the main process."""
        parts = self._parts()
        if not self.accelerator.is_main_process:
            return {}
        joined = getattr(self.objective, "joint", True)  # before, the bridge's samples are noise
        return draw_grids(
            parts,
            cast(OUBridgeScheduler, self.objective.scheduler) if joined and hasattr(self.objective, "unet") else None,
            self.preview,
            self.config.num_inference_steps,
            self.config.seed,
            self.accelerator.device,
        )

    def evaluate(self, done: int) -> dict[str, float]:
        """What the caller's function finds at step `done`, by name; nothing but on the main process."""
        if self._evaluate is None:
            return {}
        components = self.components(self.accelerator.device)
        if not self.accelerator.is_main_process:
            return {}
        with torch.random.fork_rng(), torch.no_grad():
            return {f"evaluation/{name}": value for name, value in self._evaluate(components, done).items()}

    def components(self, device: torch.device | str) -> TrainedComponents:
        """The components themselves, not a copy, but for what FSDP has split."""
        names = {field.name for field in fields(TrainedComponents)}  # what else helps to train isn't given away
        parts = {name: part.to(device).eval() for name, part in self._parts().items() if name in names}
        return TrainedComponents(**parts, scheduler=getattr(self.objective, "scheduler", None))

    def _parts(self) -> dict[str, Any]:
        """Components by name, in eval mode; an autoencoder that isn't trained as it is."""
        best = self.stopping is not None and self.stopping.started
        module: Any = whole_copy(self.stopping.best if best else self.ema.module)  # type: ignore[union-attr]
        return {"vqvae": self.objective.vqvae, **dict(module.named_children())}
