"""The trainer of all runs, on Accelerate."""

import signal
from collections.abc import Iterator
from contextlib import closing, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import ModelMixin
from diffusers.optimization import get_scheduler

from ..data import StreamedImages
from ..models import words_to_labels
from ..run_folder import RunFolder
from .config import RunConfig
from .data import (
    Batch,
    Images,
    TrainingBatches,
    find_classes,
    find_label_examples,
    make_label_table,
    make_loader,
    model_inputs,
)
from .distributed.accelerate import prepare, update_class
from .ema import AveragedWeights
from .fault_tolerance.endings import Endings
from .fault_tolerance.non_finite import NonFiniteDetector
from .fault_tolerance.run_state import RunState
from .fault_tolerance.signals import StopRequest
from .monitoring.codebook_usage import CodebookUsage
from .monitoring.monitor import Evaluate, Monitor
from .monitoring.profiling import profile_steps
from .monitoring.progress import Progress
from .monitoring.run_log import RunLog
from .objectives import Objective
from .schedule import Schedule
from .sharding import split_module_like

# Batches whose latents place the codebook before the first step.
_CODEBOOK_BATCHES = 8


class Trainer:
    """
    One run: its objective, optimizer and averaged weights, and the position in its data.

    Args:
        config (`RunConfig`): of any kind.
        accelerator (`Accelerator`): from `make_accelerator`.
        objective ([`Objective`]): what is trained, from `build_objective`.
        images (`Images`): from `open_images`.
        evaluate (`Callable`, *optional*): see [`train`].
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        objective: Objective,
        images: Images,
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
            fused=True,  # takes `found_inf`, see NonFiniteDetector
        )
        self.lr_scheduler = get_scheduler(
            config.lr_schedule,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        self.schedule = Schedule(config)
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
        self.detector = NonFiniteDetector(optimizer, floating, accelerator.device)
        # after FSDP has split them
        parameters = [p for p in objective.parameters() if p.requires_grad]
        self.update = update_class(accelerator)(accelerator, prepared, parameters, self.detector, config.max_grad_norm)
        modules = {"model": self.trained, "ema": self.ema}
        if self.monitor.stopping is not None:
            modules["best"] = self.monitor.stopping
        data: dict[str, Any] = {"name": images.name, "fingerprint": images.fingerprint}
        if isinstance(images, StreamedImages):
            data["num_workers"] = config.num_workers  # the order of a stream depends on it
        moments, classes = self.update.moments, find_classes(config, images)[1] if config.uses_classes else None
        table = make_label_table(config, images, classes)
        self.label_table = None if table is None else table.to(accelerator.device)
        self.label_examples = find_label_examples(config, images)
        if self.label_examples is not None and classes is not None:
            objective.sample_labels = words_to_labels(self.label_examples, classes)
        self.state = RunState(
            config, accelerator, data, modules, moments, self.lr_scheduler, self.data, self.usage, self.schedule
        )
        self.endings = Endings(accelerator, self.state, self.detector)
        self.id2label = None if classes is None else dict(enumerate(classes))
        self.steps_done = 0

    # ------------------------------------------------------------------------------------------------------ the loop

    def fit(self) -> dict[str, Any]:
        """
        Steps until the last, early stopping, a time limit or a signal, with all that is written on the way.

        Returns averaged weights (those of the last step if `ema_decay` is 0), the best with early stopping, on the
        CPU.
        """
        config, accelerator = self.config, self.accelerator
        self.model.train()
        ended = self.start()
        batches = self.batches()
        main, initial = accelerator.is_main_process, self.steps_done
        self.progress = Progress(config, accelerator, self.objective, initial, self.schedule.seconds, ended)
        traces = RunFolder(config.output_dir).profile if config.profile and main else None
        profiling = profile_steps(traces, accelerator.device)
        with (
            StopRequest(config.max_train_time, self.schedule.seconds, config.network_timeout) as self.request,
            profiling as profiler,
            closing(self.progress),
            self.endings.naming_lost_processes(),
        ):
            while not ended:
                for part in range(config.gradient_accumulation_steps):
                    self.step(self.next_batch(batches, part), self.steps_done)
                reason = self.request.reason()
                self.advance(self.request.seconds)
                if profiler is not None:
                    profiler.step()
                self.progress.step(self.steps_done)
                ended = self.finish_step(self.steps_done, reason)
        self.endings.if_untrained(self.steps_done, self.untrained())
        components = self.monitor.components("cpu")
        # DistributedDataParallel goes before the process group: freed after it, its last reference to it may deadlock
        self.model = self.synchronized = None  # type: ignore[assignment]
        accelerator.free_memory()
        accelerator.end_training()  # of the process group, too
        return components

    def start(self) -> bool:
        """Continue from the newest checkpoint, or begin. Returns whether the run has ended already."""
        if self.config.resume:
            self.steps_done = self.state.load()
            if self.monitor.exhausted or self.schedule.ended(self.steps_done):
                self.accelerator.print(
                    f"Nothing is left to train: the run ended after step {self.steps_done}. To train on, raise the "
                    "limit that ended it: `max_train_steps`, `max_train_time` or `patience`."
                )
                return True
        self.log = RunLog(self.config, self.accelerator, self.steps_done, self.id2label, self.label_examples)
        if not self.config.resume and self.config.autoencoder_from is None:
            self._place_codebook()
        self.detector.refresh()
        return False

    def batches(self) -> Iterator[Batch]:
        """Batches for ever, from the position of the run on, in an order that `seed` fixes."""
        while True:
            yield from self.data.rest_of_epoch()
            self.usage.end_epoch()

    def next_batch(self, batches: Iterator[Batch], part: int) -> Batch:
        """
        The next batch, number `part` of an optimizer step.

        Raises:
            ValueError, OSError: it can't be read on some process; the state before this step is saved first.
        """
        if part == 0 and self.config.gradient_accumulation_steps > 1:
            self.state.mark()
        error: Exception | None = None
        try:
            batch = next(batches)
        except Exception as caught:
            error = caught
        if self.request.anywhere(error is not None):
            self.endings.by_unreadable_data(self.steps_done, error, begun=part > 0)
        return batch

    def inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Arguments of the objective, with images mirrored at random, and what they are drawn from alike."""
        inputs = model_inputs(batch, label_table=self.label_table)
        if self.config.random_flip and "images" in inputs:
            images = inputs["images"]
            mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
            for name in ("images", "condition"):
                if name in inputs:
                    inputs[name] = torch.where(mirrored, inputs[name].flip(-1), inputs[name])
        return inputs

    def step(self, batch: Batch, step: int) -> None:
        """One batch; an optimizer step when enough of them are gathered."""
        self.objective.set_step(self.schedule.begin(step))
        with self.accelerator.accumulate(self.synchronized):
            with self.accelerator.autocast():
                output = self.model(**self.inputs(batch))
            self.update(output, step)
        self.last_output = output

    def advance(self, seconds: float) -> None:
        """After an optimizer step, at `seconds` of training: learning rate and averaged weights."""
        before = self.schedule.place(self.steps_done)
        self.steps_done, self.schedule.seconds = self.steps_done + 1, seconds
        after = self.schedule.place(self.steps_done)
        self.lr_scheduler.last_epoch = after - 1  # which the next line adds
        self.lr_scheduler.step()
        self.ema.update_parameters(self.trained, self.schedule.ema_decay(before, after))

    def untrained(self) -> list[str]:
        """Names of what the run saves, but has not trained at all; what it started from is trained."""
        return [
            name
            for name, part in self.trained.named_children()
            if name in self.objective.saved
            and not self.update.has_trained(part)
            and self.config.find_start(name) is None
        ]

    # ---------------------------------------------------------------------------------------- what a step may write

    def finish_step(self, done: int, reason: signal.Signals | str | None) -> bool:
        """
        Write what is due after step `done`, all of it after the last. Returns whether it was the last.

        Raises:
            SystemExit: `reason` is a signal.
        """
        if isinstance(reason, signal.Signals):
            self.log_and_score(done, False)
            self.endings.by_signal(done, reason)
        if reason:
            self.accelerator.print(f"`max_train_time` is over after step {done}.")
        config, monitor = self.config, self.monitor
        last = self.log_and_score(done, done == config.max_train_steps or bool(reason))

        def due(every: int) -> bool:
            return every > 0 and (last or done % every == 0)

        validate = monitor.validation is not None and due(config.validate_every)
        draw = last or due(config.image_every)
        evaluate, save = due(config.evaluation_interval), due(config.checkpoint_every)
        if validate or draw or evaluate or save:
            self.endings.if_not_finite(done)
        if save:
            self.state.save(done)
        with nullcontext() if save else self.endings.saving_on_failure(done):
            if validate:
                self.log.write(monitor.validate(), done)
            if draw:
                for name, pixels in monitor.grids().items():
                    self.log.save_grid(name, pixels, done)
            if evaluate and (found := monitor.evaluate(done)):
                self.log.write(found, done)
        return last

    def log_and_score(self, done: int, last: bool) -> bool:
        """Log the losses, and take the score of early stopping. Returns whether it was the last step."""
        rule = self.objective.early_stopping
        score = rule is not None and (last or done % rule.every == 0)
        log = last or done % self.config.log_every == 0
        if score or log or self.accelerator.device.type == "cpu":  # on other devices looking costs a wait
            self.endings.if_not_finite(done)
        if score:
            self.log.write(self.monitor.held_out_score(), done)
            last = last or self.monitor.exhausted
        if last or log:
            self._log_losses(done, last)
        return last

    # -------------------------------------------------------------------------------------------------- internals

    def _log_losses(self, done: int, last: bool) -> None:
        values: dict[str, Any] = {f"loss/{k}": v for k, v in self.last_output.losses.items()}
        values |= {f"train/{k}": v for k, v in self.last_output.metrics.items()}
        values |= self.usage.metrics()
        values["train/learning_rate"] = self.lr_scheduler.get_last_lr()[0]
        written = self.log.write(values | self.log.speed(done), done)
        losses = {name.removeprefix("loss/"): value for name, value in written.items() if name.startswith("loss/")}
        self.progress.log(done, losses, last)

    @torch.no_grad()
    def _place_codebook(self) -> None:
        """Put a fresh codebook on the latents of a few batches, all of which are read before processes meet."""
        vqvae, batches, error = self.objective.vqvae, [], None
        try:
            batches = list(self.data.first(_CODEBOOK_BATCHES))
        except Exception as caught:
            error = caught
        if any(gather_object([error is not None])):
            self.endings.by_unreadable_data(0, error, begun=False)
        latents = [vqvae.encode(self.inputs(batch)["images"]).latents for batch in batches]
        vqvae.quantize.initialize_codebook(torch.cat(latents))
