"""A run, from its settings to its components."""

import dataclasses
import shutil
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate.utils import set_seed
from torch.distributed.elastic.multiprocessing.errors import record

from ..run_folder import RunFolder
from .agreement import on_main_process
from .calibration import calibrate
from .config import RunConfig
from .data import check_class_names, find_classes, open_images
from .distributed.accelerate import make_accelerator
from .fault_tolerance.preflight import check_disk, check_output_dir
from .fault_tolerance.run_lock import run_lock
from .monitoring.monitor import Evaluate
from .monitoring.previews import check_grids
from .monitoring.screen import describe_run
from .objectives import build_objective
from .trainer import Trainer
from .trial import try_phases


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
        ValueError: bad settings or data; an output folder that another run uses or has used; a disk too small; a run
            that ended before all that it saves was trained.
        FloatingPointError: a loss became NaN or infinite, or latents exploded; names the step and the terms. The
            state from before that step is saved first.
        SystemExit: after SIGTERM or SIGINT, with the code shells give (128 + signal); the state is saved first.
    """
    accelerator = make_accelerator(config)
    set_seed(config.seed, device_specific=True)
    run, folder_is_new = RunFolder(config.output_dir), not config.output_dir.exists()
    with ExitStack() as stack:

        def hold_folder() -> None:
            def hold_and_check() -> None:
                stack.enter_context(run_lock(run))
                check_output_dir(config)  # again: another run may have ended while this one waited

            on_main_process(accelerator, hold_and_check)

        on_main_process(accelerator, lambda: check_output_dir(config))
        if not (folder_is_new or config.dry_run):
            hold_folder()
        images = open_images(config)
        calibrated = Path(stack.enter_context(TemporaryDirectory())) / "calibrated"
        config = calibrate(config, accelerator, images, calibrated)
        num_classes, class_names = find_classes(config, images)
        if config.uses_classes:
            check_class_names(class_names)
        objective = build_objective(config, num_classes, class_names)
        check_grids(objective, config.num_inference_steps)
        if config.vqvae_from == calibrated:
            config = dataclasses.replace(config, vqvae_from=run.calibrated)
        accelerator.print(
            describe_run(config, objective, images, accelerator.device, accelerator.num_processes), flush=True
        )
        if config.lr_warmup_steps >= config.max_train_steps:
            accelerator.print(
                f"`lr_warmup_steps` {config.lr_warmup_steps} reach over all {config.max_train_steps} steps: the "
                "learning rate never gets to its peak. Take fewer."
            )
        trainer = Trainer(config, accelerator, objective, images, evaluate)
        accelerator.print(on_main_process(accelerator, lambda: check_disk(config, trainer.state.modules)))
        if config.dry_run:
            if config.resume:
                trainer.state.load()
            try_phases(trainer)
            return None
        if folder_is_new:  # not before, so that a run that is refused leaves no folder
            hold_folder()
        if calibrated.is_dir():
            on_main_process(accelerator, lambda: shutil.copytree(calibrated, run.calibrated, dirs_exist_ok=True))
        components = trainer.fit()
        return components if accelerator.is_main_process else None
