"""Everything that a run continues from, to a checkpoint and back."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from ...run_folder import RunFolder
from ..agreement import on_main_process
from ..config import RunConfig
from ..data import TrainingBatches
from ..ema import AveragedWeights
from ..monitoring.codebook_usage import CodebookUsage
from ..schedule import Schedule
from .checkpoint import load_newest, random_state, restore_random_state, save_checkpoint
from .elastic import Division, check_division, describe_division
from .preflight import changed_settings, check_data, check_settings, fixed_settings


class RunState:
    """
    Saves and loads the state of a run. All processes call its methods.

    Args:
        config (`RunConfig`), accelerator (`Accelerator`): of the run.
        data (`dict`): what describes the data and their order; a checkpoint of other data is refused.
        modules (`dict[str, nn.Module]`): what a checkpoint holds, by file name; "ema" is an [`AveragedWeights`].
        optimizer: has the moments; see `Update.moments`.
        lr_scheduler: of the optimizer.
        batches ([`TrainingBatches`]): whose position is saved.
        usage ([`CodebookUsage`]): whose counts are saved.
        schedule ([`Schedule`]): whose seconds are saved if the run has a time limit.
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        data: dict[str, Any],
        modules: dict[str, nn.Module],
        optimizer: Any,
        lr_scheduler: Any,
        batches: TrainingBatches,
        usage: CodebookUsage,
        schedule: Schedule,
    ):
        self.config, self.accelerator, self.data, self.modules = config, accelerator, data, modules
        self.optimizer, self.lr_scheduler, self.batches, self.usage = optimizer, lr_scheduler, batches, usage
        self.schedule = schedule
        self.folder = RunFolder(config.output_dir)
        self.division = Division.of(config, accelerator.num_processes)

    def save(self, done: int) -> Path:
        """Write a checkpoint of step `done`; returns its folder."""
        state = {
            "step": done,
            "epoch": self.batches.epoch,
            "batches_done": self.batches.batches_done,
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "data": self.data,
            "settings": fixed_settings(self.config),
            "division": asdict(self.division),
            "epoch_images": self.batches.epoch_images,
            "reached": self.schedule.reached,
        }
        state |= self.usage.state()
        if self.config.max_train_time is not None:
            state["seconds"] = self.schedule.seconds
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        checkpoints, keep = self.folder.checkpoints, self.config.keep_checkpoints
        return save_checkpoint(checkpoints, self.accelerator, self.modules, self.optimizer, state, keep)

    def load(self) -> int:
        """Load the newest whole checkpoint; returns its step."""
        last = on_main_process(self.accelerator, self._last_settings)
        try:
            found, state = load_newest(self.folder.checkpoints, self.accelerator, self.modules, self.optimizer)
        except ValueError as error:
            settings = changed_settings(last, self.config)
            said = f" Changed since the last start: {'; '.join(settings)}." if settings else ""
            raise ValueError(f"{error}{said}") from error
        check_data(found, state["data"], self.data)
        check_settings(found, last | state.get("settings", {}), self.config)
        changes = self._load_position(found, {"settings": last} | state)
        done: int = state["step"]
        if done > self.config.max_train_steps:
            raise ValueError(
                f"{found} is of step {done}, `max_train_steps` is {self.config.max_train_steps}: nothing is left to "
                f"train. Give more than {done}."
            )
        self.schedule.seconds = state.get("seconds", on_main_process(self.accelerator, lambda: self._logged(done)))
        config = self.config
        reached = state.get("reached", (done - 1) / last.get("max_train_steps", done))  # older ones don't have it
        if self.schedule.stay_at(reached, done):
            changes.append("with the phases where they were: what has joined or is frozen stays so")
        self.lr_scheduler.load_state_dict(state["lr_scheduler"] | {"base_lrs": [config.learning_rate]})
        place = self.lr_scheduler.last_epoch = self.schedule.place(done)
        rate = config.learning_rate * self.lr_scheduler.lr_lambdas[0](place)
        for group in self.lr_scheduler.optimizer.param_groups:  # the options of this start, not of the one before
            group |= {"lr": rate, "initial_lr": config.learning_rate, "weight_decay": config.weight_decay}
        ema = self.modules["ema"]
        assert isinstance(ema, AveragedWeights)
        ema.started = True
        self.usage.load(state)
        if self.accelerator.scaler is not None and "scaler" in state:  # not after another precision
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.accelerator.print(" ".join([f"resumed from {found}", *changes]))
        if settings := changed_settings(last, config):
            self.accelerator.print(f"with other settings than at the last start: {'; '.join(settings)}")
        return done

    def _load_position(self, checkpoint: Path, state: dict[str, Any]) -> list[str]:
        """The place in the data; returns what isn't as it would have been with the division of the checkpoint."""
        batches, now = self.batches, self.division
        before = Division.read(state, state["writers"], now)
        size = batches.count_images()  # None for a stream
        epoch_images = state.get("epoch_images")
        if epoch_images is None and size is not None:
            epoch_images = size // before.at_once * before.at_once
        check_division(checkpoint, before, now, epoch_images)
        batches.epoch, batches.epoch_images = state["epoch"], epoch_images
        if size is None and before.processes != now.processes and state["batches_done"]:
            batches.epoch, batches.batches_done = batches.epoch + 1, 0
        else:
            batches.batches_done = state["batches_done"] * before.at_once // now.at_once
        return describe_division(before, now, size is None, trains_autoencoder=self.usage.vqvae.training)

    def mark(self) -> None:
        """Remember the position in the data and the random state, before the batches of an optimizer step."""
        counts = self.usage.vqvae.quantize.code_counts.clone()
        self._marked = (self.batches.epoch, self.batches.batches_done, self.usage.last_epoch, counts, random_state())

    def rewind(self) -> None:
        """Back to the last `mark`: no batch of the step that began there was trained on."""
        epoch, batches_done, last_epoch, counts, random = self._marked
        self.batches.epoch, self.batches.batches_done, self.usage.last_epoch = epoch, batches_done, last_epoch
        self.usage.vqvae.quantize.code_counts.copy_(counts)
        restore_random_state(random)

    def _last_settings(self) -> dict[str, Any]:
        """Of the last start, by name; none if its file is gone or damaged."""
        try:
            return self.folder.read_config()
        except ValueError:
            return {}

    def _logged(self, done: int) -> float:
        """Seconds of training up to a step, as they were logged."""
        logged = [record for record in self.folder.read_metrics() if record["step"] <= done]
        return next((r["train/seconds"] for r in reversed(logged) if "train/seconds" in r), 0.0)
