"""The reverse chain as a plain loop: the one place where network and scheduler meet when sampling."""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from .models.denoiser import denoise
from .schedulers import OUBridgeScheduler

Callback = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor | None]


@torch.no_grad()
def sample_latents(
    unet: nn.Module,
    scheduler: SchedulerMixin,
    shape: tuple[int, ...],
    num_inference_steps: int,
    generator: torch.Generator | list[torch.Generator] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    latents: torch.Tensor | None = None,
    class_labels: torch.Tensor | None = None,
    guidance_scale: float = 1.0,
    callback: Callback | None = None,
    progress_bar: Callable[[Iterable], Iterable] = iter,
) -> torch.Tensor:
    """
    Algorithm 2: draw z_T from the stationary law and walk back to z_0.

    A stock diffusers scheduler walks in x = (z - z*) / m_t instead and z = z* + x at the end, see
    `OUBridgeScheduler.to_diffusers`. The timesteps stay on the host, so that the loop never waits for the device.

    Args:
        unet (`nn.Module`): the network, called through [`denoise`].
        scheduler: [`OUBridgeScheduler`] or a stock scheduler made from it.
        shape (`tuple[int, ...]`): (B, d, h, w) or (B, d, N).
        num_inference_steps (`int`): network calls.
        generator (`torch.Generator` or a list with one per sample, *optional*): source of all noise.
        device, dtype: of the latents.
        latents (`torch.Tensor`, *optional*): standard normal noise of that shape, to start from instead of a draw.
        class_labels (`torch.Tensor`, *optional*), guidance_scale (`float`): see [`denoise`].
        callback (`Callable`, *optional*): called as callback(step, timestep, latents) after every step; what it
            returns, if anything, replaces the latents.
        progress_bar (`Callable`, *optional*): wraps the iterable over steps, e.g. `tqdm`.

    Returns:
        `torch.Tensor`: z_0 of the given shape.

    Raises:
        ValueError: the scheduler doesn't fit (`check_scheduler`), or `latents` has another shape,
            or there are too few or too many steps.
    """
    check_scheduler(scheduler)
    if not 1 <= num_inference_steps <= scheduler.config.num_train_timesteps:
        raise ValueError(
            f"`num_inference_steps` must lie in 1..{scheduler.config.num_train_timesteps} (num_train_timesteps), "
            f"got {num_inference_steps}."
        )
    device = torch.device(device or "cpu")
    if latents is None:
        noise = randn_tensor(tuple(shape), generator=generator, device=device, dtype=dtype)
    elif latents.shape != torch.Size(shape):
        raise ValueError(f"`latents` has shape {tuple(latents.shape)}, expected {tuple(shape)}.")
    else:
        noise = latents.to(device, dtype)

    scheduler.set_timesteps(num_inference_steps)  # before init_noise_sigma, which Euler's spacing changes
    z_star = _z_star(scheduler, noise)
    is_bridge = isinstance(scheduler, OUBridgeScheduler)
    sample = noise * scheduler.init_noise_sigma + (z_star if is_bridge else 0.0)

    timesteps = scheduler.timesteps.cpu()
    on_device = timesteps.to(device)
    step_kwargs = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    # z_0-networks predict z_0 = z* + x_0, a stock scheduler wants x_0
    offset = z_star if not is_bridge and scheduler.config.prediction_type == "sample" else 0.0
    for i in progress_bar(range(len(timesteps))):
        model_output = denoise(unet, scheduler, sample, on_device[i], class_labels, guidance_scale) - offset
        sample = scheduler.step(model_output, timesteps[i], sample, **step_kwargs).prev_sample
        if callback is not None:
            replaced = callback(i, timesteps[i], sample)
            sample = sample if replaced is None else replaced
    return sample if is_bridge else sample + z_star


def check_scheduler(scheduler: SchedulerMixin) -> None:
    """
    Refuse a stock scheduler that was swapped in by `from_config` from a bridge with another stationary variance than
    1.

    Such a scheduler keeps theta and eta in its config without following them. With s = 1 the swap is right as it is.

    Raises:
        ValueError: with the call that makes the right scheduler.
    """
    if isinstance(scheduler, OUBridgeScheduler):
        return
    name, config = type(scheduler).__name__, scheduler.config
    s = config.get("eta", math.sqrt(2.0)) / math.sqrt(2 * config.get("theta", 1.0))
    if abs(s - 1) > 1e-6:
        raise ValueError(
            f"{name} assumes a stationary standard deviation of 1, but its config comes from a bridge with "
            f"s = eta / sqrt(2 theta) = {s:.4g}, so its samples would be wrong. Use "
            f"`OUBridgeScheduler.from_config(pipe.scheduler.config).to_diffusers({name})` instead of "
            f"`{name}.from_config(pipe.scheduler.config)`."
        )
    for option in ("clip_sample", "thresholding"):
        if config.get(option, False):
            raise ValueError(f"{name} has {option}=True, which cuts latents to [-1, 1]; make it with {option}=False.")


def _z_star(scheduler: SchedulerMixin, sample: torch.Tensor) -> torch.Tensor | float:
    """z* from the config of a bridge or of a stock scheduler made from one: a number or (1, d, 1, ...)."""
    z_star: Any = scheduler.config.get("z_star", 0.0)
    if not isinstance(z_star, (list, tuple)):
        return float(z_star)
    if len(z_star) != sample.shape[1]:
        raise ValueError(f"`z_star` has {len(z_star)} values, but the latents have {sample.shape[1]} channels.")
    return sample.new_tensor(z_star).reshape(1, -1, *[1] * (sample.ndim - 2))
