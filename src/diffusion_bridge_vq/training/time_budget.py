"""How many steps fit into a time."""

import torch
from accelerate import Accelerator

from ..clock import synchronized_time
from .config import RunConfig
from .objectives import build_objective

_TIMED_STEPS = 3  # after one that warms up, at each of the steps spread over the run


def steps_within(config: RunConfig, seconds: float) -> int:
    """
    Optimizer steps of a run that take `seconds`, from timing a few on random images.

    Only the steps are counted: not loading and encoding data, grids and checkpoints. Learning rate and phases follow
    the number of steps, so a run within a time needs to know it beforehand.

    Args:
        config (`RunConfig`): its `max_train_steps` is replaced by what is returned.
        seconds (`float`): > 0.

    Returns:
        `int`: at least 1.
    """
    if seconds <= 0:
        raise ValueError(f"`seconds` must be positive, got {seconds}.")
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    device = accelerator.device
    objective = build_objective(config).to(device).train()
    model = accelerator.prepare(objective)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], fused=True)
    inputs = objective.random_inputs(config.batch_size)

    def step() -> None:
        for _ in range(config.gradient_accumulation_steps):
            accelerator.backward(torch.stack(list(model(**inputs).losses.values())).sum())
        optimizer.step()
        optimizer.zero_grad()

    spent = 0.0
    for number in config.spread_steps():
        objective.set_step(number)
        step()
        started = synchronized_time(device)
        for _ in range(_TIMED_STEPS):
            step()
        spent += synchronized_time(device) - started
    return max(1, round(seconds * len(config.spread_steps()) * _TIMED_STEPS / spent))
