"""A wrapper that turns any way of stepping into one that completes z_0, given its known part (appendix 7)."""

import math

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..schedulers import OUBridgeScheduler
from .steppers import Stepper


class InpaintingStepper:
    """
    Takes the steps of another stepper. After each, the known part is drawn from the forward process, q(z_t | z_0);
    every `jump_length` steps are taken `jump_n_sample` times (Lugmayr et al. 2022, "RePaint"), with the forward
    process from their end back to their start in between.

    Args:
        stepper ([`Stepper`]): at its start.
        known_latents (`torch.Tensor`): z_0; its values at unknown positions are ignored.
        unknown (`torch.Tensor`, *optional*): bool in the same shape; without it nothing is known.
        jump_length (`int`), jump_n_sample (`int`): see [`inpaint_latents`].
    """

    def __init__(
        self,
        stepper: Stepper,
        known_latents: torch.Tensor,
        unknown: torch.Tensor | None,
        jump_length: int,
        jump_n_sample: int,
    ):
        self.stepper, self.known_latents, self.unknown = stepper, known_latents, unknown
        self.timesteps = stepper.timesteps
        self.stretch, self.jump_n_sample = jump_length * stepper.scheduler.order, jump_n_sample
        self.walk = _walk(len(self.timesteps), self.stretch, jump_n_sample)
        needs_marginals = unknown is not None or jump_n_sample > 1
        self.marginals = _marginals(stepper.scheduler) if needs_marginals else []
        self.level = 0  # the step that the sample is ready for

    def start(self, noise: torch.Tensor) -> torch.Tensor:
        return self._renoise_known(self.stepper.start(noise), 0)

    def step(self, i: int, sample: torch.Tensor) -> torch.Tensor:
        if i < self.level:
            sample = self._jump_back(i, sample)
        elif self.jump_n_sample > 1 and i % self.stretch == 0:
            self.stepper.remember()
        self.level = i + 1
        return self._renoise_known(self.stepper.step(i, sample), i + 1)

    def finish(self, sample: torch.Tensor) -> torch.Tensor:
        """z_0, exactly the known latents where a callback didn't change them."""
        z_0 = self.stepper.finish(sample)
        if self.unknown is None:
            return z_0
        is_known = ~self.unknown & (sample == self.known_latents - self.stepper.shift)
        return torch.where(is_known, self.known_latents, z_0)

    def _renoise_known(self, sample: torch.Tensor, level: int) -> torch.Tensor:
        """`sample` with the noise that step `level` starts from; its known part is drawn from q(z_t | z_0)."""
        if self.unknown is None:
            return sample
        if level == len(self.timesteps):
            return torch.where(self.unknown, sample, self.known_latents - self.stepper.shift)
        signal, sigma = self.marginals[level]
        d = self.known_latents - self.stepper.z_star
        known = self.stepper.center + signal * d + sigma * self.stepper.draw(sample)
        return torch.where(self.unknown, sample, known)

    def _jump_back(self, i: int, sample: torch.Tensor) -> torch.Tensor:
        """From what was reached to what step i starts from, by the forward process q(z_t | z_s)."""
        (signal, sigma), (signal_s, sigma_s) = self.marginals[i], self.marginals[self.level]
        a = signal / signal_s
        std = math.sqrt(max(0.0, sigma**2 - (a * sigma_s) ** 2))
        center = self.stepper.center
        self.stepper.restart(i)
        return self._renoise_known(center + a * (sample - center) + std * self.stepper.draw(sample), i)


def _walk(num_steps: int, stretch: int, times: int) -> list[int]:
    """0, 1, ..., num_steps - 1, with every `stretch` of them repeated `times` times."""
    starts = range(0, num_steps, stretch)
    return [i for start in starts for _ in range(times) for i in range(start, min(start + stretch, num_steps))]


def _marginals(scheduler: SchedulerMixin) -> list[tuple[float, float]]:
    """
    Factors of z_0 - z* and of eps in the sample that each step starts from, and (1, 0) for the clean end.

    Read off `add_noise`, so that they hold for whatever coordinates a scheduler works in.
    """
    z_star = scheduler.config.get("z_star", 0.0) if isinstance(scheduler, OUBridgeScheduler) else 0.0
    center = torch.as_tensor(z_star, dtype=torch.float64).reshape(1, -1, 1)
    zero, one = torch.zeros_like(center), torch.ones_like(center)
    factors = []
    for timestep in scheduler.timesteps.cpu().split(1):
        signal = scheduler.add_noise(center + one, zero, timestep) - center
        sigma = scheduler.add_noise(center, one, timestep) - center
        factors.append((signal[0, 0].item(), sigma[0, 0].item()))
    return [*factors, (1.0, 0.0)]
