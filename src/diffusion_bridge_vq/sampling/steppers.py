"""
The ways from noise to z_0, one small class each. To add one, write a class here and put its name into
`Solver` and `SOLVERS`.
"""

import copy
import inspect
from collections.abc import Callable
from fractions import Fraction
from typing import Any, ClassVar, Literal

import torch
from diffusers import DDIMParallelScheduler, DDIMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from ..models.denoiser import ConditionedUNet, call_network
from ..schedulers import OUBridgeScheduler
from ..schedulers.few_steps import find_few_steps, is_student
from .arguments import check_count, check_guidance, check_labels, check_scheduler, check_solver, check_steps
from .generators import Generators
from .solver_coefficients import solver_coefficients

Solver = Literal["ancestral", "dpmsolver++", "ddim", "consistency"]
Spacing = Literal["linspace", "leading", "trailing", "logsnr"]
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # x_t of unit variance, timestep -> network output


class Stepper:
    """
    One way from noise to z_0, in the coordinates of its scheduler, for one call.

    Args:
        scheduler: its timesteps are set already.
        predict (`Callable`): the network on x_t of unit variance.
        noise (`torch.Tensor`): has the shape, device and dtype of the samples.
        generator (`torch.Generator` or a list with one per sample, *optional*): source of all noise.

    Attributes:
        timesteps (`torch.Tensor`): one per step, on the host, so that no step waits for the device.
        walk (`Sequence[int]`): the steps in the order in which they are taken.
        center: mean of the stationary law in these coordinates, a number or (1, d, 1, ...).
        shift: z minus the sample in these coordinates, alike.
    """

    spacing: ClassVar[Spacing | None] = None
    """Where steps lie if the caller doesn't say; None is the scheduler's own."""
    few_steps: ClassVar[bool] = False
    """Whether few steps lie at the config's `few_step_timesteps` then, where there are any."""

    def __init__(self, scheduler: SchedulerMixin, predict: Predict, noise: torch.Tensor, generator: Generators):
        self.scheduler, self.generator, self._predict = scheduler, generator, predict
        self.timesteps = scheduler.timesteps.cpu()
        self.walk: Any = range(len(self.timesteps))
        self._on_device = self.timesteps.to(noise.device)
        self.z_star = read_z_star(scheduler, noise)
        self.center, self.shift = self.z_star, 0.0 * self.z_star

    def start(self, noise: torch.Tensor) -> torch.Tensor:
        """Standard normal noise -> a draw from the stationary law, first line of Algorithm 2."""
        return noise * self.scheduler.init_noise_sigma + self.center

    def step(self, i: int, sample: torch.Tensor) -> torch.Tensor:
        """The sample that step i starts from -> the sample that step i + 1 starts from."""
        raise NotImplementedError

    def remember(self) -> None:
        """Keep the state before the step that comes next; a jump may lead back to it."""

    def restart(self, i: int) -> None:
        """Go on from step i, on another path: forget what is kept of the steps before a jump back."""

    def finish(self, sample: torch.Tensor) -> torch.Tensor:
        """What the last step gave -> z_0."""
        return to_latents(self.scheduler, sample)

    def predict(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """The network's output at step i."""
        return self._predict(x, self._on_device[i])

    def draw(self, sample: torch.Tensor) -> torch.Tensor:
        """Standard normal noise like `sample`."""
        return randn_tensor(sample.shape, generator=self.generator, device=sample.device, dtype=sample.dtype)


class Ancestral(Stepper):
    """Algorithm 2: the bridge between z_t and the predicted z_0, with noise (`OUBridgeScheduler.step`)."""

    def step(self, i: int, sample: torch.Tensor) -> torch.Tensor:
        t = self.timesteps[i]
        output = self.predict(i, self.scheduler.scale_model_input(sample, t))
        return self.scheduler.step(output, t, sample, generator=self.generator).prev_sample


class DDIM(Stepper):
    """Song et al. 2021 with eta = 0: no noise; all coefficients are computed before the first step."""

    spacing = "logsnr"
    second_order: ClassVar[bool] = False

    def __init__(self, *args: Any):
        super().__init__(*args)
        config, s = self.scheduler.config, self.scheduler.stationary_std
        ratio = s**2 * self.scheduler.signal_to_noise(self.timesteps)  # abar / (1 - abar)
        abar = torch.cat([ratio / (1 + ratio), ratio.new_ones(1)])
        self.coefficients = solver_coefficients(abar, s, config.prediction_type, self.second_order)
        self.predicts_z_0 = config.prediction_type == "sample"
        self.half_width = config.clip_sample_range if config.clip_sample else None
        self._earlier: torch.Tensor | None = None  # z_0 - z* that the step before predicted

    def step(self, i: int, sample: torch.Tensor) -> torch.Tensor:
        c = self.coefficients[i]
        d = sample.to(torch.promote_types(sample.dtype, torch.float32)) - self.z_star
        output = self.predict(i, (d / c.scale).to(sample.dtype))
        predicted = output - self.z_star if self.predicts_z_0 else output
        original = torch.add(c.from_sample * d, predicted, alpha=c.from_output)
        if self.half_width is not None:
            original = (original + self.z_star).clamp(-self.half_width, self.half_width) - self.z_star
        target = original
        if self._earlier is not None and c.extrapolation:
            target = torch.lerp(self._earlier, original, 1 + c.extrapolation)
        self._earlier = original
        return torch.add(c.sample * d, target, alpha=c.original).add(self.z_star).to(sample.dtype)

    def restart(self, i: int) -> None:
        self._earlier = None


class DPMSolverPlusPlus(DDIM):
    """DPM-Solver++(2M) (Lu et al. 2022): of second order, by extrapolating z_0 from the step before."""

    second_order = True
    few_steps = True


class Consistency(Stepper):
    """
    Multistep consistency sampling (Song et al. 2023, algorithm 1), of a student: z_0 from one call of the network,
    then z_s ~ q(z_s | z_0) at the next noise level, and again.
    """

    few_steps = True

    def step(self, i: int, sample: torch.Tensor) -> torch.Tensor:
        t = self.timesteps[i]
        output = self.predict(i, self.scheduler.scale_model_input(sample, t))
        z_0 = self.scheduler.predict_original_sample(output, t, sample)
        if i + 1 == len(self.timesteps):
            return z_0
        return self.scheduler.add_noise(z_0, self.draw(z_0), self.timesteps[i + 1])


class StockStepper(Stepper):
    """
    A scheduler of diffusers, which works in x = z - z*, around 0, or in x / sqrt(abar'). Its own state is that of the
    chain, as in diffusers, so that a callback sees where it is ([`to_latents`]).
    """

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.center, self.shift = 0.0 * self.z_star, self.z_star
        # networks that predict z_0 say z* + x_0
        self._offset = self.z_star if self.scheduler.config.prediction_type == "sample" else 0.0
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        self._options = {"generator": self.generator} if takes_generator else {}
        self._next = [*self.timesteps[1:].tolist(), -1]
        self._fresh: dict[str, Any] = {}  # states
        self._saved: dict[str, Any] = {}

    def step(self, i: int, sample: torch.Tensor) -> torch.Tensor:
        t = self.timesteps[i]
        output = self.predict(i, self.scheduler.scale_model_input(sample, t)) - self._offset
        scheduler = self.scheduler
        if isinstance(scheduler, (DDIMScheduler, DDIMParallelScheduler)):
            # their step ends at t - T // num_inference_steps, which the next timestep must be also where n doesn't
            # divide T
            scheduler = copy.copy(scheduler)
            scheduler.num_inference_steps = Fraction(scheduler.config.num_train_timesteps, int(t) - self._next[i])
        return scheduler.step(output, t, sample, **self._options).prev_sample

    def remember(self) -> None:
        self._saved = copy.deepcopy(vars(self.scheduler))
        self._fresh = self._fresh or self._saved

    def restart(self, i: int) -> None:
        """
        Solvers that extrapolate from earlier steps begin with first order again: those steps are of the chain before
        the jump, and what they would extrapolate is the jump's noise. LMS and PNDM, which can't, keep those before
        step i.
        """
        goes_on = not hasattr(self.scheduler, "set_begin_index") or hasattr(self.scheduler, "derivatives")
        vars(self.scheduler).update(copy.deepcopy(self._saved if goes_on else self._fresh))
        if not goes_on:
            self.scheduler.set_begin_index(i)


SOLVERS: dict[str, type[Stepper]] = {
    "ancestral": Ancestral,
    "dpmsolver++": DPMSolverPlusPlus,
    "ddim": DDIM,
    "consistency": Consistency,
}


def default_solver(scheduler: SchedulerMixin, inpainting: bool = False) -> Solver | None:
    """
    What `solver=None` means: the paper's Algorithm 2 to complete images, whose noise lets what is drawn agree with
    what is known, and DPM-Solver++ to generate; consistency sampling for a student; None for a stock scheduler, which
    is a solver itself.
    """
    if not isinstance(scheduler, OUBridgeScheduler):
        return None
    if is_student(scheduler):
        return "consistency"
    return "ancestral" if inpainting else "dpmsolver++"


def make_stepper(
    unet: nn.Module,
    scheduler: SchedulerMixin,
    noise: torch.Tensor,
    num_inference_steps: int,
    generator: Generators = None,
    class_labels: torch.Tensor | None = None,
    guidance_scale: float = 1.0,
    solver: Solver | None = None,
    timestep_spacing: Spacing | None = None,
    inpainting: bool = False,
) -> Stepper:
    """
    Place the steps and choose the class that takes them; the arguments are those of [`sample_latents`].

    Raises:
        ValueError: an unknown solver, one for a stock scheduler, a scheduler that doesn't fit, too few or too many
            steps, or a student that is to complete images.
    """
    check_scheduler(scheduler)
    check_count("num_inference_steps", num_inference_steps, scheduler.config.num_train_timesteps)
    check_labels(class_labels, len(noise), unet)
    if inpainting and is_student(scheduler):
        raise ValueError(
            "This network was distilled to draw in few steps, which hardly see the known part: complete images with "
            "its teacher."
        )
    guidance_scale = check_guidance(scheduler, guidance_scale)
    if guidance_scale != 1.0 and class_labels is None and not isinstance(unet, ConditionedUNet):
        raise ValueError(f"`guidance_scale` {guidance_scale} needs `class_labels`; without classes leave it at 1.")
    if isinstance(scheduler, OUBridgeScheduler):
        name = default_solver(scheduler, inpainting) if solver is None else solver
        if not isinstance(name, str) or name not in SOLVERS:
            *others, last = SOLVERS
            raise ValueError(f"`solver` must be {', '.join(others)} or {last}, got {name!r}.")
        check_solver(scheduler, name, timestep_spacing)
        stepper = SOLVERS[name]
        spacing = stepper.spacing if timestep_spacing is None else timestep_spacing
        chosen = None
        if stepper.few_steps and timestep_spacing is None:
            chosen = find_few_steps(scheduler, num_inference_steps)
        if chosen is not None:
            scheduler.set_timesteps(timesteps=chosen)
        else:
            scheduler.set_timesteps(num_inference_steps, timestep_spacing=spacing)
            check_steps(scheduler, num_inference_steps, spacing)
    elif solver is not None or timestep_spacing is not None:
        raise ValueError(
            f"`solver` and `timestep_spacing` are for an OUBridgeScheduler; {type(scheduler).__name__} is a solver "
            "with a spacing of its own: leave both out."
        )
    elif is_student(scheduler):
        stepper = StockStepper
        scheduler.set_timesteps(timesteps=find_few_steps(scheduler, num_inference_steps))
    else:
        stepper = StockStepper
        scheduler.set_timesteps(num_inference_steps)
        check_steps(scheduler, num_inference_steps)

    def predict(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return call_network(unet, x, timestep, class_labels, guidance_scale)

    return stepper(scheduler, predict, noise, generator)


def to_latents(scheduler: SchedulerMixin, sample: torch.Tensor) -> torch.Tensor:
    """
    The sample that a scheduler's last `step` gave -> latents: z_t itself with an [`OUBridgeScheduler`]; z* + x_t with
    a stock scheduler, x_t being what the network sees next. Euler, Heun, LMS and KDPM2 work in x_0 + sigma eps.
    """
    if isinstance(scheduler, OUBridgeScheduler):
        return sample
    x = copy.copy(scheduler).scale_model_input(sample, scheduler.timesteps[0])  # which counts before the first step
    return x + read_z_star(scheduler, sample)


def read_z_star(scheduler: SchedulerMixin, sample: torch.Tensor) -> torch.Tensor | float:
    """
    z* from the config of a bridge or of a stock scheduler made from one: a number or (1, d, 1, ...).

    Raises:
        ValueError: another number of channels than the latents'.
    """
    z_star: Any = scheduler.config.get("z_star", 0.0)
    if not isinstance(z_star, (list, tuple)):
        return float(z_star)
    if len(z_star) != sample.shape[1]:
        raise ValueError(f"`z_star` has {len(z_star)} values, but the latents have {sample.shape[1]} channels.")
    return sample.new_tensor(z_star).reshape(1, -1, *[1] * (sample.ndim - 2))
