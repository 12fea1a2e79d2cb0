"""The section "quantizer" of benchmark.py, which says what it measures."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from diffusion_bridge_vq.models import QUANTIZERS


def quantizer_memory(kind: str, mode: str, shape: list[int], device: str) -> dict[str, float]:
    """Peak in MB of quantizing one batch; `shape` is B, d, h, w, K."""
    torch.manual_seed(0)
    training = mode == "train"
    quantizer = QUANTIZERS[kind](shape[-1], shape[1]).to(device).train(training)
    single, latents = (torch.randn(b, *shape[1:-1], device=device, requires_grad=training) for b in (1, shape[0]))

    def call(z: torch.Tensor) -> None:
        with torch.set_grad_enabled(training):
            z_q, loss, _ = quantizer(z)
        if training:
            (z_q.mean() + loss).backward()

    call(single)
    quantizer.zero_grad()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call(latents)
        peak = torch.cuda.max_memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        call(latents)
        peak = resident("VmHWM")
    gradients = [t.grad.nbytes for t in (latents, quantizer.embedding.weight) if t.grad is not None]
    return {"peak_mb": (peak - before) / 1e6, "gradients_mb": sum(gradients) / 1e6}


def in_fresh_process(kind: str, mode: str, shape: list[int], device: str) -> dict[str, float]:
    context = multiprocessing.get_context("forkserver")  # forks from a process that has only done imports
    context.set_forkserver_preload([QUANTIZERS[kind].__module__])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(quantizer_memory, kind, mode, shape, "cpu").result()


def resident(key: str) -> int:
    """Bytes: VmRSS now, VmHWM at the peak."""
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0])
