"""What is refused before a chain begins."""

import math
from typing import Any, SupportsIndex

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..schedulers import OUBridgeScheduler
from ..schedulers.few_steps import is_student
from ..schedulers.stock_schedulers import check_options, find_stock_scheduler


def check_count(name: str, value: int, most: int | None = None) -> None:
    """
    Raises:
        ValueError: `value` isn't a whole number, is below 1 or above `most`.
    """
    whole = isinstance(value, SupportsIndex) and not isinstance(value, (bool, torch.Tensor, np.ndarray))
    if not whole or value < 1 or (most is not None and value > most):
        limits = "of at least 1" if most is None else f"in 1..{most}"
        raise ValueError(f"`{name}` must be a whole number {limits}, got {value!r}.")


def check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> None:
    """
    Raises:
        ValueError: `value` isn't a finite number, or outside of [low, high].
    """
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        limits = "" if low == -math.inf else f" in [{low:g}, {high:g}]"
        raise ValueError(f"`{name}` must be a finite number{limits}, got {value!r}.")


def check_latents(name: str, latents: Any, shape: tuple[int, ...] | None = None, finite: bool = True) -> None:
    """
    Raises:
        TypeError: not a tensor.
        ValueError: another shape, no images or positions at all, no floating-point numbers, or NaN or infinite ones.
    """
    if not isinstance(latents, torch.Tensor):
        hint = "; `torch.from_numpy` makes one of an array" if isinstance(latents, np.ndarray) else ""
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(latents).__name__}{hint}.")
    if shape is not None and tuple(latents.shape) != tuple(shape):
        raise ValueError(f"`{name}` has shape {tuple(latents.shape)}, expected {tuple(shape)}.")
    if latents.ndim < 3 or latents.numel() == 0:
        raise ValueError(f"`{name}` must be (B, d, h, w) or (B, d, N), not empty, got {tuple(latents.shape)}.")
    if not latents.is_floating_point():
        raise ValueError(f"`{name}` must have floating-point numbers, got {latents.dtype}: use `{name}.float()`.")
    if finite:
        check_finite(name, latents)


def check_finite(name: str, values: torch.Tensor) -> None:
    """
    Raises:
        ValueError: some values are NaN or infinite.
    """
    if values.is_meta:  # has no values
        return
    bad = ~values.isfinite()
    if bool(bad.any()):
        raise ValueError(f"`{name}` has {int(bad.sum())} of {values.numel()} values that are NaN or infinite.")


def check_labels(class_labels: Any, num_images: int, unet: Any) -> None:
    """
    Raises:
        TypeError: not a tensor.
        ValueError: not one whole number or vector over the classes per image, numbers out of range, none for a network
            that needs them, or some for a network without classes.
    """
    config = getattr(unet, "config", None)
    num_embeds = getattr(config, "num_class_embeds", None)
    if class_labels is None:
        if num_embeds is not None:
            raise ValueError(
                f"The network has classes: give `class_labels`, one per image; {num_embeds - 1} is no class."
            )
        return
    if config is not None and num_embeds is None:
        raise ValueError("The network has no classes: leave out `class_labels`.")
    if not isinstance(class_labels, torch.Tensor):
        raise TypeError(f"`class_labels` must be a torch.Tensor, got {type(class_labels).__name__}.")
    if class_labels.is_floating_point() and tuple(class_labels.shape) == (num_images, num_embeds):
        return check_finite("class_labels", class_labels)  # vectors over the classes
    whole = not class_labels.is_floating_point() and not class_labels.is_complex() and class_labels.dtype != torch.bool
    if not whole or tuple(class_labels.shape) != (num_images,):
        raise ValueError(
            f"`class_labels` must be {num_images} integers, one per image, got shape {tuple(class_labels.shape)} of "
            f"{class_labels.dtype}."
        )
    if num_embeds is None or class_labels.is_meta:
        return
    if not bool(((class_labels >= 0) & (class_labels < num_embeds)).all()):
        raise ValueError(f"`class_labels` must lie in 0..{num_embeds - 1}, got {class_labels.tolist()}.")


def check_guidance(scheduler: SchedulerMixin, guidance_scale: float) -> float:
    """
    The guidance scale with which the network is called.

    Raises:
        ValueError: not a finite number, or another one than a student has learned.
    """
    check_number("guidance_scale", guidance_scale)
    learned = scheduler.config.get("distilled_guidance_scale")
    if learned is not None and guidance_scale not in (1.0, learned):
        raise ValueError(
            f"This network was distilled with a guidance scale of {learned:g}, which costs nothing, and knows no "
            f"other: leave out `guidance_scale`, got {guidance_scale}."
        )
    return guidance_scale if learned is None else 1.0


def check_solver(scheduler: SchedulerMixin, solver: str, timestep_spacing: str | None) -> None:
    """
    Raises:
        ValueError: another solver than "consistency", or a spacing, for a student; that one for other networks.
    """
    if is_student(scheduler) != (solver == "consistency"):
        raise ValueError(
            f"This network was distilled: leave out `solver`, got {solver!r}."
            if is_student(scheduler)
            else "`solver` 'consistency' needs a network that was distilled for it; take 'dpmsolver++'."
        )
    if is_student(scheduler) and timestep_spacing is not None:
        raise ValueError(
            "This network was distilled for certain timesteps: leave out `timestep_spacing`, got "
            f"{timestep_spacing!r}."
        )


def check_scheduler(scheduler: SchedulerMixin) -> None:
    """
    Refuse a stock scheduler that samples another law, or that was swapped in by `from_config` from a bridge with
    another stationary variance than 1.

    Such a scheduler keeps betas, theta and eta in its config without following them. With s = 1 the swap is right as
    it is.

    Raises:
        ValueError: with the call that makes the right scheduler.
    """
    if isinstance(scheduler, OUBridgeScheduler):
        return
    name, config = type(scheduler).__name__, scheduler.config
    stock = find_stock_scheduler(type(scheduler), config.get("prediction_type", "epsilon"), is_student(scheduler))
    s = config.get("eta", math.sqrt(2.0)) / math.sqrt(2 * config.get("theta", 1.0))
    if abs(s - 1) > 1e-6:
        raise ValueError(
            f"{name} assumes a stationary standard deviation of 1, but its config comes from a bridge with "
            f"s = eta / sqrt(2 theta) = {s:.4g}, so its samples would be wrong. Use "
            f"`OUBridgeScheduler.from_config(pipe.scheduler.config).to_diffusers({name})` instead of "
            f"`{name}.from_config(pipe.scheduler.config)`."
        )
    check_options(type(scheduler), config, stock.spacings)


def check_steps(scheduler: SchedulerMixin, num_inference_steps: int, spacing: str | None = None) -> None:
    """
    Refuse steps that coincide or begin far from noise.

    "leading" steps, at 0, T // n, 2 (T // n), ..., begin far below T where n is 1 or doesn't divide it. Samples then
    keep too much of the noise that they start from.

    Args:
        scheduler (`SchedulerMixin`): its steps are set.
        num_inference_steps (`int`): how many were asked for.
        spacing (`str`, *optional*): where they lie; without it, as the scheduler's config says.

    Raises:
        ValueError: with what to take instead.
    """
    num_train, name = scheduler.config.num_train_timesteps, type(scheduler).__name__
    spacing = scheduler.config.get("timestep_spacing") if spacing is None else spacing
    if len(scheduler.timesteps.unique()) < num_inference_steps:
        raise ValueError(
            f"{name} can't place {num_inference_steps} steps on the {num_train} noise levels with "
            f"timestep_spacing={spacing!r}: some would coincide. Take fewer."
        )
    first = int(scheduler.timesteps[0])
    if isinstance(scheduler, OUBridgeScheduler):
        snr = scheduler.signal_to_noise(torch.tensor([first, num_train - 1]))
        signal, least = (snr / (1 + snr)).sqrt().tolist()
    else:
        signal, least = scheduler.alphas_cumprod[[first, num_train - 1]].sqrt().tolist()
    step = min(num_train // num_inference_steps, num_train // 2)  # one "leading" step begins at 0
    if first + step < 0.95 * num_train and signal > least + 0.1:
        raise ValueError(
            f"{name} would begin its {num_inference_steps} steps at noise level {first} of {num_train}, where "
            f"{signal:.0%} of z_0 is left, so its samples would be wrong. Take timestep_spacing='trailing', or a "
            f"number of steps above 1 that divides {num_train}."
        )
