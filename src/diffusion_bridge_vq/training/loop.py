"""The training loop of all runs, on Accelerate."""

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    broadcast,
    set_seed,
)
from diffusers import UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.optimization import get_scheduler
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from ..data import ImageDataset, load_images
from ..grids import image_grid
from ..models import GumbelVQModel, PixelCNNPrior
from ..schedulers import OUBridgeScheduler
from .build import build_objective
from .checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from .config import E2EConfig, PixelCNNConfig, PriorConfig, RunConfig
from .early_stopping import EarlyStopping, bits_per_code, hold_out
from .ema import AveragedWeights
from .encoded import EncodedImages
from .objectives import E2EObjective, Objective, PixelCNNObjective, PriorObjective, VQObjective
from .previews import reconstruct, sample_bridge, sample_pixelcnn

# Latents used to place the codebook before the first step.
_CODEBOOK_BATCHES = 8
_GRID_IMAGES = 64


@dataclass
class TrainedComponents:
    """
    What a run made, with averaged weights, in eval mode on the CPU.

    After "vq" there is `vqvae` alone, after "prior" and "e2e" also `unet` and `scheduler`, after "pixelcnn" `prior`.
    """

    vqvae: GumbelVQModel
    unet: UNet2DModel | None = None
    scheduler: OUBridgeScheduler | None = None
    prior: PixelCNNPrior | None = None


def train(config: RunConfig) -> TrainedComponents | None:
    """
    Train what `config` says, writing grids, metrics.jsonl, tracker files and checkpoints into `config.output_dir`.

    Returns:
        [`TrainedComponents`] on the main process; None on the others and after a dry run.

    Raises:
        ValueError: bad settings or data; an output folder that holds another run.
        FloatingPointError: a loss became NaN or infinite; names the step and the terms.
    """
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        # steps are counted in batches, wherever an epoch ends
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            config.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=None if config.report_to == "none" or config.dry_run else config.report_to,
        project_config=ProjectConfiguration(str(config.output_dir), str(config.output_dir / "logs")),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=config.seed, non_blocking=True),
        # the phases of an end-to-end run leave the U-Net or the autoencoder without gradient
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=isinstance(config, E2EConfig))],
    )
    set_seed(config.seed, device_specific=True)
    accelerator.print(json.dumps(config.to_json(), indent=1))
    _check_output_dir(config)
    images = load_images(
        config.dataset,
        resolution=config.resolution,
        channels=config.channels,
        split=config.split,
        image_column=config.image_column,
        label_column=config.label_column,
    )
    training: ImageDataset | Subset = images
    held_out: Subset | None = None
    if isinstance(config, PixelCNNConfig):
        training, held_out = hold_out(images, config.holdout_fraction, config.seed)
    global_batch = config.batch_size * accelerator.num_processes
    if len(training) < global_batch:
        raise ValueError(
            f"{images.name} has {len(training)} images to train on, fewer than one batch of {global_batch}."
        )

    objective = build_objective(config, images.num_classes)
    accelerator.print(f"{len(training)} images of {images.name}, {_count_parameters(objective)}")
    run = _Run(config, accelerator, objective, training, held_out)
    if config.dry_run:
        run.step(next(run.batches()), 0)
        terms = ", ".join(f"{name} {value.item():.4f}" for name, value in run.last_output.losses.items())
        accelerator.print(f"dry run: one step on {accelerator.device} gave {terms}; nothing was written")
        return None
    run.fit()
    return run.components() if accelerator.is_main_process else None


class _Run:
    """The state of one run: objective, optimiser, averaged weights, position in the data."""

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        objective: Objective,
        images: ImageDataset | Subset,
        held_out: Subset | None = None,
    ):
        self.config, self.accelerator, self.images = config, accelerator, images
        self.objective = objective.to(accelerator.device)
        trainable = [p for p in objective.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.lr_scheduler = get_scheduler(
            config.lr_schedule,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        self.ema = AveragedWeights(_trained_part(objective), config.ema_decay)
        self.stopping: EarlyStopping | None = None
        dataset: Dataset = images
        loading: dict[str, Any] = {
            "num_workers": config.num_workers,
            "pin_memory": accelerator.device.type == "cuda",
        }
        encoding = (config.batch_size, config.num_workers, accelerator.device)
        if isinstance(config, PriorConfig) and config.cache_latents:
            dataset = EncodedImages(objective.vqvae, images, "latents", *encoding, mirrored=config.random_flip)
        elif isinstance(config, PixelCNNConfig) and not config.dry_run:
            assert held_out is not None
            dataset = EncodedImages(objective.vqvae, images, "codes", *encoding, mirrored=config.random_flip)
            self.held_out = EncodedImages(objective.vqvae, held_out, "codes", *encoding, mirrored=False)
            self.stopping = EarlyStopping(self.ema.module, config.patience)
        if isinstance(dataset, EncodedImages):
            loading = {"collate_fn": EncodedImages.collate}
        loader = DataLoader(dataset, batch_size=config.batch_size, shuffle=True, drop_last=True, **loading)
        # scheduler not prepared: Accelerate would step it once per process
        self.model, self.optimizer, self.loader = accelerator.prepare(objective, optimizer, loader)
        self.epoch = self.batches_done = self.first_step = 0
        device = accelerator.device
        # number of the first step with a loss that isn't finite, kept on the device: looking costs a wait
        self.bad_step = torch.full((), -1, device=device)
        self.codebook_metrics: dict[str, torch.Tensor] = {}  # of the last whole epoch

    # ------------------------------------------------------------------------------------------------------- data

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Batches for ever, from where the run stands, in an order that `seed` fixes."""
        while True:
            self.loader.set_epoch(self.epoch)
            loader = self.loader
            if self.batches_done:
                loader = self.accelerator.skip_first_batches(self.loader, self.batches_done)
            iterator = iter(loader)
            while True:
                # loading leaves the run's randomness alone, so that a resumed epoch draws what the whole one did
                with torch.random.fork_rng(devices=[]):
                    batch = next(iterator, None)
                if batch is None:
                    break
                self.batches_done += 1
                yield batch
            self.epoch, self.batches_done = self.epoch + 1, 0
            self.codebook_metrics = self._codebook_metrics()
            self.objective.vqvae.quantize.reset_usage()

    def inputs(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Arguments of the objective: uint8 images become floats in [-1, 1] on the device; latents and codes stay."""
        labels = {"class_labels": batch["labels"]} if "labels" in batch else {}
        encoded = {name: batch[name] for name in ("latents", "codes") if name in batch}
        if encoded:
            return encoded | labels
        images = batch["images"].float().div(127.5).sub(1)
        if self.config.random_flip:
            mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
            images = torch.where(mirrored, images.flip(-1), images)
        return {"images": images} | labels

    # ------------------------------------------------------------------------------------------------------ steps

    def step(self, batch: dict[str, torch.Tensor], step: int) -> None:
        """One batch; an optimiser step when enough of them are gathered."""
        self.objective.set_step(step)
        with self.accelerator.accumulate(self.model):
            output = self.model(**self.inputs(batch))
            loss = torch.stack([v.float() for v in output.losses.values()]).sum()
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.last_output = output
        first_bad = (self.bad_step < 0) & ~torch.isfinite(loss.detach())
        self.bad_step = torch.where(first_bad, step, self.bad_step)

    def fit(self) -> None:
        config, accelerator = self.config, self.accelerator
        if accelerator.is_main_process:
            config.output_dir.mkdir(parents=True, exist_ok=True)
            (config.output_dir / "config.json").write_text(json.dumps(config.to_json(), indent=1))
        if config.report_to != "none":
            accelerator.init_trackers("diffusion_bridge_vq")
        self.model.train()
        if config.resume:
            self._resume()
        elif config.init_from is None:
            self._place_codebook()
        progress = tqdm(
            total=config.max_train_steps, initial=self.first_step, disable=not accelerator.is_main_process, unit="step"
        )
        batches = self.batches()
        started, logged = time.perf_counter(), self.first_step
        stopped = self.stopping is not None and self.stopping.exhausted  # before it was resumed
        for step in range(self.first_step, 0 if stopped else config.max_train_steps):
            for _ in range(config.gradient_accumulation_steps):
                self.step(next(batches), step)
            self.lr_scheduler.step()
            self.ema.update_parameters(_trained_part(self.objective))
            done = step + 1
            last = done == config.max_train_steps
            progress.update()
            if isinstance(config, PixelCNNConfig) and (done % config.eval_every == 0 or last):
                last = self._evaluate(done) or last
            if done % config.log_every == 0 or last:
                self._log(done, (done - logged) / (time.perf_counter() - started), progress)
                started, logged = time.perf_counter(), done
            if (config.image_every and done % config.image_every == 0) or last:
                self._save_grids(done)
            if config.checkpoint_every and (done % config.checkpoint_every == 0 or last):
                self._stop_if_bad()
                self._save(done)
            if last:
                break
        progress.close()
        accelerator.end_training()

    def components(self) -> TrainedComponents:
        """Averaged weights (those of this moment if `ema_decay` is 0), the best with early stopping, on the CPU."""
        parts = {name: part.to("cpu").eval() for name, part in self._averaged().items()}
        return TrainedComponents(**parts, scheduler=getattr(self.objective, "scheduler", None))

    # -------------------------------------------------------------------------------------------------- internals

    @torch.no_grad()
    def _place_codebook(self) -> None:
        """Put a fresh codebook on the latents of a few batches."""
        vqvae = self.objective.vqvae
        count = min(_CODEBOOK_BATCHES, max(1, len(self.loader)))
        batches = itertools.islice(self.loader, count)
        latents = [vqvae.encode(self.inputs(batch)["images"]).latents for batch in batches]
        vqvae.quantize.initialize_codebook(torch.cat(latents))

    def _log(self, done: int, steps_per_second: float, progress: tqdm) -> None:
        self._stop_if_bad()
        config = self.config
        values = {f"loss/{k}": v for k, v in self.last_output.losses.items()}
        values |= {f"train/{k}": v for k, v in self.last_output.metrics.items()}
        if self.objective.vqvae.training:
            values |= self.codebook_metrics or self._codebook_metrics()
        # one transfer for all numbers
        numbers = torch.stack([v.detach().float() for v in values.values()]).tolist()
        record = dict(zip(values, numbers, strict=True))
        record["train/learning_rate"] = self.lr_scheduler.get_last_lr()[0]
        images = config.batch_size * config.gradient_accumulation_steps * self.accelerator.num_processes
        record["train/images_per_second"] = images * steps_per_second
        self._write(record, done)
        progress.set_postfix({k.split("/")[1][:5]: f"{v:.3f}" for k, v in record.items() if k.startswith("loss/")})

    def _write(self, record: dict[str, float], done: int) -> None:
        """To the tracker and as a line of metrics.jsonl."""
        self.accelerator.log(record, step=done)
        if self.accelerator.is_main_process:
            with (self.config.output_dir / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": done} | {k: round(v, 6) for k, v in record.items()}) + "\n")

    def _evaluate(self, done: int) -> bool:
        """Held-out bits per code of the averaged weights; keeps the best of these. Returns whether to stop."""
        assert self.stopping is not None
        self._stop_if_bad()
        averaged: Any = self.ema.module
        with self.accelerator.autocast():
            bits = bits_per_code(averaged.prior, self.held_out, self.config.batch_size)
        # all processes must stop at the same step, whatever their rounding
        bits = broadcast(torch.tensor(bits, device=self.accelerator.device)).item()
        self.stopping.update(bits, averaged)
        self._write({"heldout/bits_per_code": bits}, done)
        return self.stopping.exhausted

    def _averaged(self) -> dict[str, Any]:
        """
        The components with averaged weights, the best of them with early stopping, in eval mode; an autoencoder that
        isn't trained as it is.
        """
        best = self.stopping is not None and self.stopping.started
        module: Any = self.stopping.best if best else self.ema.module  # type: ignore[union-attr]
        return {"vqvae": self.objective.vqvae, **dict(module.named_children())}

    def _codebook_metrics(self) -> dict[str, torch.Tensor]:
        quantizer = self.objective.vqvae.quantize
        return {"codebook/usage": quantizer.usage(), "codebook/perplexity": quantizer.perplexity()}

    def _stop_if_bad(self) -> None:
        step = int(self.bad_step)
        if step >= 0:
            terms = ", ".join(f"{k} = {v.item():.4g}" for k, v in self.last_output.losses.items())
            raise FloatingPointError(
                f"The loss stopped being a finite number at step {step + 1} ({terms}). A checkpoint, if there is one, "
                "is from before that; go on from it with a lower learning rate, or in bf16 instead of fp16."
            )

    @torch.no_grad()
    def _save_grids(self, done: int) -> None:
        """Reconstructions (originals beside them) and samples of the averaged weights, as PNG and to the tracker."""
        self._stop_if_bad()
        if not self.accelerator.is_main_process:
            return
        parts, device = self._averaged(), self.accelerator.device
        vqvae = parts["vqvae"]
        with torch.random.fork_rng():  # grids leave the run's randomness as it was
            torch.manual_seed(self.config.seed)
            self._save_grid("reconstructions", reconstruct(vqvae, self.images, _GRID_IMAGES // 2, device), done)
            if "prior" in parts:
                self._save_grid("samples", sample_pixelcnn(vqvae, parts["prior"], _GRID_IMAGES, device), done)
            elif "unet" in parts and getattr(self.objective, "joint", True):  # before it joins, its samples are noise
                scheduler = cast(OUBridgeScheduler, self.objective.scheduler)
                steps = self.config.num_inference_steps
                pixels = sample_bridge(vqvae, parts["unet"], scheduler, _GRID_IMAGES, steps, device)
                self._save_grid("samples", pixels, done)

    def _save_grid(self, name: str, pixels: torch.Tensor, done: int) -> None:
        """(n, C, H, W) in [-1, 1] -> output_dir/name-STEP.png, eight a row."""
        processor = VaeImageProcessor(do_resize=False)
        grid = image_grid(processor.postprocess(pixels.float(), output_type="pil"), columns=8)
        grid.save(self.config.output_dir / f"{name}-{done:06d}.png")
        for tracker in self.accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: np.asarray(grid.convert("RGB"))[None]}, step=done, **layout)

    def _state_modules(self) -> dict[str, nn.Module]:
        modules = {"model": _trained_part(self.objective), "ema": self.ema}
        return modules if self.stopping is None else modules | {"best": self.stopping}

    def _save(self, done: int) -> Path:
        state = {
            "step": done,
            "epoch": self.epoch,
            "batches_done": self.batches_done,
            "lr_scheduler": self.lr_scheduler.state_dict(),
        }
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        return save_checkpoint(
            self.config.output_dir / "checkpoints",
            self.accelerator,
            self._state_modules(),
            self.optimizer.optimizer,
            state,
            self.config.keep_checkpoints,
        )

    def _resume(self) -> None:
        found = list_checkpoints(self.config.output_dir / "checkpoints")
        if not found:
            raise ValueError(f"There is no checkpoint in {self.config.output_dir / 'checkpoints'} to resume from.")
        state = load_checkpoint(found[-1], self.accelerator, self._state_modules(), self.optimizer.optimizer)
        self.first_step, self.epoch, self.batches_done = state["step"], state["epoch"], state["batches_done"]
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        self.ema.started = True
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.accelerator.print(f"resumed from {found[-1]}")


def _trained_part(objective: Objective) -> nn.ModuleDict:
    """The components that training changes: what is averaged and saved."""
    names = {
        VQObjective: ("vqvae",),
        PriorObjective: ("unet",),
        PixelCNNObjective: ("prior",),
        E2EObjective: ("vqvae", "unet"),
    }[type(objective)]
    return nn.ModuleDict({name: getattr(objective, name) for name in names})


def _check_output_dir(config: RunConfig) -> None:
    held = [name for name in ("checkpoints", "pipeline", "vqvae") if (config.output_dir / name).exists()]
    if held and not config.resume and not config.dry_run:
        raise ValueError(
            f"{config.output_dir} already holds {' and '.join(held)} of a run. Give another `output_dir`, or `resume`."
        )


def _count_parameters(objective: nn.Module) -> str:
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in objective.named_children()}
    return ", ".join(f"{name} {count / 1e6:.1f}M weights" for name, count in counts.items())
