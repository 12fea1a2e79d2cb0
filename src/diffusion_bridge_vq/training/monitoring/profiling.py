"""Where a run's time goes: torch's profiler over a few steps."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

PROFILED_STEPS = 5  # after one that is left out and two that warm up


def profile_steps(folder: Path | None, device: torch.device) -> Any:
    """
    A context that gives torch's profiler, whose `step` is called after each step, or None without a `folder`.

    After eight steps `folder` has trace.json (for chrome://tracing or Perfetto) and operators.txt, a table.
    """
    if folder is None:
        return nullcontext()

    def write(profiler: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(folder / "trace.json"))
        kind = "cpu" if device.type == "cpu" else "device"
        table = profiler.key_averages().table(sort_by=f"self_{kind}_time_total", row_limit=40)
        (folder / "operators.txt").write_text(table)

    schedule = torch.profiler.schedule(wait=1, warmup=2, active=PROFILED_STEPS, repeat=1)
    return torch.profiler.profile(schedule=schedule, on_trace_ready=write)
