"""Everything that a run continues from, to a checkpoint and back."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from ...run_folder import RunFolder
from ..config import RunConfig
from ..data import TrainingBatches
from ..ema import AveragedWeights
from ..monitoring.codebook_usage import CodebookUsage
from .checkpoint import load_newest, save_checkpoint
from .preflight import check_data


class RunState:
    """
    Saves and loads the state of a run. All processes call its methods.

    Args:
        config (`RunConfig`), accelerator (`Accelerator`): of the run.
        data (`dict`): what describes the data and their order; a checkpoint of other data is refused.
        modules (`dict[str, nn.Module]`): what a checkpoint holds, by file name; "ema" is an [`AveragedWeights`].
        optimizer: has the moments; see `Update.moments`.
        lr_scheduler: of the optimiser.
        batches ([`TrainingBatches`]): whose position is saved.
        usage ([`CodebookUsage`]): whose counts are saved.
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
    ):
        self.config, self.accelerator, self.data, self.modules = config, accelerator, data, modules
        self.optimizer, self.lr_scheduler, self.batches, self.usage = optimizer, lr_scheduler, batches, usage
        self.folder = RunFolder(config.output_dir)

    def save(self, done: int) -> Path:
        """Write a checkpoint of step `done`; returns its folder."""
        state = {
            "step": done,
            "epoch": self.batches.epoch,
            "batches_done": self.batches.batches_done,
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "data": self.data,
        }
        state |= self.usage.state()
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        checkpoints, keep = self.folder.checkpoints, self.config.keep_checkpoints
        return save_checkpoint(checkpoints, self.accelerator, self.modules, self.optimizer, state, keep)

    def load(self) -> int:
        """Load the newest whole checkpoint; returns its step."""
        found, state = load_newest(self.folder.checkpoints, self.accelerator, self.modules, self.optimizer)
        check_data(found, state["data"], self.data)
        done: int = state["step"]
        self.batches.epoch, self.batches.batches_done = state["epoch"], state["batches_done"]
        config = self.config
        self.lr_scheduler.load_state_dict(state["lr_scheduler"] | {"base_lrs": [config.learning_rate]})
        rate = config.learning_rate * self.lr_scheduler.lr_lambdas[0](done)
        for group in self.lr_scheduler.optimizer.param_groups:  # the options of this start, not of the one before
            group |= {"lr": rate, "initial_lr": config.learning_rate, "weight_decay": config.weight_decay}
        ema = self.modules["ema"]
        assert isinstance(ema, AveragedWeights)
        ema.started = True
        self.usage.load(state)
        if self.accelerator.scaler is not None and "scaler" in state:  # not after another precision
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.accelerator.print(f"resumed from {found}")
        return done
