"""What Accelerate offers to spread a run: the engine that the run was launched with, and what it needs."""

from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    broadcast,
)
from torch import nn

from ..config import RunConfig
from ..objectives import Objective, objective_class
from ..optimizer_step import Update
from .deepspeed import DeepSpeedUpdate, check_deepspeed, configure_deepspeed


def make_accelerator(config: RunConfig) -> Accelerator:
    """
    Raises:
        ValueError: launched with an engine that can't train this run; a tracker that isn't installed.
    """
    if AcceleratorState._shared_state and PartialState().num_processes == 1:
        AcceleratorState._reset_state()  # of an earlier run in this process, which may have another precision
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # without it, several processes on CPUs do not find each other
        mixed_precision=config.mixed_precision,
        # steps are counted in batches, wherever an epoch ends
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            config.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=None if config.report_to == "none" else config.report_to,
        project_config=ProjectConfiguration(str(config.output_dir), str(config.output_dir / "logs")),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=config.seed, non_blocking=True),
        kwargs_handlers=[
            # statistics are kept equal by what changes them; each process counts the codes that it chose
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=timedelta(seconds=config.network_timeout)),
        ],
    )
    if config.report_to != "none" and not accelerator.log_with:  # Accelerate would leave it out silently
        raise ValueError(f"`report_to` {config.report_to!r} isn't installed; install it, or take 'none'.")
    check_engine(config, accelerator)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        configure_deepspeed(config, accelerator)
    return accelerator


def check_engine(config: RunConfig, accelerator: Accelerator) -> None:
    """
    Raises:
        ValueError: launched with an engine that splits what this run needs whole, or otherwise than it can.
    """
    engine = accelerator.distributed_type
    remedy = "Launch with examples/accelerate_configs/multi_gpu.yaml."
    if engine == DistributedType.MEGATRON_LM:
        raise ValueError(f"{engine.value} is not supported here. {remedy}")
    if engine == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError("FSDP needs `fsdp_version: 2`, got 1; see examples/accelerate_configs/fsdp.yaml.")
    splits = engine in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if splits and not objective_class(config).shardable:
        raise ValueError(
            f"{engine.value} is for a prior on a frozen autoencoder (prior, pixelcnn), but {config.kind} trains "
            "the autoencoder, too. The forward pass changes its codebook, so each process needs it whole, without a "
            f"copy in the optimizer. {remedy}"
        )
    if engine == DistributedType.DEEPSPEED:
        check_deepspeed(config, accelerator.deepspeed_plugin)


def prepare(
    accelerator: Accelerator, objective: Objective, trained: nn.ModuleDict, optimizer: Any, loader: Any
) -> tuple[Any, nn.Module, Any, Any]:
    """
    Args:
        objective ([`Objective`]): on the device.
        trained (`nn.ModuleDict`): what it trains.
        optimizer (`Optimizer`), loader (`DataLoader`): of them.

    Returns:
        what `accelerator.accumulate` takes, what to call instead of `objective`, optimizer and loader.
    """
    if accelerator.ddp_handler is not None:
        accelerator.ddp_handler.find_unused_parameters = objective.has_unused_parameters
    if not accelerator.is_fsdp2:
        synchronized, optimizer, loader = accelerator.prepare(objective, optimizer, loader)
        return synchronized, synchronized, optimizer, loader
    (part,) = trained.children()  # the prior is split, in place; the frozen autoencoder stays whole
    broadcast(part.state_dict())  # in place; else each process would keep a part of its own fresh weights
    accelerator.state.fsdp_plugin.mixed_precision_policy = None  # autocast's, as everywhere
    synchronized, optimizer, loader = accelerator.prepare(part, optimizer, loader)
    return synchronized, objective, optimizer, loader


def update_class(accelerator: Accelerator) -> type[Update]:
    """Of the run's updates."""
    return DeepSpeedUpdate if accelerator.distributed_type == DistributedType.DEEPSPEED else Update
