"""The rows of this package: its objectives, trained by the loop of all rows, and its pipelines."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from diffusion_bridge_vq import DiffusionBridgeVQPipeline, OUBridgeScheduler
from diffusion_bridge_vq.data.encoded import EncodedImages
from diffusion_bridge_vq.data.pixels import to_bytes, to_pixels
from diffusion_bridge_vq.sampling import fit_timesteps
from diffusion_bridge_vq.training import (
    DistillConfig,
    E2EConfig,
    PixelCNNConfig,
    PriorConfig,
    VQConfig,
    build_objective,
    draw_trajectories,
)
from diffusion_bridge_vq.training.config import RunConfig
from diffusion_bridge_vq.training.objectives.distillation import make_student_scheduler

from .data import Data, Split
from .row import Learner, Phase, Row, TokenizerRow

_STEPS = 1000  # nominal: phases and ramps inside an objective are fractions of it
_MOST_POINTS = 12  # of a trajectory: the steps that it is drawn in
_FITTING = 0.1  # fraction of the time of a row that is left to fit its steps; training.json has what it took
_FITTED_SAMPLES = 32
_CODEBOOK_IMAGES = 512  # whose latents place a fresh codebook, as the package's trainer does


class ObjectiveLearner(Learner):
    """
    An objective of the package.

    Args:
        config (`RunConfig`): of its kind.
        data ([`Data`]): has the classes.
    """

    def __init__(self, config: RunConfig, data: Data):
        super().__init__()
        self.objective = build_objective(config, data.num_classes, data.class_names)

    def set_progress(self, fraction: float) -> None:
        self.objective.set_step(fraction * _STEPS)

    def forward(self, **tensors: torch.Tensor) -> torch.Tensor:
        if "images" in tensors:
            tensors["images"] = to_pixels(tensors["images"])
        return torch.stack([value.float() for value in self.objective(**tensors).losses.values()]).sum()

    def components(self) -> dict[str, Any]:
        return self.objective.components({})

    def place_codebook(self, images: torch.Tensor) -> None:
        """Put the fresh codebook on latents of images."""
        vqvae = self.objective.vqvae
        with torch.no_grad():
            vqvae.train()
            vqvae.quantize.initialize_codebook(vqvae.encode(to_pixels(images[:_CODEBOOK_IMAGES])).latents)


def _config(cls: type[RunConfig], row: Row, **changes: Any) -> RunConfig:
    return cls.from_preset(
        row.setting.preset, dataset=row.data.dataset, max_train_steps=_STEPS, lr_warmup_steps=0, **changes
    )


class _Pipeline:
    """The pipeline of a row, made at the first call, as users make it: that takes as long as three network calls."""

    def __init__(self, components: Callable[[], dict[str, Any]]):
        self._components = components

    @cached_property
    def _pipe(self) -> DiffusionBridgeVQPipeline:
        pipe = DiffusionBridgeVQPipeline(**self._components())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def __call__(self, labels: torch.Tensor, steps: int, **options: Any) -> torch.Tensor:
        """Images uint8 (n, C, H, W)."""
        drawn = self._pipe(class_labels=labels, num_inference_steps=steps, output_type="pt", **options).images
        return to_bytes(drawn * 2 - 1)


class Bridge(TokenizerRow):
    """
    Attributes:
        changes (`Mapping[str, Any]`): options of the run that differ from the preset's, for studies.
    """

    title = "bridge prior"
    changes: Mapping[str, Any] = {}

    @property
    def search(self) -> dict[str, tuple[Any, ...]]:
        return {"guidance_scale": (1.0, 1.5, 2.5), "steps": self.setting.bridge_steps}

    def __init__(self, data: Data, learning_rate: float | None = None):
        super().__init__(data, learning_rate)
        options = {"vqvae_from": self.setting.checkpoint, "cache_latents": True, "class_conditional": True}
        self.learner = ObjectiveLearner(_config(PriorConfig, self, **options, **self.changes), data)
        self.pipeline = _Pipeline(self.pipeline_components)

    def phases(self) -> list[Phase]:
        return [Phase(self.learner, self._tensors, self.learning_rate)]

    def _tensors(self, split: Split) -> dict[str, torch.Tensor]:
        return {"latents": self.data.latents(split), "class_labels": split.labels}

    def networks(self) -> nn.ModuleDict:
        return nn.ModuleDict({"unet": self.learner.components()["unet"]})

    def pipeline_components(self) -> dict[str, Any]:
        return self.learner.components()

    def draw(self, labels: torch.Tensor, steps: int = 20, guidance_scale: float = 1.0) -> torch.Tensor:
        return self.pipeline(labels, steps, guidance_scale=guidance_scale, solver="dpmsolver++")


class FittedBridge(Bridge):
    """A bridge whose few sampling steps are fitted to it, in the last part of its time (`dbvq fit-timesteps`)."""

    title = "bridge, fitted steps"
    search = {"steps": (4, 5, 6)}

    def __init__(self, data: Data, learning_rate: float | None = None):
        self.changes = data.setting.fitted_options
        super().__init__(data, learning_rate)
        self.points = _Points(self.search["steps"])

    def phases(self) -> list[Phase]:
        return [Phase(self.learner, self._tensors, self.learning_rate, 1 - _FITTING)]

    def finish(self) -> None:
        unet, scheduler = (self.learner.components()[name] for name in ("unet", "scheduler"))
        noise = torch.randn(_FITTED_SAMPLES, unet.config.in_channels, self.data.side, self.data.side)
        labels = self.data.class_cycle(_FITTED_SAMPLES)
        guidance = self.setting.few_step_guidance
        fitted = fit_timesteps(unet, scheduler, noise, self.search["steps"], labels, guidance)
        self.points.remember({number: found.timesteps for number, found in fitted.items()})

    def networks(self) -> nn.ModuleDict:
        return nn.ModuleDict({"unet": self.learner.components()["unet"], "points": self.points})

    def pipeline_components(self) -> dict[str, Any]:
        components = self.learner.components()
        known = {str(number): timesteps for number, timesteps in self.points.known().items()}
        config = components["scheduler"].config
        return components | {"scheduler": OUBridgeScheduler.from_config(config, few_step_timesteps=known)}

    def draw(self, labels: torch.Tensor, steps: int = 4, guidance_scale: float | None = None) -> torch.Tensor:
        guidance = self.setting.few_step_guidance if guidance_scale is None else guidance_scale
        return super().draw(labels, steps, guidance)


class Student(Bridge):
    """A bridge for half of the time, then its student: trajectories are drawn, and their ends are learned."""

    title = "student of a bridge"
    search = {"steps": (4, 3, 2, 1)}
    tuned = False  # its bridge has the rate that rows on latents have

    def __init__(self, data: Data, learning_rate: float | None = None):
        super().__init__(data, learning_rate)
        self.points = _Points([_MOST_POINTS])

    def phases(self) -> Iterator[Phase]:
        yield Phase(self.learner, self._tensors, self.learning_rate, 0.5)
        with TemporaryDirectory() as temporary:
            teacher, trajectories = Path(temporary) / "teacher", Path(temporary) / "trajectories"
            pipe = DiffusionBridgeVQPipeline(**self.learner.components())
            pipe.save_pretrained(teacher)
            encoding = draw_trajectories(
                **pipe.components,
                folder=trajectories,
                accelerator=Accelerator(cpu=True),
                num_trajectories=self.setting.trajectories,
                guidance_scale=self.setting.few_step_guidance,
                seed=torch.initial_seed() % 2**20,
            )
            self.points.remember({_MOST_POINTS: encoding.data["timesteps"]})
            rows = EncodedImages(trajectories)
            config = _config(DistillConfig, self, init_from=teacher, trajectories=trajectories)
            self.learner = ObjectiveLearner(config, self.data)
        drawn = rows.__getitems__(list(range(len(rows))))
        tensors = {"trajectories": drawn["trajectories"], "class_labels": drawn["labels"]}
        yield Phase(self.learner, lambda split: tensors, config.learning_rate, 0.5)

    def networks(self) -> nn.ModuleDict:
        return nn.ModuleDict({"unet": self.learner.components()["unet"], "points": self.points})

    def pipeline_components(self) -> dict[str, Any]:
        components = self.learner.components()
        if components["scheduler"].config.distilled_guidance_scale is None:  # loaded into a fresh row
            (known,) = self.points.known().values()
            guidance = self.setting.few_step_guidance
            components["scheduler"] = make_student_scheduler(components["scheduler"], known, guidance)
        return components

    def draw(self, labels: torch.Tensor, steps: int = 4) -> torch.Tensor:
        return self.pipeline(labels, steps)


class _Points(nn.Module):
    """Timesteps, saved with the network, by the number of steps that they are for; no more of each than this."""

    def __init__(self, numbers: Sequence[int]):
        super().__init__()
        for number in numbers:
            self.register_buffer(str(number), torch.full((number,), -1))

    def remember(self, timesteps: Mapping[int, list[int]]) -> None:
        for number, points in timesteps.items():
            self.get_buffer(str(number))[: len(points)] = torch.tensor(points)

    def known(self) -> dict[int, list[int]]:
        return {int(number): points[points >= 0].tolist() for number, points in self.named_buffers()}


class PixelCNN(TokenizerRow):
    title = "PixelCNN"

    def __init__(self, data: Data, learning_rate: float | None = None):
        super().__init__(data, learning_rate)
        config = _config(
            PixelCNNConfig,
            self,
            vqvae_from=self.setting.checkpoint,
            class_conditional=True,
            prior=dict(self.setting.pixelcnn),
        )
        self.learner = ObjectiveLearner(config, data)

    def phases(self) -> list[Phase]:
        return [Phase(self.learner, self._tensors, self.learning_rate, keep_best=True)]

    def _tensors(self, split: Split) -> dict[str, torch.Tensor]:
        return {"codes": self.data.codes(split), "class_labels": split.labels}

    def networks(self) -> nn.ModuleDict:
        return nn.ModuleDict({"prior": self.learner.components()["prior"]})

    def draw(self, labels: torch.Tensor) -> torch.Tensor:
        return self.data.decode_codes(self.networks()["prior"].generate(len(labels), class_labels=labels))


class BridgeSystem(Row):
    """Tokenizer, then the bridge on it."""

    title = "bridge, two stages"
    search = Bridge.search
    tuned = False
    splits_time = True

    def __init__(self, data: Data, learning_rate: float | None = None):
        super().__init__(data, learning_rate)
        vq = _config(VQConfig, self, **self.setting.autoencoder_losses)
        self.tokenizer = ObjectiveLearner(vq, data)
        self.tokenizer.place_codebook(data.training.images)
        prior = _config(
            PriorConfig, self, vqvae_from=self.setting.checkpoint, cache_latents=True, class_conditional=True
        )
        self.prior = ObjectiveLearner(prior, data)
        # fresh weights in place of the shipped autoencoder's, whose sizes are the preset's; frozen when its turn comes
        self.prior.objective.vqvae = self.tokenizer.objective.vqvae
        self._latents: dict[int, torch.Tensor] = {}
        self.pipeline = _Pipeline(self.prior.components)

    def phases(self) -> list[Phase]:
        first = self.setting.autoencoder_fraction
        return [
            Phase(self.tokenizer, self._images, self.learning_rate, first),
            Phase(self.prior, self._encode, self.learning_rate, 1 - first),
        ]

    def _images(self, split: Split) -> dict[str, torch.Tensor]:
        return {"images": split.images, "class_labels": split.labels}

    def _encode(self, split: Split) -> dict[str, torch.Tensor]:
        if id(split) not in self._latents:
            vqvae = self.prior.objective.vqvae.requires_grad_(False).eval()
            with torch.no_grad():
                parts = [vqvae.encode(to_pixels(part)).latents for part in split.images.split(256)]
            self._latents[id(split)] = torch.cat(parts)
        return {"latents": self._latents[id(split)], "class_labels": split.labels}

    def networks(self) -> nn.ModuleDict:
        components = self.prior.components()
        return nn.ModuleDict({name: components[name] for name in ("vqvae", "unet")})

    def draw(self, labels: torch.Tensor, steps: int = 20, guidance_scale: float = 1.0) -> torch.Tensor:
        return self.pipeline(labels, steps, guidance_scale=guidance_scale, solver="dpmsolver++")

    @torch.no_grad()
    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        vqvae = self.networks()["vqvae"]
        return torch.cat([to_bytes(vqvae(to_pixels(part)).sample) for part in images.split(256)])


class BridgeEndToEnd(BridgeSystem):
    """The tokenizer alone, then prior and decoder together (`--mode decoder`)."""

    title = "bridge, then decoder and prior together"

    def __init__(self, data: Data, learning_rate: float | None = None):
        Row.__init__(self, data, learning_rate)
        config = _config(E2EConfig, self, class_conditional=True, **self._mode(), **self.setting.autoencoder_losses)
        self.prior = ObjectiveLearner(config, data)
        self.prior.place_codebook(data.training.images)
        self.pipeline = _Pipeline(self.prior.components)

    def _mode(self) -> dict[str, Any]:
        return {"mode": "decoder", "joint_fraction": self.setting.autoencoder_fraction}

    def phases(self) -> list[Phase]:
        return [Phase(self.prior, self._images, self.learning_rate)]


class BridgeStable(BridgeEndToEnd):
    """Encoder, decoder, codebook and prior together (`--mode stable`), in the phases of the preset."""

    title = "bridge, all together"
    splits_time = False  # phases of the preset

    def _mode(self) -> dict[str, Any]:
        return {"mode": "stable"}
