"""Sampling and inpainting of latents: two functions, one loop."""

from collections.abc import Callable, Iterable

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from ..models.masks import expand_mask
from ..schedulers.arguments import check_generators, check_shape
from .arguments import check_count, check_finite, check_latents
from .generators import Generators
from .inpainting import InpaintingStepper
from .steppers import Solver, Spacing, Stepper, make_stepper

MAX_REPETITIONS = 1000  # of each stretch of steps: all of them are listed before the first

Callback = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor | None]


@torch.no_grad()
def sample_latents(
    unet: nn.Module,
    scheduler: SchedulerMixin,
    shape: tuple[int, ...],
    num_inference_steps: int,
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    latents: torch.Tensor | None = None,
    class_labels: torch.Tensor | None = None,
    guidance_scale: float = 1.0,
    solver: Solver | None = None,
    timestep_spacing: Spacing | None = None,
    callback: Callback | None = None,
    progress_bar: Callable[[Iterable], Iterable] = iter,
) -> torch.Tensor:
    """
    Algorithm 2: draw z_T from the stationary law and go back to z_0.

    A stock diffusers scheduler works in x = (z - z*) / m_t instead and z = z* + x at the end, see
    `OUBridgeScheduler.to_diffusers`. The timesteps stay on the host, so that the loop never waits for the device.

    Args:
        unet (`nn.Module`): the network, called through [`denoise`].
        scheduler: [`OUBridgeScheduler`] or a stock scheduler made from it.
        shape (`tuple[int, ...]`): (B, d, h, w) or (B, d, N).
        num_inference_steps (`int`): network calls.
        generator (`torch.Generator` or a list with one per sample, *optional*): source of all noise.
        device (`torch.device`, *optional*), dtype (`torch.dtype`, *optional*): of the samples. They default to those
            of `latents`, else of the network's first parameter, else to the CPU and float32.
        latents (`torch.Tensor`, *optional*): standard normal noise of that shape, to start from instead of a draw.
        class_labels (`torch.Tensor`, *optional*), guidance_scale (`float`, *optional*, defaults to 1.0): see
            [`denoise`].
        solver (`str`, *optional*): the sampler of an [`OUBridgeScheduler`]: "dpmsolver++" (the default here) and
            "ddim" without noise, in about 20 steps, or "ancestral" (the paper's Algorithm 2, its `step`; the default
            of [`inpaint_latents`]). A stock scheduler is a solver itself and takes none.
        timestep_spacing (`str`, *optional*): see `OUBridgeScheduler.set_timesteps`; defaults to "logsnr" with
            "dpmsolver++" and "ddim", to the scheduler's own otherwise.
        callback (`Callable`, *optional*): called as callback(step, timestep, latents) after every step; what it
            returns, if anything, replaces the latents. They are what the scheduler works in: [`to_latents`] makes z_t
            of those of a stock scheduler. One that samples itself needs a scheduler of its own, as in diffusers.
        progress_bar (`Callable`, *optional*, defaults to `iter`): wraps the iterable over steps, e.g. `tqdm`. If it
            ends early, so does the chain, and z_t is returned.

    Returns:
        `torch.Tensor`: z_0 of the given shape.

    Raises:
        TypeError: something else than a tensor where one is expected.
        ValueError: the scheduler doesn't fit ([`check_scheduler`]); `latents` of another shape, empty, or with NaN;
            labels, guidance or a generator that don't fit; too few or too many steps; a solver for a stock scheduler,
            which is a solver itself.
    """
    shape = check_shape(shape, fewest=3)
    check_generators(generator, shape[0])
    if latents is None:
        # "meta" are offloaded weights; those of 8 bits are computed with in another type
        kept = (p for p in unet.parameters() if not p.is_meta and p.is_floating_point() and p.element_size() > 1)
        first = next(kept, torch.zeros(0))
        own = getattr(unet, "dtype", first.dtype)
        device, dtype = first.device if device is None else device, own if dtype is None else dtype
    noise = _start_noise(latents, shape, generator, device, dtype)
    stepper = make_stepper(
        unet,
        scheduler,
        noise,
        num_inference_steps,
        generator,
        class_labels=class_labels,
        guidance_scale=guidance_scale,
        solver=solver,
        timestep_spacing=timestep_spacing,
    )
    return _walk_back(stepper, noise, callback, progress_bar)


@torch.no_grad()
def inpaint_latents(
    unet: nn.Module,
    scheduler: SchedulerMixin,
    known_latents: torch.Tensor,
    mask: torch.Tensor,
    num_inference_steps: int,
    generator: Generators = None,
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
    `jump_length` steps are taken `jump_n_sample` times, with the forward process from their end back to their start
    in between. It takes jump_n_sample * num_inference_steps network calls. With nothing known this is
    [`sample_latents`], number for number.

    Args:
        unet (`nn.Module`): see [`sample_latents`] for this and for all arguments that aren't listed here.
        known_latents (`torch.Tensor`): z_0, (B, d, h, w) or (B, d, N); values at unknown positions are ignored.
        mask (`torch.Tensor`): True or 1 where z_0 is unknown, False or 0 where it is known; broadcasts against
            `known_latents`, e.g. (B, 1, h, w) or (N,).
        jump_length (`int`, *optional*, defaults to 10): steps between two jumps back, at least 1.
        jump_n_sample (`int`, *optional*, defaults to 1): how often each stretch of steps is taken; 1 is no
            resampling.
        callback (`Callable`, *optional*): as in [`sample_latents`]; a step that is taken again is reported again.

    Returns:
        `torch.Tensor`: z_0, exactly `known_latents` where they are known.

    Raises:
        ValueError: a mask that is empty, has other values than 0 and 1 or doesn't broadcast; numbers out of range;
            and what [`sample_latents`] raises.
    """
    check_count("jump_length", jump_length)
    check_count("jump_n_sample", jump_n_sample, MAX_REPETITIONS)
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"`mask` must be a torch.Tensor, got {type(mask).__name__}.")
    check_latents("known_latents", known_latents, finite=False)
    unknown = expand_mask(mask.to(known_latents.device), known_latents.shape, "latents")
    check_finite("known_latents", known_latents.masked_fill(unknown, 0.0))
    check_generators(generator, len(known_latents))
    noise = _start_noise(latents, known_latents.shape, generator, known_latents.device, known_latents.dtype)
    stepper = make_stepper(
        unet,
        scheduler,
        noise,
        num_inference_steps,
        generator,
        class_labels=class_labels,
        guidance_scale=guidance_scale,
        solver=solver,
        timestep_spacing=timestep_spacing,
        inpainting=True,
    )
    inpainting = InpaintingStepper(
        stepper, known_latents, None if bool(unknown.all()) else unknown, jump_length, jump_n_sample
    )
    return _walk_back(inpainting, noise, callback, progress_bar)


def _walk_back(
    stepper: Stepper | InpaintingStepper,
    noise: torch.Tensor,
    callback: Callback | None,
    progress_bar: Callable[[Iterable], Iterable],
) -> torch.Tensor:
    """Algorithm 2, whatever the way of stepping."""
    sample = stepper.start(noise)
    for i in progress_bar(stepper.walk):
        sample = stepper.step(i, sample)
        if callback is not None:
            sample = _replace(sample, callback(i, stepper.timesteps[i], sample))
    return stepper.finish(sample)


def _replace(sample: torch.Tensor, replaced: torch.Tensor | None) -> torch.Tensor:
    """What a callback returned, as the samples are."""
    if replaced is None:
        return sample
    if not isinstance(replaced, torch.Tensor):
        raise TypeError(
            f"A callback must return the latents as a torch.Tensor, or None to leave them, got "
            f"{type(replaced).__name__}."
        )
    if replaced.shape != sample.shape:
        raise ValueError(
            f"A callback returned latents of shape {tuple(replaced.shape)}, expected {tuple(sample.shape)}."
        )
    return replaced.to(sample)


def _start_noise(
    latents: torch.Tensor | None,
    shape: tuple[int, ...],
    generator: Generators,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> torch.Tensor:
    """The given standard normal noise, as it is where device and dtype are None, or a draw of it."""
    if latents is None:
        return randn_tensor(tuple(shape), generator=generator, device=torch.device(device or "cpu"), dtype=dtype)
    check_latents("latents", latents, shape)
    return latents.to(device=device, dtype=dtype)
