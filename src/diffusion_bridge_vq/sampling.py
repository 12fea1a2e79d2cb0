"""The reverse chain as a plain loop: the one place where network and scheduler meet when sampling."""

import copy
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, SupportsIndex

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from .models.denoiser import denoise, embed_timesteps
from .models.masks import expand_mask
from .schedulers import OUBridgeScheduler

Callback = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor | None]
Solver = Literal["ancestral", "dpmsolver++", "ddim"]
Spacing = Literal["linspace", "leading", "trailing", "logsnr"]


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
    solver: Solver | None = None,
    timestep_spacing: Spacing | None = None,
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
        solver (`str`, *optional*): how an [`OUBridgeScheduler`] is walked: "ancestral" (its `step`, as with None),
            or without noise, in few steps, by "dpmsolver++" or "ddim" (`OUBridgeScheduler.solver_steps`).
        timestep_spacing (`str`, *optional*): see `OUBridgeScheduler.set_timesteps`; by default "logsnr" with
            "dpmsolver++" and "ddim", the scheduler's own otherwise.
        callback (`Callable`, *optional*): called as callback(step, timestep, latents) after every step; what it
            returns, if anything, replaces the latents.
        progress_bar (`Callable`, *optional*): wraps the iterable over steps, e.g. `tqdm`.

    Returns:
        `torch.Tensor`: z_0 of the given shape.

    Raises:
        ValueError: the scheduler doesn't fit (`check_scheduler`), or `latents` has another shape,
            or there are too few or too many steps, or a stock scheduler, which is a solver itself, is given another.
    """
    if latents is None:
        noise = randn_tensor(tuple(shape), generator=generator, device=torch.device(device or "cpu"), dtype=dtype)
    elif latents.shape != torch.Size(shape):
        raise ValueError(f"`latents` has shape {tuple(latents.shape)}, expected {tuple(shape)}.")
    else:
        noise = latents.to(torch.device(device or "cpu"), dtype)
    return _reverse_chain(
        unet,
        scheduler,
        noise,
        num_inference_steps,
        generator,
        class_labels=class_labels,
        guidance_scale=guidance_scale,
        solver=solver,
        timestep_spacing=timestep_spacing,
        callback=callback,
        progress_bar=progress_bar,
    )


@torch.no_grad()
def inpaint_latents(
    unet: nn.Module,
    scheduler: SchedulerMixin,
    known_latents: torch.Tensor,
    mask: torch.Tensor,
    num_inference_steps: int,
    generator: torch.Generator | list[torch.Generator] | None = None,
    latents: torch.Tensor | None = None,
    class_labels: torch.Tensor | None = None,
    guidance_scale: float = 1.0,
    jump_length: int = 10,
    jump_n_sample: int = 1,
    solver: Solver | None = None,
    timestep_spacing: Spacing | None = None,
    callback: Callback | None = None,
    progress_bar: Callable[[Iterable], Iterable] = iter,
) -> torch.Tensor:
    """
    Draw the unknown part of z_0 given the known one (appendix 7).

    At every step the unknown positions are predicted, and the known ones are drawn from the forward process,
    q(z_t | z_0). Alone this follows the conditional law only roughly, since positions that are already drawn never
    see what the known ones turn out to be; resampling (Lugmayr et al. 2022, "RePaint") repairs it: every
    `jump_length` steps are walked `jump_n_sample` times, with the forward process from their end back to their start
    in between. It takes jump_n_sample * num_inference_steps network calls. With nothing known this is
    [`sample_latents`], number for number.

    Args:
        unet, scheduler, num_inference_steps, generator, latents, class_labels, guidance_scale, solver,
            timestep_spacing, progress_bar: see [`sample_latents`].
        known_latents (`torch.Tensor`): z_0, (B, d, h, w) or (B, d, N); what stands at unknown positions is ignored.
        mask (`torch.Tensor`): True or 1 where z_0 is unknown, False or 0 where it is known; broadcasts against
            `known_latents`, e.g. (B, 1, h, w) or (N,).
        jump_length (`int`): steps between two jumps back, at least 1.
        jump_n_sample (`int`): how often each stretch of steps is walked; 1 is no resampling.
        callback (`Callable`, *optional*): as in [`sample_latents`]; a step that is walked again is reported again.

    Returns:
        `torch.Tensor`: z_0, exactly `known_latents` where they are known.

    Raises:
        ValueError: a mask that is empty, has other values than 0 and 1 or doesn't broadcast; numbers out of range;
            and what [`sample_latents`] raises.
    """
    for name, value in (("jump_length", jump_length), ("jump_n_sample", jump_n_sample)):
        check_count(name, value)
    unknown = expand_mask(mask.to(known_latents.device), known_latents.shape, "latents")
    if latents is None:
        noise = randn_tensor(
            known_latents.shape, generator=generator, device=known_latents.device, dtype=known_latents.dtype
        )
    elif latents.shape != known_latents.shape:
        raise ValueError(f"`latents` has shape {tuple(latents.shape)}, expected {tuple(known_latents.shape)}.")
    else:
        noise = latents.to(known_latents)
    return _reverse_chain(
        unet,
        scheduler,
        noise,
        num_inference_steps,
        generator,
        known=None if bool(unknown.all()) else (known_latents, unknown),
        jump_length=jump_length,
        jump_n_sample=jump_n_sample,
        class_labels=class_labels,
        guidance_scale=guidance_scale,
        solver=solver,
        timestep_spacing=timestep_spacing,
        callback=callback,
        progress_bar=progress_bar,
    )


def _reverse_chain(
    unet: nn.Module,
    scheduler: SchedulerMixin,
    noise: torch.Tensor,
    num_inference_steps: int,
    generator: torch.Generator | list[torch.Generator] | None,
    class_labels: torch.Tensor | None,
    guidance_scale: float,
    solver: Solver | None,
    timestep_spacing: Spacing | None,
    callback: Callback | None,
    progress_bar: Callable[[Iterable], Iterable],
    known: tuple[torch.Tensor, torch.Tensor] | None = None,
    jump_length: int = 1,
    jump_n_sample: int = 1,
) -> torch.Tensor:
    """The loop of both functions; `known` is z_0 and where it is unknown."""
    check_scheduler(scheduler)
    num_train = scheduler.config.num_train_timesteps
    check_count("num_inference_steps", num_inference_steps, num_train)
    deterministic = solver not in (None, "ancestral")
    if isinstance(scheduler, OUBridgeScheduler):
        spacing = timestep_spacing or ("logsnr" if deterministic else None)
        scheduler.set_timesteps(num_inference_steps, timestep_spacing=spacing)
    elif solver is not None or timestep_spacing is not None:
        raise ValueError(
            f"`solver` and `timestep_spacing` are for an OUBridgeScheduler; {type(scheduler).__name__} is a solver "
            "with a spacing of its own: leave both out."
        )
    else:
        scheduler.set_timesteps(num_inference_steps)  # before init_noise_sigma, which Euler's spacing changes
    timesteps = scheduler.timesteps.cpu()
    if len(timesteps.unique()) < num_inference_steps:
        raise ValueError(
            f"{type(scheduler).__name__} can't place {num_inference_steps} steps on the {num_train} noise levels with "
            f"timestep_spacing={scheduler.config.get('timestep_spacing')!r}: some would coincide. Take fewer."
        )
    on_device = timesteps.to(noise.device)
    embedded, rows = embed_timesteps(unet, on_device)
    step_kwargs = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    z_star = _z_star(scheduler, noise)
    # a stock scheduler walks in x = z - z*, around 0
    centre, shift = (z_star, 0.0) if isinstance(scheduler, OUBridgeScheduler) else (0.0, z_star)
    # z_0-networks predict z_0 = z* + x_0
    offset = shift if scheduler.config.prediction_type == "sample" else 0.0

    steps = scheduler.solver_steps(solver) if deterministic else []
    earlier: torch.Tensor | None = None  # z_0 - z* that the step before predicted

    stretch, resampling = jump_length * scheduler.order, jump_n_sample > 1
    marginals = _marginals(scheduler) if known or resampling else []
    stateful = resampling and not isinstance(scheduler, OUBridgeScheduler)
    fresh = saved = copy.deepcopy(scheduler) if stateful else scheduler

    def draw() -> torch.Tensor:
        return randn_tensor(noise.shape, generator=generator, device=noise.device, dtype=noise.dtype)

    def with_known(sample: torch.Tensor, level: int) -> torch.Tensor:
        """`sample`, with the noise that step `level` starts from, and its known part drawn from q(z_t | z_0)."""
        if known is None:
            return sample
        z_0, unknown = known
        if level == len(timesteps):
            return torch.where(unknown, sample, z_0 - shift)
        signal, sigma = marginals[level]
        return torch.where(unknown, sample, centre + signal * (z_0 - z_star) + sigma * draw())

    def predict(i: int, x: torch.Tensor) -> torch.Tensor:
        """The network's output; `x` is scaled already, by numbers on the host: no step waits for the device."""
        rows.step = i
        return denoise(embedded, _AS_IT_IS, x, on_device[i], class_labels, guidance_scale)

    def solve(i: int, sample: torch.Tensor, earlier: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of a solver, in float32 at least, and what it predicts for the next one."""
        step = steps[i]
        d = sample.to(torch.promote_types(sample.dtype, torch.float32)) - z_star
        output = predict(i, (d / step.scale).to(sample.dtype))
        predicted = output - z_star if scheduler.config.prediction_type == "sample" else output
        original = torch.add(step.from_sample * d, predicted, alpha=step.from_output)
        if scheduler.config.clip_sample:
            half_width = scheduler.config.clip_sample_range
            original = (original + z_star).clamp(-half_width, half_width) - z_star
        target = original
        if earlier is not None and step.extrapolation:
            target = torch.lerp(earlier, original, 1 + step.extrapolation)
        return torch.add(step.sample * d, target, alpha=step.original).add(z_star).to(sample.dtype), original

    sample, level = with_known(noise * scheduler.init_noise_sigma + centre, 0), 0
    for i in progress_bar(_walk(len(timesteps), stretch, jump_n_sample)):
        if i < level:  # a jump back, by the forward process q(z_t | z_s)
            (signal, sigma), (signal_s, sigma_s) = marginals[i], marginals[level]
            a = signal / signal_s
            std = math.sqrt(max(0.0, sigma**2 - (a * sigma_s) ** 2))
            sample = with_known(centre + a * (sample - centre) + std * draw(), i)
            scheduler, earlier = _restart(fresh, saved, i) if stateful else scheduler, None
        elif stateful and i % stretch == 0:
            saved = copy.deepcopy(scheduler)
        if deterministic:
            sample, earlier = solve(i, sample, earlier)
        else:
            model_output = predict(i, scheduler.scale_model_input(sample, timesteps[i])) - offset
            sample = scheduler.step(model_output, timesteps[i], sample, **step_kwargs).prev_sample
        level = i + 1
        sample = with_known(sample, level)
        if callback is not None:
            replaced = callback(i, timesteps[i], sample)
            sample = sample if replaced is None else replaced
    return to_latents(scheduler, sample)


class _NoScaling:
    """Stands for the scheduler in [`denoise`] where the sample is scaled already."""

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return sample


_AS_IT_IS: Any = _NoScaling()


def _restart(fresh: SchedulerMixin, saved: SchedulerMixin, step: int) -> SchedulerMixin:
    """
    A scheduler that goes on from `step`, where it was `saved`, after a jump back.

    Solvers that extrapolate from earlier steps begin with first order again: those belong to another path, and what
    they would extrapolate is the jump's noise. LMS and PNDM, which can't, keep those before `step`.
    """
    if not hasattr(fresh, "set_begin_index") or hasattr(fresh, "derivatives"):
        return copy.deepcopy(saved)
    scheduler = copy.deepcopy(fresh)
    scheduler.set_begin_index(step)
    return scheduler


def _walk(num_steps: int, stretch: int, times: int) -> list[int]:
    """0, 1, ..., num_steps - 1, with every `stretch` of them repeated `times` times."""
    starts = range(0, num_steps, stretch)
    return [i for start in starts for _ in range(times) for i in range(start, min(start + stretch, num_steps))]


def _marginals(scheduler: SchedulerMixin) -> list[tuple[float, float]]:
    """
    Factors of z_0 - z* and of eps in the sample that each step starts from, and (1, 0) for the clean end.

    Read off `add_noise`, so that they hold for whatever coordinates a scheduler walks in.
    """
    z_star = scheduler.config.get("z_star", 0.0) if isinstance(scheduler, OUBridgeScheduler) else 0.0
    centre = torch.as_tensor(z_star, dtype=torch.float64).reshape(1, -1, 1)
    zero, one = torch.zeros_like(centre), torch.ones_like(centre)
    factors = []
    for timestep in scheduler.timesteps.cpu().split(1):
        signal = scheduler.add_noise(centre + one, zero, timestep) - centre
        sigma = scheduler.add_noise(centre, one, timestep) - centre
        factors.append((signal[0, 0].item(), sigma[0, 0].item()))
    return [*factors, (1.0, 0.0)]


def to_latents(scheduler: SchedulerMixin, sample: torch.Tensor) -> torch.Tensor:
    """What a scheduler walks in -> latents: z itself with an [`OUBridgeScheduler`], z* + x with a stock scheduler."""
    return sample if isinstance(scheduler, OUBridgeScheduler) else sample + _z_star(scheduler, sample)


def check_count(name: str, value: int, most: int | None = None) -> None:
    """
    Raises:
        ValueError: `value` isn't a whole number, is below 1 or above `most`.
    """
    if not isinstance(value, SupportsIndex) or value < 1 or (most is not None and value > most):
        limits = "of at least 1" if most is None else f"in 1..{most}"
        raise ValueError(f"`{name}` must be a whole number {limits}, got {value!r}.")


def check_scheduler(scheduler: SchedulerMixin) -> None:
    """
    Refuse a stock scheduler that doesn't follow the bridge's betas, or that was swapped in by `from_config` from a
    bridge with another stationary variance than 1.

    Such a scheduler keeps betas, theta and eta in its config without following them. With s = 1 the swap is right as
    it is.

    Raises:
        ValueError: with the call that makes the right scheduler.
    """
    if isinstance(scheduler, OUBridgeScheduler):
        return
    name, config = type(scheduler).__name__, scheduler.config
    if "trained_betas" not in inspect.signature(type(scheduler).__init__).parameters:
        raise ValueError(f"{name} has noise levels of its own and can't follow the bridge's; take another scheduler.")
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
