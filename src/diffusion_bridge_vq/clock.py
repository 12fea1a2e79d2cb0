"""Reading the clock when a device has finished."""

import time

import torch


def synchronized_time(device: torch.device) -> float:
    """Seconds on a clock that only moves on, when `device` has done all that was asked of it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
