"""The training loop of all runs, on Accelerate."""

import itertools
import json
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import ModelMixin
from diffusers.optimization import get_scheduler
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import record
from tqdm.auto import tqdm

from ..data import ImageDataset, StreamedImages
from ..data.pixels import to_pixels
from .build import build_objective
from .config import PixelCNNConfig, PriorRunConfig, RunConfig
from .data import make_loader, open_images
from .distributed.accelerate import make_accelerator, prepare, update_class
from .ema import AveragedWeights
from .fault_tolerance.checkpoint import load_newest, save_checkpoint
from .fault_tolerance.non_finite import LossGuard
from .fault_tolerance.preflight import check_data, check_disk, check_output_dir, describe_memory
from .fault_tolerance.signals import StopRequest
from .monitoring.monitor import Appraisal, Evaluate, TrainedComponents
from .monitoring.profiling import profile_steps
from .monitoring.run_log import RunLog
from .objectives import Objective
from .sharding import split_module_like

# Latents used to place the codebook before the first step.
_CODEBOOK_BATCHES = 8


@record  # a process that fails leaves its message to the launcher
def train(config: RunConfig, evaluate: Evaluate | None = None) -> TrainedComponents | None:
    """
    Train what `config` says, writing grids, metrics.jsonl, tracker files and checkpoints into `config.output_dir`.

    Args:
        config (`RunConfig`): of its kind.
        evaluate (`Callable`, *optional*): called on the main process every `config.evaluate_every` steps with the
            components of that moment, on the run's device, and the step; what it returns is logged.

    Returns:
        [`TrainedComponents`] on the CPU of the main process; None on the others and after a dry run.

    Raises:
        ValueError: bad settings or data; an output folder that holds another run; a disk too small.
        FloatingPointError: a loss became NaN or infinite, or latents exploded; names the step and the terms. The
            state from before that step is saved first.
        SystemExit: after SIGTERM or SIGINT, with the code shells give (128 + signal); the state is saved first.
    """
    accelerator = make_accelerator(config)
    set_seed(config.seed, device_specific=True)
    accelerator.print(json.dumps(config.to_json(), indent=1))
    check_output_dir(config)
    images = open_images(config)
    objective = build_objective(config, images.num_classes)
    accelerator.print(_count_parameters(objective))
    run = Trainer(config, accelerator, objective, images, evaluate)
    accelerator.print(check_disk(config, run.state_modules()))
    if config.dry_run:
        losses: dict[str, torch.Tensor] = {}
        batches = run.batches()
        for step in config.moments():
            run.step(next(batches), step)
            losses |= run.last_output.losses
        terms = ", ".join(f"{name} {value.item():.4f}" for name, value in losses.items())
        accelerator.print(describe_memory(accelerator.device))
        accelerator.print(f"dry run: steps of all phases on {accelerator.device} gave {terms}; nothing was written")
        return None
    trained = run.fit()
    return trained if accelerator.is_main_process else None


class Trainer:
    """The state of one run: objective, optimiser, averaged weights, position in the data."""

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        objective: Objective,
        images: ImageDataset | StreamedImages,
        evaluate: Evaluate | None = None,
    ):
        self.config, self.accelerator = config, accelerator
        self.data: dict[str, Any] = {"name": images.name, "fingerprint": images.fingerprint}
        if isinstance(images, StreamedImages):
            self.data["num_workers"] = config.num_workers  # the order of a stream depends on it
        device = accelerator.device
        self.objective = objective.to(device)
        self.trained = _trained_part(objective)
        if config.gradient_checkpointing:
            for part in self.trained.children():
                if isinstance(part, ModelMixin):
                    part.enable_gradient_checkpointing()
        if config.compile:
            for network in _networks(objective):
                network.compile()  # in place: names in state dicts stay
        # fused takes `found_inf`, see LossGuard
        optimizer = torch.optim.AdamW(
            [p for p in objective.parameters() if p.requires_grad],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.lr_scheduler = get_scheduler(
            config.lr_schedule,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        self.ema = AveragedWeights(self.trained, config.ema_decay)
        loader, held_out = make_loader(config, accelerator, objective.vqvae, images)
        # scheduler not prepared: Accelerate would step it once per process
        self.synchronized, self.model, prepared, self.loader = prepare(
            accelerator, objective, self.trained, optimizer, loader
        )
        split_module_like(self.ema.module, self.trained)
        self.appraisal = Appraisal(config, accelerator, objective, self.ema, images, held_out, evaluate)
        changed_by_forward = [t for t in self.trained.state_dict(keep_vars=True).values() if not t.requires_grad]
        self.guard = LossGuard(optimizer, [t for t in changed_by_forward if t.is_floating_point()], device)
        parameters = [p for p in objective.parameters() if p.requires_grad]
        self.update = update_class(accelerator)(accelerator, prepared, parameters, self.guard, config.max_grad_norm)
        self.epoch = self.batches_done = self.first_step = 0
        self.codebook_metrics: dict[str, torch.Tensor] = {}  # of the last whole epoch

    # ------------------------------------------------------------------------------------------------------- data

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Batches for ever, from where the run stands, in an order that `seed` fixes."""
        while True:
            self.loader.set_epoch(self.epoch)
            loader = self.loader
            if self.batches_done:
                loader = self.accelerator.skip_first_batches(self.loader, self.batches_done)
            iterator = self._read(loader)
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

    def _read(self, loader: Iterable[dict[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
        """
        What is left of an epoch.

        Raises:
            ValueError: a whole one has no batch, since no worker of a stream reads enough images for it.
        """
        empty = not self.batches_done
        try:
            for batch in loader:
                empty = False
                yield batch
        except ValueError as error:
            if not (empty and "does not contain any data" in str(error)):  # Accelerate's words for it
                raise
            raise ValueError(
                f"{self.data['name']} has no batch of {self.config.batch_size} images for each process: none of "
                f"its {self.config.num_workers} workers reads that many. Take fewer `num_workers` or "
                "a smaller `batch_size`."
            ) from error

    def inputs(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Arguments of the objective: uint8 images become floats in [-1, 1] on the device; latents and codes stay."""
        labels = {"class_labels": batch["labels"]} if "labels" in batch else {}
        encoded = {name: batch[name] for name in ("latents", "codes") if name in batch}
        if encoded:
            return encoded | labels
        images = to_pixels(batch["images"])
        if self.config.random_flip:
            mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
            images = torch.where(mirrored, images.flip(-1), images)
        return {"images": images} | labels

    # ------------------------------------------------------------------------------------------------------ steps

    def step(self, batch: dict[str, torch.Tensor], step: int) -> None:
        """One batch; an optimiser step when enough of them are gathered."""
        self.objective.set_step(step)
        with self.accelerator.accumulate(self.synchronized):
            with self.accelerator.autocast():
                output = self.model(**self.inputs(batch))
            self.update(output, step)
        self.last_output = output

    def fit(self) -> TrainedComponents:
        """
        Steps until the last, early stopping, a time limit or a signal, with all that is written on the way.

        Returns averaged weights (those of this moment if `ema_decay` is 0), the best with early stopping, on the CPU.
        """
        config, accelerator = self.config, self.accelerator
        self.model.train()
        if config.resume:
            self._resume()
        self.log = RunLog(config, accelerator, self.first_step)
        if not config.resume and config.init_from is None:
            self._place_codebook()
        self.guard.refresh()
        stopping = self.appraisal.stopping
        exhausted = stopping is not None and stopping.exhausted  # before it was resumed
        steps = range(self.first_step, 0 if exhausted else config.max_train_steps)
        progress = tqdm(
            total=config.max_train_steps, initial=self.first_step, disable=not accelerator.is_main_process, unit="step"
        )
        batches = self.batches()
        traces = config.output_dir / "profile" if config.profile and accelerator.is_main_process else None
        profiling = profile_steps(traces, accelerator.device)
        with StopRequest(config.max_train_time) as request, profiling as profiler, progress:
            for step in steps:
                for _ in range(config.gradient_accumulation_steps):
                    self.step(next(batches), step)
                self.lr_scheduler.step()
                self.ema.update_parameters(self.trained)
                if profiler is not None:
                    profiler.step()
                progress.update()
                done = step + 1
                reason = request.reason()
                if isinstance(reason, signal.Signals):
                    self._look(done, False, progress)
                    self._exit(done, reason)
                if reason:
                    accelerator.print(f"`max_train_time` is over after step {done}.")
                if self._write(done, done == config.max_train_steps or bool(reason), progress):
                    break
        trained = self.appraisal.components("cpu")
        accelerator.end_training()  # of the process group, too
        return trained

    # ---------------------------------------------------------------------------------------- what a step may write

    def _write(self, done: int, last: bool, progress: tqdm) -> bool:
        """What is due after step `done`, all of it after the `last`. Returns whether that was the last."""
        config, appraisal = self.config, self.appraisal
        last = self._look(done, last, progress)

        def due(every: int) -> bool:
            return every > 0 and (last or done % every == 0)

        validate = appraisal.validation is not None and due(config.validate_every)
        draw = last or due(config.image_every)
        evaluate = isinstance(config, PriorRunConfig) and due(config.evaluate_every)
        save = due(config.checkpoint_every)
        if validate or draw or evaluate or save:
            self._stop_if_bad(done)
        if validate:
            self.log.write(appraisal.validate(), done)
        if draw:
            for name, pixels in appraisal.grids().items():
                self.log.save_grid(name, pixels, done)
        if save:
            self._save(done)
        if evaluate and (found := appraisal.evaluate(done)):  # last: it takes longest, and may fail
            self.log.write(found, done)
        return last

    def _look(self, done: int, last: bool, progress: tqdm) -> bool:
        """The part that is quick or moves the run's state: losses, and early stopping. Returns as `_write`."""
        config, appraisal = self.config, self.appraisal
        judge = isinstance(config, PixelCNNConfig) and (last or done % config.eval_every == 0)
        log = last or done % config.log_every == 0
        if judge or log or self.accelerator.device.type == "cpu":  # elsewhere looking costs a wait
            self._stop_if_bad(done)
        if judge:
            assert appraisal.stopping is not None
            self.log.write({"heldout/bits_per_code": appraisal.held_out_bits()}, done)
            last = last or appraisal.stopping.exhausted
        if last or log:
            self._log(done, progress)
        return last

    def _log(self, done: int, progress: tqdm) -> None:
        values: dict[str, Any] = {f"loss/{k}": v for k, v in self.last_output.losses.items()}
        values |= {f"train/{k}": v for k, v in self.last_output.metrics.items()}
        if self.objective.vqvae.training:
            values |= self.codebook_metrics or self._codebook_metrics()
        values["train/learning_rate"] = self.lr_scheduler.get_last_lr()[0]
        written = self.log.write(values | self.log.speed(done), done)
        progress.set_postfix({k.split("/")[1][:5]: f"{v:.3f}" for k, v in written.items() if k.startswith("loss/")})

    def _stop_if_bad(self, done: int) -> None:
        """
        All processes call it: after a bad step of any, the state before it is saved as that of step `done`, and the
        run ends.
        """
        failure = self.guard.failure()
        found = torch.tensor(0 if failure is None else 1, device=self.accelerator.device)
        if not int(self.accelerator.reduce(found, reduction="sum")):
            return
        saved = self._save(done)
        self.accelerator.end_training()
        if failure is None:
            raise FloatingPointError(f"Another process met a loss that isn't a finite number. State saved in {saved}.")
        values = ", ".join(f"{name} = {value:.4g}" for name, value in failure.values.items())
        raise FloatingPointError(
            f"Step {failure.step + 1} gave {', '.join(failure.culprits)} not finite or too large ({values}). "
            f"Nothing was learned from it: the state before that step is in {saved}. `resume` goes on from there with "
            "the next batches; if it happens again, with a lower learning rate, or in bf16 instead of fp16."
        )

    def _exit(self, done: int, received: signal.Signals) -> None:
        saved = self._save(done)
        self.accelerator.end_training()
        self.accelerator.print(
            f"{received.name}: stopped after step {done}, saved {saved}; `resume` goes on from there."
        )
        raise SystemExit(128 + received)

    # -------------------------------------------------------------------------------------------------- internals

    @torch.no_grad()
    def _place_codebook(self) -> None:
        """Put a fresh codebook on the latents of a few batches."""
        vqvae = self.objective.vqvae
        batches = itertools.islice(self._read(self.loader), _CODEBOOK_BATCHES)
        latents = [vqvae.encode(self.inputs(batch)["images"]).latents for batch in batches]
        vqvae.quantize.initialize_codebook(torch.cat(latents))

    def _codebook_metrics(self) -> dict[str, torch.Tensor]:
        quantizer = self.objective.vqvae.quantize
        return {"codebook/usage": quantizer.usage(), "codebook/perplexity": quantizer.perplexity()}

    def state_modules(self) -> dict[str, nn.Module]:
        """What a checkpoint holds besides the optimiser."""
        modules, stopping = {"model": self.trained, "ema": self.ema}, self.appraisal.stopping
        return modules if stopping is None else modules | {"best": stopping}

    def _save(self, done: int) -> Path:
        state = {
            "step": done,
            "epoch": self.epoch,
            "batches_done": self.batches_done,
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "data": self.data,
            "codebook_metrics": {name: value.item() for name, value in self.codebook_metrics.items()},
            "code_counts": self.accelerator.reduce(self.objective.vqvae.quantize.code_counts, "sum").tolist(),
        }
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        return save_checkpoint(
            self.config.output_dir / "checkpoints",
            self.accelerator,
            self.state_modules(),
            self.update.moments,
            state,
            self.config.keep_checkpoints,
        )

    def _resume(self) -> None:
        folder = self.config.output_dir / "checkpoints"
        found, state = load_newest(folder, self.accelerator, self.state_modules(), self.update.moments)
        check_data(found, state["data"], self.data)
        self.first_step, self.epoch, self.batches_done = state["step"], state["epoch"], state["batches_done"]
        self.lr_scheduler.load_state_dict(state["lr_scheduler"] | {"base_lrs": [self.config.learning_rate]})
        rate = self.config.learning_rate * self.lr_scheduler.lr_lambdas[0](self.first_step)
        for group in self.lr_scheduler.optimizer.param_groups:  # the options of this start, not of the one before
            group |= {"lr": rate, "initial_lr": self.config.learning_rate, "weight_decay": self.config.weight_decay}
        self.ema.started = True
        device = self.accelerator.device
        self.codebook_metrics = {k: torch.tensor(v, device=device) for k, v in state["codebook_metrics"].items()}
        if self.accelerator.is_main_process:  # counts of all processes
            self.objective.vqvae.quantize.code_counts.copy_(torch.tensor(state["code_counts"]))
        if self.accelerator.scaler is not None and "scaler" in state:  # not after another precision
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.accelerator.print(f"resumed from {found}")


def _trained_part(objective: Objective) -> nn.ModuleDict:
    """What training changes, but for parts that this objective does without: what is averaged and saved."""
    return nn.ModuleDict({name: part for name, part in objective.named_children() if name in objective.trained})


def _networks(objective: Objective) -> list[nn.Module]:
    """What is worth compiling: all that isn't quantizer, normaliser or losses, whose shapes and phases change."""
    found = [getattr(objective, name) for name in ("unet", "prior") if hasattr(objective, name)]
    return [*found, objective.vqvae.encoder, objective.vqvae.decoder]


def _count_parameters(objective: nn.Module) -> str:
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in objective.named_children()}
    return ", ".join(f"{name} {count / 1e6:.1f}M weights" for name, count in counts.items())
