"""The trainer of all runs, on Accelerate."""

import json
import signal
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import ModelMixin
from diffusers.optimization import get_scheduler
from torch.distributed.elastic.multiprocessing.errors import record
from tqdm.auto import tqdm

from ..data import ImageDataset, StreamedImages
from ..run_folder import RunFolder
from .config import RunConfig
from .data import Batch, TrainingBatches, make_loader, model_inputs, open_images
from .distributed.accelerate import make_accelerator, prepare, update_class
from .ema import AveragedWeights
from .fault_tolerance.non_finite import LossGuard
from .fault_tolerance.preflight import check_disk, check_output_dir, describe_memory
from .fault_tolerance.run_state import RunState
from .fault_tolerance.signals import StopRequest
from .monitoring.codebook_usage import CodebookUsage
from .monitoring.monitor import Evaluate, Monitor
from .monitoring.profiling import profile_steps
from .monitoring.run_log import RunLog
from .objectives import Objective, build_objective
from .sharding import split_module_like

# Batches whose latents place the codebook before the first step.
_CODEBOOK_BATCHES = 8


@record  # a process that fails leaves its message to the launcher
def train(config: RunConfig, evaluate: Evaluate | None = None) -> dict[str, Any] | None:
    """
    Train what `config` says, writing grids, metrics.jsonl, tracker files and checkpoints into `config.output_dir`.

    Args:
        config (`RunConfig`): of its kind.
        evaluate (`Callable`, *optional*): called on the main process at the configuration's `evaluation_interval` with
            the components of that step, on the run's device, and the step; what it returns is logged.

    Returns:
        `dict[str, Any]`: the trained components with averaged weights, by the names that pipelines give them ("vqvae";
        also "unet" and "scheduler", or "prior"), on the CPU of the main process, in eval mode. None on the other
        processes and after a dry run.

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
    trainer = Trainer(config, accelerator, objective, images, evaluate)
    accelerator.print(check_disk(config, trainer.state.modules))
    if config.dry_run:
        trainer.try_phases()
        return None
    components = trainer.fit()
    return components if accelerator.is_main_process else None


class Trainer:
    """
    One run: its objective, optimiser and averaged weights, and the position in its data.

    Args:
        config (`RunConfig`): of any kind.
        accelerator (`Accelerator`): from `make_accelerator`.
        objective ([`Objective`]): what is trained, from `build_objective`.
        images (`ImageDataset` or `StreamedImages`): from `open_images`.
        evaluate (`Callable`, *optional*): see [`train`].
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        objective: Objective,
        images: ImageDataset | StreamedImages,
        evaluate: Evaluate | None = None,
    ):
        self.config, self.accelerator = config, accelerator
        self.objective = objective.to(accelerator.device)
        self.trained = objective.trained_part()
        if config.gradient_checkpointing:
            for part in self.trained.children():
                if isinstance(part, ModelMixin):
                    part.enable_gradient_checkpointing()
        if config.compile:
            for network in objective.networks():
                network.compile()  # in place: names in state dicts stay
        parameters = [p for p in objective.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,  # takes `found_inf`, see LossGuard
        )
        self.lr_scheduler = get_scheduler(
            config.lr_schedule,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        self.ema = AveragedWeights(self.trained, config.ema_decay)
        loader, held_out = make_loader(config, accelerator, objective, images)
        # scheduler not prepared: Accelerate would step it once per process
        self.synchronized, self.model, prepared, loader = prepare(
            accelerator, objective, self.trained, optimizer, loader
        )
        split_module_like(self.ema.module, self.trained)
        self.data = TrainingBatches(loader, accelerator, config, images.name)
        self.usage = CodebookUsage(objective.vqvae, accelerator)
        self.monitor = Monitor(config, accelerator, objective, self.ema, images, held_out, evaluate)
        changed_by_forward = [t for t in self.trained.state_dict(keep_vars=True).values() if not t.requires_grad]
        floating = [t for t in changed_by_forward if t.is_floating_point()]
        self.guard = LossGuard(optimizer, floating, accelerator.device)
        # after FSDP has split them
        parameters = [p for p in objective.parameters() if p.requires_grad]
        self.update = update_class(accelerator)(accelerator, prepared, parameters, self.guard, config.max_grad_norm)
        modules = {"model": self.trained, "ema": self.ema}
        if self.monitor.stopping is not None:
            modules["best"] = self.monitor.stopping
        data: dict[str, Any] = {"name": images.name, "fingerprint": images.fingerprint}
        if isinstance(images, StreamedImages):
            data["num_workers"] = config.num_workers  # the order of a stream depends on it
        self.state = RunState(
            config, accelerator, data, modules, self.update.moments, self.lr_scheduler, self.data, self.usage
        )
        self.first_step = 0

    # ------------------------------------------------------------------------------------------------------ the loop

    def fit(self) -> dict[str, Any]:
        """
        Steps until the last, early stopping, a time limit or a signal, with all that is written on the way.

        Returns averaged weights (those of the last step if `ema_decay` is 0), the best with early stopping, on the
        CPU.
        """
        config, accelerator = self.config, self.accelerator
        self.model.train()
        self.start()
        batches = self.batches()
        steps = range(self.first_step, 0 if self.monitor.exhausted else config.max_train_steps)
        main = accelerator.is_main_process
        self.bar = tqdm(total=config.max_train_steps, initial=self.first_step, disable=not main, unit="step")
        traces = RunFolder(config.output_dir).profile if config.profile and main else None
        profiling = profile_steps(traces, accelerator.device)
        with StopRequest(config.max_train_time) as request, profiling as profiler, self.bar:
            for step in steps:
                for _ in range(config.gradient_accumulation_steps):
                    self.step(next(batches), step)
                self.lr_scheduler.step()
                self.ema.update_parameters(self.trained)
                if profiler is not None:
                    profiler.step()
                self.bar.update()
                if self.finish_step(step + 1, request.reason()):
                    break
        components = self.monitor.components("cpu")
        accelerator.end_training()  # of the process group, too
        return components

    def start(self) -> None:
        """Continue from the newest checkpoint, or begin."""
        if self.config.resume:
            self.first_step = self.state.load()
        self.log = RunLog(self.config, self.accelerator, self.first_step)
        if not self.config.resume and self.config.init_from is None:
            self._place_codebook()
        self.guard.refresh()

    def batches(self) -> Iterator[Batch]:
        """Batches for ever, from the position of the run on, in an order that `seed` fixes."""
        while True:
            yield from self.data.rest_of_epoch()
            self.usage.end_epoch()

    def inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Arguments of the objective, with images mirrored at random."""
        inputs = model_inputs(batch)
        if self.config.random_flip and "images" in inputs:
            images = inputs["images"]
            mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
            inputs["images"] = torch.where(mirrored, images.flip(-1), images)
        return inputs

    def step(self, batch: Batch, step: int) -> None:
        """One batch; an optimiser step when enough of them are gathered."""
        self.objective.set_step(step)
        with self.accelerator.accumulate(self.synchronized):
            with self.accelerator.autocast():
                output = self.model(**self.inputs(batch))
            self.update(output, step)
        self.last_output = output

    # ---------------------------------------------------------------------------------------- what a step may write

    def finish_step(self, done: int, reason: signal.Signals | str | None) -> bool:
        """
        Write what is due after step `done`, all of it after the last. Returns whether it was the last.

        Raises:
            SystemExit: `reason` is a signal.
        """
        if isinstance(reason, signal.Signals):
            self.look(done, False)
            self._exit(done, reason)
        if reason:
            self.accelerator.print(f"`max_train_time` is over after step {done}.")
        config, monitor = self.config, self.monitor
        last = self.look(done, done == config.max_train_steps or bool(reason))

        def due(every: int) -> bool:
            return every > 0 and (last or done % every == 0)

        validate = monitor.validation is not None and due(config.validate_every)
        draw = last or due(config.image_every)
        evaluate, save = due(config.evaluation_interval), due(config.checkpoint_every)
        if validate or draw or evaluate or save:
            self.stop_if_not_finite(done)
        if validate:
            self.log.write(monitor.validate(), done)
        if draw:
            for name, pixels in monitor.grids().items():
                self.log.save_grid(name, pixels, done)
        if save:
            self.state.save(done)
        if evaluate and (found := monitor.evaluate(done)):  # last: it takes longest, and may fail
            self.log.write(found, done)
        return last

    def look(self, done: int, last: bool) -> bool:
        """The part that is quick or changes the run's state: losses, and early stopping. Returns as `finish_step`."""
        rule = self.objective.early_stopping
        score = rule is not None and (last or done % rule.every == 0)
        log = last or done % self.config.log_every == 0
        if score or log or self.accelerator.device.type == "cpu":  # on other devices looking costs a wait
            self.stop_if_not_finite(done)
        if score:
            self.log.write(self.monitor.held_out_score(), done)
            last = last or self.monitor.exhausted
        if last or log:
            self._log_losses(done)
        return last

    def stop_if_not_finite(self, done: int) -> None:
        """
        All processes call it: after a bad step of any, the state before it is saved as that of step `done`, and the
        run ends.

        Raises:
            FloatingPointError: naming the step and the values.
        """
        failure = self.guard.failure()
        found = torch.tensor(0 if failure is None else 1, device=self.accelerator.device)
        if not int(self.accelerator.reduce(found, reduction="sum")):
            return
        saved = self.state.save(done)
        self.accelerator.end_training()
        if failure is None:
            raise FloatingPointError(f"Another process met a loss that isn't a finite number. State saved in {saved}.")
        values = ", ".join(f"{name} = {value:.4g}" for name, value in failure.values.items())
        raise FloatingPointError(
            f"Step {failure.step + 1} gave {', '.join(failure.culprits)} not finite or too large ({values}). "
            f"Nothing was learned from it: the state before that step is in {saved}. `resume` goes on from there with "
            "the next batches; if it happens again, with a lower learning rate, or in bf16 instead of fp16."
        )

    def try_phases(self) -> None:
        """One step from each part of the run, for a dry run: what takes most memory, or fails, may come late."""
        losses: dict[str, torch.Tensor] = {}
        batches = self.batches()
        for step in self.config.spread_steps():
            self.step(next(batches), step)
            losses |= self.last_output.losses
        terms = ", ".join(f"{name} {value.item():.4f}" for name, value in losses.items())
        device = self.accelerator.device
        self.accelerator.print(describe_memory(device))
        self.accelerator.print(f"dry run: steps of all phases on {device} gave {terms}; nothing was written")

    # -------------------------------------------------------------------------------------------------- internals

    def _log_losses(self, done: int) -> None:
        values: dict[str, Any] = {f"loss/{k}": v for k, v in self.last_output.losses.items()}
        values |= {f"train/{k}": v for k, v in self.last_output.metrics.items()}
        values |= self.usage.metrics()
        values["train/learning_rate"] = self.lr_scheduler.get_last_lr()[0]
        written = self.log.write(values | self.log.speed(done), done)
        losses = {name: value for name, value in written.items() if name.startswith("loss/")}
        self.bar.set_postfix({name.split("/")[1][:5]: f"{value:.3f}" for name, value in losses.items()})

    def _exit(self, done: int, received: signal.Signals) -> None:
        saved = self.state.save(done)
        self.accelerator.end_training()
        self.accelerator.print(
            f"{received.name}: stopped after step {done}, saved {saved}; `resume` goes on from there."
        )
        raise SystemExit(128 + received)

    @torch.no_grad()
    def _place_codebook(self) -> None:
        """Put a fresh codebook on the latents of a few batches."""
        vqvae = self.objective.vqvae
        latents = [vqvae.encode(self.inputs(b)["images"]).latents for b in self.data.first(_CODEBOOK_BATCHES)]
        vqvae.quantize.initialize_codebook(torch.cat(latents))


def _count_parameters(objective: Objective) -> str:
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in objective.named_children()}
    return ", ".join(f"{name} {count / 1e6:.1f}M weights" for name, count in counts.items())
