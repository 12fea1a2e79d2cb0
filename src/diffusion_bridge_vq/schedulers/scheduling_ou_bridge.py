"""The Ornstein-Uhlenbeck bridge: forward noising, exact bridge posterior, reverse step. It never sees a network."""

import math
from typing import Any, Literal

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from .arguments import check_generators, check_order, check_samples, check_shape, check_single
from .bridge_settings import check_settings
from .coefficients import BridgeCoefficients, widen
from .few_steps import read_few_step_timesteps
from .noise_schedules import make_alpha_bar, make_betas
from .scheduler_output import OUBridgeSchedulerOutput
from .stock_schedulers import SUPPORTED, make_stock_scheduler
from .timestep_spacing import choose_timesteps


class OUBridgeScheduler(BridgeCoefficients, SchedulerMixin, ConfigMixin):
    r"""
    The Ornstein-Uhlenbeck process dZ = -theta (Z - z*) dt + eta dW (eq. 3 of Cohen et al., ICML 2022) and its bridge.

    With the defaults (theta = 1, eta = sqrt(2), z* = 0) every method equals DDPM (Ho et al. 2020).

    Time. The paper counts t = 0..T with 0 the clean end. A diffusers timestep is i = t - 1, so i runs over 0..T-1,
    `alphas_cumprod[i]` is the paper's alpha-bar at t = i + 1, and i = -1 is the clean end (alpha-bar = 1).

    | paper | here |
    |---|---|
    | theta, eta, z* | `config.theta`, `config.eta`, `config.z_star` |
    | s = eta / sqrt(2 theta), the stationary standard deviation | `stationary_std` |
    | beta_t = 1 - exp(-2 theta delta_t) | `betas[t - 1]`; the schedule fixes delta_t = -log(1 - beta_t) / (2 theta) |
    | alpha_t, alpha-bar_t | `alphas[t - 1]`, `alphas_cumprod[t - 1]` |
    | z_e^0, z_e^t, eps | `original_samples`, `sample`, `noise` |

    Samples may have any number of trailing dimensions: (B, d, h, w) for images, (B, d, N) for sequences. Coefficients
    are float64 inside; the arithmetic on samples is done in float32 at least and comes back in the sample's dtype.

    The unit-variance coordinates x_t = (z_t - z*) / m_t, m_t^2 = abar_t + s^2 (1 - abar_t), are what the network sees
    (`scale_model_input`). In them the process is variance preserving with
    abar'_t = abar_t / (abar_t + s^2 (1 - abar_t)): eta shifts the log signal-to-noise ratio by -2 log s.
    `v_prediction` is defined in these coordinates, and `to_diffusers` gives a stock scheduler that samples x.

    Args:
        num_train_timesteps (`int`, *optional*, defaults to 1000): T, the number of noise levels.
        beta_start (`float`, *optional*, defaults to 0.0001), beta_end (`float`, *optional*, defaults to 0.02): ends of
            the linear and scaled_linear schedules, in [0, 1].
        beta_schedule (`str`, *optional*, defaults to `"linear"`): "linear", "scaled_linear" or "squaredcos_cap_v2".
        trained_betas (`list[float]`, *optional*): the T betas themselves, in [0, 1], instead of a schedule. Of all
            schedules, the first must be above 0, and all but the last below 1. A last one of 1 leaves noise alone
            (zero terminal SNR), from which a network that predicts the noise can't find z_0.
        theta (`float`, *optional*, defaults to 1.0): pull towards z*, > 0.
        eta (`float`, *optional*, defaults to sqrt(2)): strength of the noise, > 0.
        z_star (`float` or `list[float]`, *optional*, defaults to 0.0): mean of the stationary law, or one per channel.
        prediction_type (`str`, *optional*, defaults to `"epsilon"`): what the network returns: "epsilon", "sample"
            (z_0) or "v_prediction".
        variance_type (`str`, *optional*, defaults to `"fixed_small"`): variance of the reverse step: "fixed_small"
            (the bridge's), "fixed_large" (beta_t s^2) or "zero" (Algorithm 2 as printed adds no noise).
        clip_sample (`bool`, *optional*, defaults to `False`): clip the predicted z_0 to +-`clip_sample_range`.
        clip_sample_range (`float`, *optional*, defaults to 1.0): half width of the clipping interval, > 0.
        timestep_spacing (`str`, *optional*, defaults to `"leading"`): "linspace", "leading" or "trailing", as in
            `DDPMScheduler`.
        steps_offset (`int`, *optional*, defaults to 0): added to the timesteps of the "leading" spacing.
        lambda_max_clipped (`float`, *optional*, defaults to 2.5): half log(abar' / (1 - abar')) where steps even in it
            end at the latest, see `set_timesteps`. At 2.5 the noise is 0.08 of the latents' standard deviation, which
            moves no code; at lower noise a network's errors add up.
        few_step_timesteps (`dict[str, list[int]]`, *optional*): timesteps fitted to the network, by their number
            ("4"), which DPM-Solver++ takes where no spacing is asked for.
        distilled_guidance_scale (`float`, *optional*): of a student (`dbvq distill`), whose network finds z_0 in one
            call, with this guidance; it takes `few_step_timesteps` alone. None for other networks.

    Raises:
        ValueError: a setting that isn't a number, out of its range or unknown; z* that isn't finite; invalid betas.
    """

    _compatibles = sorted(SUPPORTED)
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear",
        trained_betas: list[float] | None = None,
        theta: float = 1.0,
        eta: float = math.sqrt(2.0),
        z_star: float | list[float] = 0.0,
        prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon",
        variance_type: Literal["fixed_small", "fixed_large", "zero"] = "fixed_small",
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        timestep_spacing: Literal["linspace", "leading", "trailing"] = "leading",
        steps_offset: int = 0,
        lambda_max_clipped: float = 2.5,
        few_step_timesteps: dict[str, list[int]] | None = None,
        distilled_guidance_scale: float | None = None,
    ):
        check_settings(dict(self.config))
        betas = make_betas(num_train_timesteps, beta_schedule, beta_start, beta_end, trained_betas)
        abar = make_alpha_bar(betas, prediction_type)

        # JSON and numpy inputs (tuples, arrays) are kept as lists, so that the config can be saved. No value counts
        # as a default: `from_config` of another class drops those, and stock DDIM would then clip latents to [-1, 1].
        self.register_to_config(
            trained_betas=None if trained_betas is None else betas.tolist(),
            z_star=np.asarray(z_star, dtype=np.float64).tolist(),
            few_step_timesteps=read_few_step_timesteps(dict(self.config)),
            _use_default_values=[],
        )
        self.betas = torch.from_numpy(betas.astype(np.float32))
        self.alphas = torch.from_numpy((1 - betas).astype(np.float32))
        # (T + 1,) float64: alpha-bar at paper time t = 0..T, so that timestep i is found at i + 1 and -1 at 0
        self._abar = torch.from_numpy(abar)
        self.alphas_cumprod = self._abar[1:].float()
        self._on_device: dict[tuple[str, torch.device], torch.Tensor] = {}

        self.num_inference_steps: int | None = None
        self.custom_timesteps = False
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)

    # ------------------------------------------------------------------------------------------------ the process

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise: s. The mean is z*, see [`sample_prior`]."""
        return self.stationary_std

    def sample_prior(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | list[torch.Generator] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Draw z_T ~ N(z*, s^2 I) (first line of Algorithm 2), of the given shape (B, d, ...)."""
        shape = check_shape(shape)
        check_generators(generator, shape[0])
        noise = randn_tensor(shape, generator=generator, device=torch.device(device or "cpu"), dtype=dtype)
        return (self._z_star(noise) + self.stationary_std * widen(noise)).to(noise.dtype)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | int
    ) -> torch.Tensor:
        """
        Forward marginal: z_t = z* + sqrt(abar_t) (z_0 - z*) + s sqrt(1 - abar_t) eps (h_e^t in section 3.2).

        Args:
            original_samples (`torch.Tensor`): z_0, (B, d, ...).
            noise (`torch.Tensor`): eps, standard normal, same shape.
            timesteps (`torch.Tensor` or `int`): one timestep per sample (B,), or one for all; -1 returns z_0.

        Raises:
            ValueError: shapes differ, a timestep outside the schedule, or as many as fit neither.
        """
        check_samples(original_samples=original_samples, noise=noise)
        abar = self._alpha_bar(timesteps, original_samples)
        z, z_star = widen(original_samples), self._z_star(original_samples)
        signal, sigma = abar.sqrt().to(z.dtype), (self.stationary_std * (1 - abar).sqrt()).to(z.dtype)
        return (z_star + signal * (z - z_star) + sigma * noise).to(original_samples.dtype)

    def bridge_posterior(
        self,
        original_sample: torch.Tensor,
        sample: torch.Tensor,
        timestep: torch.Tensor | int,
        prev_timestep: torch.Tensor | int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The bridge: law of z_s' given z_0 and z_t for any s' < t (mu-tilde and sigma-tilde of section 3.2, which prints
        neighbors only). With a = abar_t / abar_s',

            mean = z* + sqrt(abar_s') (1 - a) / (1 - abar_t) (z_0 - z*)
                      + sqrt(a) (1 - abar_s') / (1 - abar_t) (z_t - z*)
            var  = s^2 (1 - abar_s') (1 - a) / (1 - abar_t)

        Printed is z_t - (1 - sqrt(alpha_t)) z* in the second term, which is the same for neighbors.

        Args:
            original_sample (`torch.Tensor`): z_0, (B, d, ...).
            sample (`torch.Tensor`): z_t, same shape.
            timestep (`int` or `torch.Tensor`): i of z_t, one for all or one per sample.
            prev_timestep (`int` or `torch.Tensor`): i of z_s', smaller; -1 is the clean end, where the mean is z_0.

        Returns:
            `(mean, std)`: mean in the shape of `sample`; std broadcasts against it.

        Raises:
            ValueError: shapes differ, a timestep outside the schedule, or a `prev_timestep` that isn't smaller.
        """
        check_samples(sample=sample, original_sample=original_sample)
        self._check_timesteps(timestep, lowest=0)
        self._check_timesteps(prev_timestep, lowest=-1)
        check_order(timestep, prev_timestep)
        c_original, c_sample, std = self._bridge_coefficients(timestep, prev_timestep, sample)
        z_star, z_t, z_0 = self._z_star(sample), widen(sample), widen(original_sample)
        mean = z_star + c_original.to(z_t.dtype) * (z_0 - z_star) + c_sample.to(z_t.dtype) * (z_t - z_star)
        return mean.to(sample.dtype), std.to(sample.dtype)

    def elbo_weight(self, timesteps: torch.Tensor) -> torch.Tensor:
        """
        Weight of the network's squared error in -L_t (eq. 4), by `prediction_type`. That of eps is printed:
        beta_t / (2 alpha_t (1 - abar_{t-1})); s and eta cancel. That of z_0 is SNR times as large,

            abar_{t-1} beta_t / (2 s^2 (1 - abar_{t-1}) (1 - abar_t)),

        and that of v this over 1 + SNR, see [`prior_loss`]; both are finite at abar_T = 0.

        At t = 1 the printed weight is infinite; the exact is -log p(z_0 | z_1). With the variance beta_1 s^2 chosen
        for that Gaussian the weight of eps is 1 / (2 alpha_1), that of z_0 1 / (2 s^2 beta_1) (the log-normalizer
        doesn't depend on the network and is left out).

        Args:
            timesteps (`torch.Tensor`): any shape, values 0..T-1.

        Returns:
            `torch.Tensor`: float64 (float32 where the device has no float64), the shape of `timesteps`.
        """
        self._check_timesteps(timesteps, lowest=0, tensor=True)
        t, abar = timesteps.long(), self._table("abar", self._abar, timesteps.device)
        abar_t, abar_prev = abar[t + 1], abar[t]  # long: uint8 would be a mask, and int8 wraps
        # at the first timestep 1 - abar_{t-1} = 0 is replaced by beta_1 = 1 - abar_1, see above
        before = torch.where(timesteps == 0, 1 - abar_t, 1 - abar_prev)
        if self.config.prediction_type == "epsilon":
            alpha = abar_t / abar_prev
            return (1 - alpha) / (2 * alpha * before)
        weight = (abar_prev - abar_t) / (2 * self.stationary_std**2 * before * (1 - abar_t))
        return weight if self.config.prediction_type == "sample" else weight / (1 + self.signal_to_noise(timesteps))

    def terminal_kl(self, original_samples: torch.Tensor) -> torch.Tensor:
        """
        -L_T of lemma 3.1: KL(q(z_T | z_0) || N(z*, s^2)) of every coordinate, in nats; z_0 (B, d, ...) -> same shape.

        It penalizes latents that are large against s; its expectation is what the start from noise at T costs.
        """
        check_samples(original_samples=original_samples)
        abar = self._abar[-1].item()
        squared = (widen(original_samples) - self._z_star(original_samples)).square() / self.stationary_std**2
        return 0.5 * (abar * (squared - 1) - math.log1p(-abar))

    # ------------------------------------------------------------------------- what the network sees and returns

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | int) -> torch.Tensor:
        """x_t = (z_t - z*) / m_t: unit variance at every t if the latents have unit variance around z*."""
        check_samples(sample=sample)
        m = self._scale(timestep, sample)
        return ((widen(sample) - self._z_star(sample)) / m).to(sample.dtype)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | int) -> torch.Tensor:
        """
        v = sqrt(abar') eps - sqrt(1 - abar') (z_0 - z*), in the coordinates x (Salimans and Ho 2022); `sample` is z_0.
        """
        check_samples(sample=sample, noise=noise)
        signal, sigma = self._vp_coefficients(timesteps, sample)
        return (signal * noise - sigma * (widen(sample) - self._z_star(sample))).to(sample.dtype)

    def predict_original_sample(
        self, model_output: torch.Tensor, timestep: torch.Tensor | int, sample: torch.Tensor
    ) -> torch.Tensor:
        """
        z_0 from what the network returned at (`sample` = z_t, `timestep`), by `prediction_type`; clipped if asked.
        """
        check_samples(sample=sample, model_output=model_output)
        z_t, z_star, output = widen(sample), self._z_star(sample), widen(model_output)
        if self.config.prediction_type == "sample":
            z_0 = output
        else:
            signal, sigma = self._vp_coefficients(timestep, sample)
            x_t = (z_t - z_star) / self._scale(timestep, sample)
            if self.config.prediction_type == "epsilon":
                x_0 = (x_t - sigma * output) / signal
            else:
                x_0 = signal * x_t - sigma * output
            z_0 = z_star + x_0
        if self.config.clip_sample:
            z_0 = z_0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        return z_0.to(sample.dtype)

    # -------------------------------------------------------------------------------------------------- sampling

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
        timestep_spacing: Literal["linspace", "leading", "trailing", "logsnr"] | None = None,
    ) -> None:
        """
        Choose the timesteps of the reverse chain; any subset works, since the bridge holds for any skip.

        Args:
            num_inference_steps (`int`, *optional*): 1..T steps, placed by `timestep_spacing`.
            device (`torch.device`, *optional*): where `timesteps` is put. Leave it on the CPU for a loop that never
                waits for the device.
            timesteps (`list[int]`, *optional*): the timesteps themselves, descending, instead of their number.
            timestep_spacing (`str`, *optional*): instead of the config's; "logsnr" places the steps evenly in
                log(abar' / (1 - abar')), which few-step solvers want (Lu et al. 2022). It leaves out levels that are
                noise alone, and those above the config's `lambda_max_clipped`, whose noise no longer moves a code.

        Raises:
            ValueError: both or none given, a number outside 1..T, timesteps not descending or (with `steps_offset`,
                too) outside 0..T-1, an unknown spacing.
        """
        spacing = self.config.timestep_spacing if timestep_spacing is None else timestep_spacing
        log_snr = 0.5 * self.signal_to_noise(torch.arange(len(self))).log().numpy()
        chosen = choose_timesteps(num_inference_steps, timesteps, spacing, log_snr, self.config)
        self.custom_timesteps = timesteps is not None
        self.num_inference_steps = len(chosen)
        self.timesteps = torch.from_numpy(chosen.copy()).to(device)

    def previous_timestep(self, timestep: torch.Tensor | int) -> int:
        """The timestep that follows `timestep` in the reverse chain; -1 (the clean end) after the last."""
        check_single(timestep)
        self._check_timesteps(timestep, lowest=0)
        t = int(timestep)
        if self.num_inference_steps is None:
            return t - 1
        later = self.timesteps[self.timesteps < t]
        return int(later[0]) if len(later) else -1

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | int,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> OUBridgeSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """
        One reverse step, by the bridge between the predicted z_0 and z_t.

        For neighboring timesteps and a predicted noise the mean is
        mu_theta = z* + (z_t - z* - s beta_t / sqrt(1 - abar_t) eps_theta) / sqrt(alpha_t).
        The paper prints 1 / sqrt(abar_t) in front (section 3.2) and 1 - alpha_t under the root (Algorithm 2); both
        contradict its own bridge. Algorithm 2 also adds no noise: that is `variance_type="zero"`.

        Args:
            model_output (`torch.Tensor`): what the network returned for `scale_model_input(sample, timestep)`.
            timestep (`int` or `torch.Tensor`): i of `sample`.
            sample (`torch.Tensor`): z_t, (B, d, ...).
            generator (`torch.Generator` or a list with one per sample, *optional*): source of the noise.
            return_dict (`bool`, *optional*, defaults to `True`): return an [`OUBridgeSchedulerOutput`] or the tuple of
                its fields.

        Raises:
            ValueError: a timestep outside the schedule, or shapes that differ.
        """
        check_samples(sample=sample, model_output=model_output)
        check_generators(generator, len(sample))
        check_single(timestep)
        self._check_timesteps(timestep, lowest=0)
        t = int(timestep)
        prev_t = self.previous_timestep(t)
        pred_original_sample = self.predict_original_sample(model_output, t, widen(sample))
        prev_sample, std = self.bridge_posterior(pred_original_sample, widen(sample), t, prev_t)
        if prev_t >= 0 and self.config.variance_type != "zero":
            if self.config.variance_type == "fixed_large":
                std = self.stationary_std * (1 - self._abar[t + 1] / self._abar[prev_t + 1]).sqrt()
            noise = randn_tensor(
                model_output.shape, generator=generator, device=model_output.device, dtype=model_output.dtype
            )
            prev_sample = prev_sample + std * noise
        prev_sample, pred_original_sample = prev_sample.to(sample.dtype), pred_original_sample.to(sample.dtype)
        if not return_dict:
            return prev_sample, pred_original_sample
        return OUBridgeSchedulerOutput(prev_sample=prev_sample, pred_original_sample=pred_original_sample)

    def to_diffusers(self, scheduler_class: type[SchedulerMixin], **kwargs: Any) -> SchedulerMixin:
        """
        A stock variance-preserving scheduler that samples x = (z - z*) / m with this process's network.

        Its `trained_betas` are those of abar' (see the class docstring); a last one of 1, from which most solvers make
        NaN, is 1 - 2^-24. Its config also says theta = 1, eta = sqrt(2) and z*: x + z* is the bridge with those
        numbers. `sample_latents` and the pipelines read z* there and return z. The variance of stochastic steps is the
        bridge's ("fixed_small"), whatever this scheduler's `variance_type`.

        Args:
            scheduler_class (`type`): `DDIMScheduler`, `DPMSolverMultistepScheduler`, `UniPCMultistepScheduler`, ...:
                those of `_compatibles`, of which some need a network that predicts the noise.
            **kwargs: further arguments of that class, e.g. `algorithm_type="sde-dpmsolver++"`. `timestep_spacing`
                defaults to the config's, or to one with which the class is right.

        Raises:
            TypeError: not the class of a scheduler, or an argument that it doesn't take.
            ValueError: a class that samples another law with this network, with the reason; or options with which it
                does.
        """
        abar = self._abar / (self._abar + self.stationary_std**2 * (1 - self._abar))  # abar'
        betas = (1 - abar[1:] / abar[:-1]).clamp(max=1 - 2**-24)
        # "fixed_small" is the variance that every class knows, and its config leads back to a bridge
        settings = {k: v for k, v in self.config.items() if not k.startswith("_")} | {"variance_type": "fixed_small"}
        settings |= {"trained_betas": betas.tolist(), "theta": 1.0, "eta": math.sqrt(2.0)}
        return make_stock_scheduler(scheduler_class, settings, kwargs)

    def __len__(self) -> int:
        return self.config.num_train_timesteps
