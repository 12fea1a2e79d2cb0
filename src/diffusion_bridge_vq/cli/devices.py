"""Where a command runs: on which device, and in how many processes."""

import argparse
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def default_device(*, float64: bool = False) -> "torch.device":
    """
    The accelerator of this machine, if there is one; else the CPU.

    Args:
        float64 (`bool`, *optional*, defaults to `False`): only a device that has float64, which metrics need: not MPS.
    """
    import torch  # after `--help`

    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None or (float64 and found.type == "mps"):
        return torch.device("cpu")
    return found


def refuse_several_processes(
    parser: argparse.ArgumentParser, advice: str = "start it without `accelerate launch`"
) -> None:
    """End the command if a launcher started it several times: each process would do everything and write the files."""
    processes = int(os.environ.get("WORLD_SIZE") or 1)
    if processes > 1:
        parser.error(f"this is for one process, and {processes} were launched: {advice}")
