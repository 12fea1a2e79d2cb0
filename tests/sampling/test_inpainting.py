"""
Conditional sampling against closed forms: the forward law of what is known, Gaussian conditioning of what isn't.
"""

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from host_waits import HostWaits
from tiny_models import make_unet
from torch import nn

from diffusion_bridge_vq import OUBridgeScheduler
from diffusion_bridge_vq.sampling import inpaint_latents, sample_latents

T = 100
BRIDGE = {
    "num_train_timesteps": T,
    "beta_schedule": "squaredcos_cap_v2",
    "theta": 2.0,
    "eta": 1.6,
    "z_star": [0.5, -1],
}
S = 1.6 / math.sqrt(4.0)
Z_STAR = torch.tensor([0.5, -1.0]).reshape(1, 2, 1)
# law of z_0: two channels alike and independent, three positions
MEAN = torch.tensor([0.3, -0.4, 0.1])
COVARIANCE = torch.tensor([[1.0, 0.8, 0.5], [0.8, 1.2, 0.6], [0.5, 0.6, 0.9]])
KNOWN = torch.tensor([1.7, 0.0, 0.0]).expand(1, 2, 3)
MASK = torch.tensor([False, True, True])


def abar_of(bridge: OUBridgeScheduler, timestep: float) -> float:
    """The paper's alpha-bar after diffusers' timestep; -1 is the clean end."""
    return float((1 - bridge.betas[: round(timestep) + 1].double()).prod())


class GaussianDenoiser(nn.Module):
    """The exact eps-network for z_0 ~ N(MEAN, COVARIANCE), in the unit-variance coordinates x."""

    def __init__(self, bridge: OUBridgeScheduler):
        super().__init__()
        self.bridge = bridge

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        abar = abar_of(self.bridge, float(t))
        abar = abar / (abar + S**2 * (1 - abar))
        gain = abar**0.5 * COVARIANCE @ torch.linalg.inv(abar * COVARIANCE + (1 - abar) * torch.eye(3))
        mean = MEAN - Z_STAR  # of x_0
        x_0 = mean + (x - abar**0.5 * mean) @ gain.T
        return (x - abar**0.5 * x_0) / (1 - abar) ** 0.5


class HalfDenoiser(GaussianDenoiser):
    """The same for samples of any precision."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float(), t).to(x.dtype)


def make(name: str):
    """(bridge, scheduler to sample with)"""
    bridge = OUBridgeScheduler(**BRIDGE)
    stock = {
        "ddim": (DDIMScheduler, {}),
        "ddpm": (DDPMScheduler, {}),
        "dpm": (DPMSolverMultistepScheduler, {}),
        "sde-dpm": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
        "unipc": (UniPCMultistepScheduler, {}),
        "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
        "euler": (EulerDiscreteScheduler, {}),
        "heun": (HeunDiscreteScheduler, {}),
        "lms": (LMSDiscreteScheduler, {}),
    }
    return bridge, bridge if name == "bridge" else bridge.to_diffusers(stock[name][0], **stock[name][1])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["bridge", "ddim", "dpm", "pndm", "euler", "heun"])
@pytest.mark.parametrize("times", [1, 2])
def test_known_latents_follow_the_forward_law(name, times):
    """At every step, also when steps are taken again: N(z* + sqrt(abar) (z_0 - z*), s^2 (1 - abar))."""
    bridge, scheduler = make(name)
    n = 4000
    seen = []

    def look(step, timestep, sample):
        seen.append((step, sample[..., 0].mean(0), sample[..., 0].std(0)))

    z_0 = inpaint_latents(
        GaussianDenoiser(bridge),
        scheduler,
        KNOWN.expand(n, 2, 3),
        MASK,
        10,
        generator(),
        jump_length=3,
        jump_n_sample=times,
        callback=look,
    )
    assert torch.equal(z_0[..., 0], KNOWN.expand(n, 2, 3)[..., 0])
    levels = [*scheduler.timesteps.tolist(), -1]
    assert {step for step, _, _ in seen} == set(range(len(levels) - 1))
    for step, mean, std in seen:
        abar = abar_of(bridge, levels[step + 1])
        if name == "bridge":
            center, signal, sigma = Z_STAR.flatten(), abar**0.5, S * (1 - abar) ** 0.5
        else:
            abar = abar / (abar + S**2 * (1 - abar))  # abar'
            center, signal, sigma = 0.0, abar**0.5, (1 - abar) ** 0.5
        if name in ("euler", "heun"):  # which walk in x / sqrt(abar')
            signal, sigma = 1.0, sigma / signal
        expected = center + signal * (KNOWN[0, :, 0] - Z_STAR.flatten())
        torch.testing.assert_close(mean, expected, atol=4 * sigma / n**0.5 + 1e-5, rtol=0)
        torch.testing.assert_close(std, torch.full((2,), sigma), atol=3 * sigma / n**0.5 + 1e-5, rtol=0)


def conditional_error(name: str, length: int, times: int) -> float:
    """Largest error in mean and covariance of the unknown positions, against Gaussian conditioning."""
    bridge, scheduler = make(name)
    n = 2000
    z_0 = inpaint_latents(
        GaussianDenoiser(bridge),
        scheduler,
        KNOWN.expand(n, 2, 3),
        MASK,
        25,
        generator(),
        jump_length=length,
        jump_n_sample=times,
    )
    regression = COVARIANCE[1:, 0] / COVARIANCE[0, 0]
    mean = MEAN[1:] + regression * (KNOWN[0, 0, 0] - MEAN[0])
    covariance = COVARIANCE[1:, 1:] - regression[:, None] * COVARIANCE[0, 1:]
    unknown = z_0[:, 0, 1:]  # of the first channel; what is known of the second is 0
    return max((unknown.mean(0) - mean).abs().max().item(), (unknown.T.cov() - covariance).abs().max().item())


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("bridge", 1),
        ("bridge", 3),
        ("ddim", 1),
        ("dpm", 1),
        ("dpm", 3),
        ("sde-dpm", 3),
        ("unipc", 3),
        ("pndm", 3),
        ("euler", 1),
        ("heun", 2),
    ],
)
def test_resampling_leads_to_the_conditional_law(name, length):
    assert conditional_error(name, length, 15) < 0.2


@pytest.mark.parametrize("name", ["bridge", "dpm"])
def test_without_resampling_the_law_is_another(name):
    """So the test above can fail: known positions say too little at the noise levels where the others are decided."""
    assert conditional_error(name, 1, 1) > 0.35


@pytest.mark.parametrize(
    ("name", "steps", "length"), [("bridge", 50, 2), ("ddim", 25, 2), ("dpm", 30, 2), ("heun", 25, 2), ("lms", 12, 1)]
)
def test_jumps_leave_an_exact_law_alone(name, steps, length):
    """With nothing known, walking back and forth must not change what an exact network samples."""
    bridge, scheduler = make(name)
    n = 4000
    z_0 = inpaint_latents(
        GaussianDenoiser(bridge),
        scheduler,
        KNOWN.expand(n, 2, 3),
        torch.ones(3),
        steps,
        generator(),
        jump_length=length,
        jump_n_sample=4,
    )[:, 0]
    torch.testing.assert_close(z_0.mean(0), MEAN, atol=0.08, rtol=0)
    torch.testing.assert_close(z_0.T.cov(), COVARIANCE, atol=0.2, rtol=0)


@pytest.mark.parametrize("name", ["bridge", "ddim", "sde-dpm", "euler"])
def test_nothing_known_is_unconditional_sampling(name):
    bridge, scheduler = make(name)
    network = GaussianDenoiser(bridge)
    inpainted = inpaint_latents(network, scheduler, torch.randn(5, 2, 3), torch.ones(5, 1, 3), 8, generator())
    solver = "ancestral" if name == "bridge" else None  # the default of inpainting
    assert torch.equal(inpainted, sample_latents(network, scheduler, (5, 2, 3), 8, generator(), solver=solver))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["bridge", "ddim", "dpm", "euler", "heun"])
@pytest.mark.parametrize("mask", [torch.zeros(3), MASK])
def test_what_is_known_comes_back_exactly(name, dtype, mask):
    """Also from schedulers that walk in z - z*, which rounds; in bfloat16 by up to 0.008."""
    bridge, scheduler = make(name)
    known = (torch.randn(5, 2, 3, generator=generator(1)) + 0.1).to(dtype)
    z_0 = inpaint_latents(HalfDenoiser(bridge), scheduler, known, mask, 10, generator())
    is_known = ~mask.bool().expand_as(known)
    assert torch.equal(z_0[is_known].to(dtype), known[is_known])


def test_what_stands_at_unknown_positions_is_ignored():
    bridge, scheduler = make("bridge")
    known = torch.randn(5, 2, 3, generator=generator(1))
    runs = [
        inpaint_latents(GaussianDenoiser(bridge), scheduler, torch.where(MASK, fill, known), MASK, 8, generator())
        for fill in (0.0, 1e4)
    ]
    assert torch.equal(*runs)


def test_a_generator_per_sample_makes_a_batch_equal_to_single_runs():
    bridge, scheduler = make("bridge")
    network, known = GaussianDenoiser(bridge), torch.randn(3, 2, 3, generator=generator(1))
    options = {"jump_length": 3, "jump_n_sample": 2}
    batch = inpaint_latents(network, scheduler, known, MASK, 8, [generator(i) for i in range(3)], **options)
    for i in range(3):
        single = inpaint_latents(network, scheduler, known[i : i + 1], MASK, 8, [generator(i)], **options)
        torch.testing.assert_close(batch[i : i + 1], single)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bridge", [0, 1, 0, 1, 2, 3, 2, 3, 4, 4]),
        ("heun", [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7, 8, 8]),  # two calls a step
    ],
)
def test_the_order_of_a_walk_with_jumps(name, expected):
    """Every stretch of steps as often as asked, then on; second-order solvers jump between whole steps."""
    bridge, scheduler = make(name)
    seen = []

    def note(step, timestep, sample):
        seen.append(step)

    network = GaussianDenoiser(bridge)
    inpaint_latents(network, scheduler, KNOWN, MASK, 5, jump_length=2, jump_n_sample=2, callback=note)
    assert seen == expected


def test_callback_replaces_latents_when_inpainting():
    bridge, scheduler = make("bridge")
    z_0 = inpaint_latents(
        GaussianDenoiser(bridge), scheduler, KNOWN, MASK, 4, callback=lambda i, t, z: z * 0 + 7 if i == 3 else None
    )
    assert torch.equal(z_0, torch.full((1, 2, 3), 7.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.zeros(4)}, "shape"),
        ({"mask": torch.zeros(2, 1, 2, 3)}, "shape"),
        ({"mask": torch.zeros(0)}, "empty"),
        ({"mask": torch.tensor([0.0, 0.5, 1.0])}, "binary"),
        ({"mask": torch.tensor([0, 255, 255])}, "binary"),
        ({"latents": torch.zeros(1, 2, 4)}, "latents"),
        ({"jump_length": 0}, "jump_length"),
        ({"jump_n_sample": 0}, "jump_n_sample"),
        ({"jump_n_sample": 2**31}, r"`jump_n_sample` must be a whole number in 1\.\.1000"),
        ({"num_inference_steps": T + 1}, "num_inference_steps"),
    ],
)
def test_bad_input(change, message):
    bridge, scheduler = make("bridge")
    arguments = {"known_latents": KNOWN, "mask": MASK, "num_inference_steps": 4}
    with pytest.raises(ValueError, match=message):
        inpaint_latents(GaussianDenoiser(bridge), scheduler, **arguments | change)


def test_labels_for_a_network_without_classes_are_refused():
    unet, labels = make_unet(), torch.tensor([0])
    with pytest.raises(ValueError, match="has no classes: leave out `class_labels`"):
        sample_latents(unet, OUBridgeScheduler(**BRIDGE), (1, 3, 4, 4), 4, class_labels=labels)


def test_steps_that_a_solver_puts_on_one_level_are_refused():
    """DPM-Solver with "leading" spacing puts T steps on one and the same level, which divides by zero."""
    bridge = OUBridgeScheduler(**BRIDGE)
    scheduler = bridge.to_diffusers(DPMSolverMultistepScheduler, timestep_spacing="leading")
    with pytest.raises(ValueError, match="coincide"):
        sample_latents(GaussianDenoiser(bridge), scheduler, (1, 2, 3), T)


class Head(nn.Module):
    """A network on the "meta" device."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * t


def waits_in_the_loop(scheduler, **kwargs) -> list[str]:
    """What would wait for the device from the second step to the last, see tests/host_waits.py."""
    waits = HostWaits()

    def counted(steps):
        for number, step in enumerate(steps):
            if number == 1:
                waits.__enter__()
            yield step
        waits.__exit__(None, None, None)

    sample_latents(Head(), scheduler, (2, 2, 3), 6, device="meta", progress_bar=counted, **kwargs)
    return waits.seen


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("solver", ["ancestral", "dpmsolver++", "ddim"])
def test_sampling_steps_never_wait_for_the_device(solver, prediction_type):
    bridge = OUBridgeScheduler(**BRIDGE, prediction_type=prediction_type)
    assert waits_in_the_loop(bridge, solver=solver) == []
    known, mask = torch.zeros(2, 2, 3, device="meta"), torch.ones(3, dtype=torch.bool, device="meta")
    waits = HostWaits()
    sampling = {"jump_n_sample": 2, "jump_length": 2, "solver": solver, "num_inference_steps": 4}

    def counted(steps):
        with waits:
            yield from steps

    with pytest.MonkeyPatch.context() as patch:  # "meta" has no value of `unknown.all()`, read before the loop
        patch.setattr(torch.Tensor, "all", lambda self: torch.zeros(()))
        inpaint_latents(Head(), bridge, known, mask, progress_bar=counted, **sampling)
    assert waits.seen == []


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm", "pndm", "euler", "heun"])
def test_nor_do_those_of_most_stock_schedulers(name):
    assert waits_in_the_loop(make(name)[1]) == []


def test_waits_are_seen():
    """UniPC copies a small table to the device at every step, and a callback may read a value."""
    assert waits_in_the_loop(make("unipc")[1]) != []

    def read(step, timestep, sample):
        if step > 0:
            float(sample.sum())

    assert len(waits_in_the_loop(make("dpm")[1], callback=read)) == 5
