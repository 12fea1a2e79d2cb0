"""How long sampling takes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..clock import synchronized_time
from .arguments import as_device, check_count


class SecondsPerSample(NamedTuple):
    """Wall time of a batch divided by its size: median and quartiles over `repeats` batches, in seconds."""

    median: float
    lower_quartile: float
    upper_quartile: float
    batch_size: int
    repeats: int


def seconds_per_sample(
    draw: Callable[[], Any],
    batch_size: int = 32,
    repeats: int = 10,
    warmup: int = 2,
    device: torch.device | str = "cpu",
) -> SecondsPerSample:
    """
    Time a sampler (last column of the paper's Tables 2 and 3, whose batch is 32).

    The clock is read only when the device has finished, before and after every batch.

    Args:
        draw (`Callable`): draws one batch.
        batch_size (`int`, *optional*, defaults to 32): samples that one call of `draw` makes, at least 1.
        repeats (`int`, *optional*, defaults to 10): batches that are timed, at least 1.
        warmup (`int`, *optional*, defaults to 2): batches drawn before, for compilation and caches, at least 0.
        device (`torch.device`, *optional*, defaults to `"cpu"`): what `draw` runs on.

    Raises:
        TypeError: another kind of object than the one named above.
        ValueError: numbers out of range, or no device.
    """
    if not callable(draw):
        raise TypeError(f"`draw` must be a function that draws one batch, got {type(draw).__name__}.")
    for name, value, lowest in (("batch_size", batch_size, 1), ("repeats", repeats, 1), ("warmup", warmup, 0)):
        check_count(name, value, lowest)
    device = as_device(device)

    for _ in range(warmup):
        draw()
    seconds = []
    for _ in range(repeats):
        start = synchronized_time(device)
        draw()
        seconds.append(synchronized_time(device) - start)
    per_sample = torch.tensor(seconds, dtype=torch.float64) / batch_size
    lower, median, upper = per_sample.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return SecondsPerSample(median, lower, upper, batch_size, repeats)
