"""Processes that work together: how they join, and decisions that one makes for all."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list

Result = TypeVar("Result")


def launched_processes(cpu: bool, mixed_precision: str = "no") -> Accelerator:
    """
    An Accelerator for the processes that `accelerate launch` started, which may wait for each other for a day: they
    don't train, and don't end at the same time.

    Args:
        cpu (`bool`): leave accelerators alone.
        mixed_precision (`str`, *optional*, defaults to `"no"`): of the networks.
    """
    patient: Any = InitProcessGroupKwargs(timeout=timedelta(days=1))
    return Accelerator(cpu=cpu, mixed_precision=mixed_precision, kwargs_handlers=[patient])


def on_main_process(accelerator: Accelerator, work: Callable[[], Result]) -> Result:
    """
    Run `work` on the main process alone. All processes call this and get its result, or raise its error: nobody is
    left waiting for a process that refused.

    Raises:
        Exception: what `work` raises.
    """
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except Exception as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
