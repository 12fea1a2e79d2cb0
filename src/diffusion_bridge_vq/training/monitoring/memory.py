"""Memory that this process has used."""

import sys

import psutil
import torch


def peak_memory(device: torch.device) -> int:
    """Bytes: the most so far that tensors took on a GPU; on a CPU that the whole process took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes there, KiB elsewhere


def total_memory(device: torch.device) -> int:
    """Bytes that the device has; of a CPU, those that no other program uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().available
