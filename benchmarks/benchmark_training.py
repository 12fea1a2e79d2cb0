"""The sections "overhead" (its training step) and "training" of benchmark.py, which says what they measure."""

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from benchmark_sampling import Clock
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from diffusion_bridge_vq import GumbelVQModel, OUBridgeScheduler
from diffusion_bridge_vq.data import load_images
from diffusion_bridge_vq.training import PriorConfig, PriorObjective
from diffusion_bridge_vq.training.trainer import Trainer

Call = Callable[[], torch.Tensor]


def package_step(
    objective: PriorObjective, config: PriorConfig, accelerator: Accelerator, latents: torch.Tensor | None = None
) -> Call:
    """One optimizer step, as `train` does it: on `latents`, or on batches from its own loader."""
    images = load_images("digits", resolution=config.resolution, channels=config.channels)
    run = Trainer(config, accelerator, objective, images)
    run.model.train()
    batches = run.batches()

    def step() -> torch.Tensor:
        run.step({"latents": latents} if latents is not None else next(batches), 0)
        run.lr_scheduler.step()
        run.ema.update_parameters(run.trained)
        return run.last_output.losses["prior"].detach()

    return step


def bare_step(
    unet: UNet2DModel, ddpm: DDPMScheduler, config: PriorConfig, latents: torch.Tensor, dtype: torch.dtype
) -> Call:
    """The same without the package."""
    parameters = list(unet.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    averages = [p.detach().clone() for p in parameters]

    def step() -> torch.Tensor:
        timesteps = torch.randint(len(ddpm), (len(latents),), device=latents.device)
        noise = torch.randn_like(latents)
        with torch.autocast(latents.device.type, dtype, enabled=dtype != torch.float32):
            output = unet(ddpm.add_noise(latents, noise, timesteps), timesteps).sample
        loss = F.mse_loss(output.float(), _target(ddpm, latents, noise))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1 - config.ema_decay)
        return loss.detach()

    return step


def stock_step(
    unet: UNet2DModel, ddpm: DDPMScheduler, config: PriorConfig, latents: torch.Tensor, accelerator: Accelerator
) -> Call:
    """
    What a step of diffusers' unconditional training example consists of: AdamW by its defaults, its learning rate
    schedule, `EMAModel` with warm-up, the loss read for the log.
    """
    optimizer = torch.optim.AdamW(unet.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = get_scheduler(
        config.lr_schedule,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.max_train_steps,
    )
    average = EMAModel(unet.parameters(), decay=config.ema_decay, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    model, optimizer, schedule = accelerator.prepare(unet, optimizer, schedule)
    average.to(accelerator.device)

    def step() -> torch.Tensor:
        timesteps = torch.randint(len(ddpm), (len(latents),), device=latents.device)
        noise = torch.randn_like(latents)
        with accelerator.accumulate(model):
            output = model(ddpm.add_noise(latents, noise, timesteps), timesteps).sample
            loss = F.mse_loss(output.float(), _target(ddpm, latents, noise))
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        average.step(unet.parameters())
        loss.item()  # waits for the device at every step, as the example does
        return loss.detach()

    return step


def _target(ddpm: DDPMScheduler, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return latents if ddpm.config.prediction_type == "sample" else noise


def compare_training(
    vqvae: GumbelVQModel,
    unet: UNet2DModel,
    bridge: OUBridgeScheduler,
    config: PriorConfig,
    accelerator: Accelerator,
    compiled: bool,
    clock: Clock,
) -> Iterator[dict[str, Any]]:
    """A row for each kind of step, all from the same weights; the bare one is timed again with each of them."""
    device = accelerator.device
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
    ddpm = bridge.to_diffusers(DDPMScheduler)
    side = config.resolution // vqvae.downsampling_factor
    latents = torch.randn(config.batch_size, config.unet["in_channels"], side, side).to(device)

    def network(layout: torch.memory_format = torch.contiguous_format) -> UNet2DModel:
        return deepcopy(unet).to(device, memory_format=layout).train()  # type: ignore[call-overload]

    def ours(layout: torch.memory_format = torch.contiguous_format, **changes: Any) -> Call:
        settings = replace(config, **changes)
        prior = PriorObjective(deepcopy(vqvae), network(layout), bridge, config.weighting, cache_latents=True)
        return package_step(prior, settings, accelerator)

    kinds: dict[str, Callable[[], Call]] = {
        "package": ours,
        "package, channels last": lambda: ours(torch.channels_last),
        "diffusers' example": lambda: stock_step(network(), ddpm, config, latents, accelerator),
    }
    if compiled:
        kinds["package, compiled"] = lambda: ours(compile=True)
        kinds["package, compiled, channels last"] = lambda: ours(torch.channels_last, compile=True)
    bare = bare_step(network(), ddpm, config, latents, dtype)
    in_a_row = 10 if device.type == "cuda" else 1  # on CUDA the host may run ahead, as in training
    clock.time(bare, 1)  # what happens once
    for i, (name, make) in enumerate(kinds.items()):
        until = time.perf_counter() + clock.left / (len(kinds) - i)
        row: dict[str, Any] = {"step": name, "batch_size": config.batch_size}
        if clock.left <= 0:
            yield row | {"skipped": "nothing left of the budget"}
            continue
        if device.type == "cuda":
            torch.cuda.empty_cache()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        step = make()
        times = _pairs(step, bare, in_a_row, clock, until)
        ours_s, bare_s = np.median(times, axis=0).tolist()
        ratios = times[:, 0] / times[:, 1]
        row |= {
            "images_per_second": config.batch_size / ours_s,
            "bare_images_per_second": config.batch_size / bare_s,
            "ratio": np.median(ratios).item(),
            "ratio_quartiles": np.quantile(ratios, [0.25, 0.75]).tolist(),
            "repeats": len(times),
        }
        if device.type == "cuda":
            row["peak_mb"] = (torch.cuda.max_memory_allocated() - before) / 1e6  # with its weights and AdamW's state
        del step
        accelerator.free_memory()
        yield row


def _pairs(step: Call, bare: Call, in_a_row: int, clock: Clock, until: float) -> np.ndarray:
    """Seconds of a step and of a bare one in turns, (pairs, 2): at least one, at the most `clock.repeats`."""
    wait = torch.accelerator.synchronize if clock.device.type != "cpu" else lambda: None
    for _ in range(3):  # compiled, and allocated
        step()
    times: list[list[float]] = []
    while len(times) < clock.repeats and (not times or time.perf_counter() < until):
        pair = [0.0, 0.0]
        for which in (0, 1) if len(times) % 2 else (1, 0):
            wait()
            started = time.perf_counter()
            for _ in range(in_a_row):
                (step, bare)[which]()
            wait()
            pair[which] = (time.perf_counter() - started) / in_a_row
        times.append(pair)
    return np.array(times)
