"""
Every scheduler of diffusers with the exact denoiser of Gaussian data: those that `to_diffusers` makes sample the right
law, the others are refused with a reason.
"""

import inspect
import itertools

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, PNDMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from diffusion_bridge_vq import OUBridgeScheduler
from diffusion_bridge_vq.sampling import sample_latents

MEAN, STD = 0.6, 0.4
NAMES = sorted(name for name in dir(diffusers) if name.endswith("Scheduler"))
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
EPS_AND_V = {"DPMSolverSDEScheduler", "EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"}
# what each class is right for; all others are refused
RIGHT = {name: {"epsilon", "v_prediction"} for name in EPS_AND_V | {"KDPM2DiscreteScheduler"}}
RIGHT |= {
    name: set(PREDICTIONS)
    for name in (
        *("DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler"),
        *("DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
        *("EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler"),
        *("SASolverScheduler", "UniPCMultistepScheduler"),
    )
}
RIGHT["PNDMScheduler"] = {"epsilon"}


class GaussianDenoiser(torch.nn.Module):
    """The exact network for data N(MEAN, STD^2), also between two timesteps, where second-order solvers ask."""

    def __init__(self, bridge: OUBridgeScheduler):
        super().__init__()
        self.log_sigma = -0.5 * bridge.signal_to_noise(torch.arange(len(bridge))).log()
        self.prediction_type, self.z_star = bridge.config.prediction_type, bridge.config.z_star

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        t = torch.as_tensor(t, dtype=torch.float64).clamp(0, len(self.log_sigma) - 1)
        low = int(t)
        high = min(low + 1, len(self.log_sigma) - 1)
        sigma = torch.lerp(self.log_sigma[low], self.log_sigma[high], t - low).exp()
        signal = 1 / (1 + sigma**2).sqrt()
        noise, mean = sigma * signal, MEAN - self.z_star
        gain = signal * STD**2 / (signal**2 * STD**2 + noise**2)
        x_0 = mean + gain * (x.double() - signal * mean)
        eps = (x.double() - signal * x_0) / noise
        outputs = {"sample": x_0 + self.z_star, "epsilon": eps, "v_prediction": signal * eps - noise * x_0}
        return outputs[self.prediction_type].to(x.dtype)


def scheduler_class(name: str) -> type[SchedulerMixin]:
    cls = getattr(diffusers, name)
    if "torchsde" in (vars(cls).get("_backends") or ()):
        pytest.skip(f"{name} needs torchsde")
    return cls


def make_bridge(prediction_type: str = "epsilon", **changes) -> OUBridgeScheduler:
    settings = {"beta_schedule": "squaredcos_cap_v2", "theta": 2.0, "eta": 1.2, "z_star": 0.2}
    return OUBridgeScheduler(prediction_type=prediction_type, **settings | changes)


def draw(bridge: OUBridgeScheduler, scheduler: SchedulerMixin, steps: int) -> torch.Tensor:
    torch.manual_seed(0)  # DPM-Solver SDE draws without a generator
    z = sample_latents(GaussianDenoiser(bridge), scheduler, (10_000, 1, 1), steps, torch.Generator().manual_seed(0))
    return z.flatten()


def errors(z: torch.Tensor) -> tuple[float, float]:
    """Of mean and standard deviation, in standard deviations of the data; standard errors are 0.01 and 0.007."""
    return abs(z.mean().item() - MEAN) / STD, abs(z.std().item() / STD - 1)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_right_law_or_refused(name, prediction_type):
    cls, bridge = scheduler_class(name), make_bridge(prediction_type)
    if prediction_type not in RIGHT.get(name, ()):
        with pytest.raises(ValueError, match=rf"{name} \w+"):
            bridge.to_diffusers(cls)
        return
    for steps in (20, 100):
        mean, std = errors(draw(bridge, bridge.to_diffusers(cls), steps))
        # "leading" steps start a step below noise; first-order chains are too narrow at few steps
        assert mean < 0.03 + 0.8 / steps and std < 0.03 + 3 / steps, (steps, mean, std)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", sorted(RIGHT))
def test_the_law_holds_for_every_spacing_and_for_steps_that_do_not_divide_the_levels(name, spacing):
    """Or the call is refused, with steps that would be right."""
    cls, bridge = scheduler_class(name), make_bridge(timestep_spacing=spacing)
    scheduler = bridge.to_diffusers(cls)
    for steps in (30, 130) if spacing == "leading" else (130,):
        try:
            z = draw(bridge, scheduler, steps)
        except ValueError as error:
            assert scheduler.config.timestep_spacing == "leading" and steps == 130
            assert "a number of steps above 1 that divides 1000" in str(error)
        else:
            mean, std = errors(z)
            assert mean < 0.03 + 0.8 / steps and std < 0.03 + 3 / steps, (steps, mean, std)


@pytest.mark.parametrize("cls", [None, DDIMScheduler, DDPMScheduler])
@pytest.mark.parametrize("steps", [1, 130, 501])
def test_leading_steps_that_begin_far_from_noise_are_refused_of_every_scheduler(cls, steps):
    """One would begin at level 0 and give the noise back, 501 at level 500."""
    bridge = make_bridge(timestep_spacing="leading")
    scheduler = bridge if cls is None else bridge.to_diffusers(cls)
    options = {"solver": "ancestral"} if cls is None else {}
    with pytest.raises(ValueError, match=rf"would begin its {steps} steps at noise level \d+ of 1000"):
        sample_latents(GaussianDenoiser(bridge), scheduler, (2, 1, 4), steps, **options)


@pytest.mark.parametrize("name", sorted(RIGHT))
def test_a_chain_that_ends_early_gives_what_the_network_would_see_next(name):
    """In unit variance and around z*, whatever coordinates the scheduler works in; and the next chain is whole."""
    bridge, seen = make_bridge(), []
    scheduler, network = bridge.to_diffusers(scheduler_class(name)), GaussianDenoiser(bridge)
    network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))

    def walk(calls: int | None = None) -> torch.Tensor:
        torch.manual_seed(0)
        limit = {"progress_bar": lambda steps: itertools.islice(steps, calls)}
        return sample_latents(network, scheduler, (500, 1, 1), 4, torch.Generator().manual_seed(0), **limit)

    whole, inputs = walk(), tuple(seen)
    assert len(inputs) == len(scheduler.timesteps)
    for calls in range(len(inputs)):
        torch.testing.assert_close(walk(calls), inputs[calls] + bridge.config.z_star)
    assert torch.equal(walk(), whole)


def test_compatibles_are_those_that_work():
    assert set(OUBridgeScheduler._compatibles) == set(RIGHT) | {"LCMScheduler"}  # of students


@pytest.mark.parametrize("name", sorted(RIGHT))
def test_swapping_by_from_config_is_refused_alike(name):
    """Where `from_config` gives what `to_diffusers` would refuse, the call does."""
    cls = scheduler_class(name)
    for prediction_type in set(PREDICTIONS) - RIGHT[name]:
        bridge = make_bridge(prediction_type, theta=0.5, eta=1.0)
        with pytest.raises(ValueError, match=f"{name} samples another law for networks that predict"):
            draw(bridge, cls.from_config(bridge.config), 20)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (DDIMScheduler, {"clip_sample": True}),
        (DDIMScheduler, {"rescale_betas_zero_snr": True}),
        (DDPMScheduler, {"thresholding": True}),
        (DPMSolverMultistepScheduler, {"use_flow_sigmas": True}),
        (PNDMScheduler, {"timestep_spacing": "trailing"}),
    ],
)
def test_options_that_change_the_law_are_refused(cls, options):
    (option,) = options
    with pytest.raises(ValueError, match=option):
        make_bridge().to_diffusers(cls, **options)


@pytest.mark.parametrize("wrong", ["DDIMScheduler", None, 3, DDIMScheduler()])
def test_what_is_not_the_class_of_a_scheduler(wrong):
    with pytest.raises(TypeError, match="class of a scheduler, such as DDIMScheduler"):
        make_bridge().to_diffusers(wrong)


def test_missing_packages_are_named():
    class Missing:
        _backends = ["torch", "torchsde"]

    with pytest.raises(ValueError, match=r"Missing needs torch and torchsde.*pip install torch torchsde"):
        make_bridge().to_diffusers(Missing)


def test_classes_of_ones_own():
    class Derived(DDIMScheduler):
        pass

    class Other(SchedulerMixin):
        def __init__(self, trained_betas=None):
            pass

        def set_timesteps(self, n):
            pass

    assert isinstance(make_bridge().to_diffusers(Derived), Derived)
    assert "trained_betas" in inspect.signature(Other.__init__).parameters
    with pytest.raises(ValueError, match="Other isn't known to sample"):
        make_bridge().to_diffusers(Other)


@pytest.mark.parametrize(
    "options",
    [
        {"prediction_type": "v_prediction"},
        {"num_train_timesteps": 500},
        {"trained_betas": None},
        {"trained_betas": [0.01] * 1000},
        {"beta_schedule": "squaredcos_cap_v2"},
    ],
)
def test_options_cannot_change_what_the_network_was_trained_for(options):
    """They were taken, and samples were wrong without a word."""
    scheduler = OUBridgeScheduler(prediction_type="sample")
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` of the scheduler follows from the bridge"):
        scheduler.to_diffusers(DDIMScheduler, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),  # asked for fewer steps
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
        ("UniPCMultistepScheduler", {"predict_x0": False}),  # NaN
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}),
        ("SASolverScheduler", {"lower_order_final": False}),
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}),  # a standard deviation of .4 instead of 1
        ("EulerDiscreteScheduler", {"use_beta_sigmas": True}),
        ("KDPM2DiscreteScheduler", {"use_karras_sigmas": True}),
    ],
)
def test_options_with_which_a_class_samples_another_law(name, options):
    with pytest.raises(ValueError, match=rf"{name} samples another law, or fails, with {next(iter(options))}="):
        make_bridge("epsilon").to_diffusers(scheduler_class(name), **options)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler"])
def test_karras_sigmas_where_the_law_stays_right(name):
    bridge = make_bridge("sample")
    mean, std = errors(draw(bridge, bridge.to_diffusers(scheduler_class(name), use_karras_sigmas=True), 20))
    assert mean < 0.07 and std < 0.18, (mean, std)
