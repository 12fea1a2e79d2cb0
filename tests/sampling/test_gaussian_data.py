"""Whole chains on Gaussian data, whose denoiser is exact: the bridge's own steps, and diffusers' schedulers."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from diffusion_bridge_vq import OUBridgeScheduler
from diffusion_bridge_vq.sampling import sample_latents


class GaussianDenoiser(torch.nn.Module):
    """The exact network for data N(mean, std^2): knows the process through x_t = signal x_0 + noise eps only."""

    def __init__(self, scheduler: OUBridgeScheduler, mean: torch.Tensor, std: float):
        super().__init__()
        s, abar = scheduler.stationary_std, scheduler.alphas_cumprod.double()
        self.signal = (abar / (abar + s**2 * (1 - abar))).sqrt()
        z_star = torch.tensor(np.broadcast_to(scheduler.config.z_star, 3).copy()).reshape(1, 3, 1)
        self.mean, self.std, self.z_star = mean.double() - z_star, std, z_star
        self.prediction_type = scheduler.config.prediction_type

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        signal = self.signal[t.round().long()]  # Euler's timesteps are floats
        noise = (1 - signal**2).sqrt()
        gain = signal * self.std**2 / (signal**2 * self.std**2 + noise**2)
        x_0 = self.mean + gain * (x.double() - signal * self.mean)
        if self.prediction_type == "sample":
            return (x_0 + self.z_star).to(x.dtype)
        eps = (x.double() - signal * x_0) / noise
        return (eps if self.prediction_type == "epsilon" else signal * eps - noise * x_0).to(x.dtype)


# name: (class, arguments, steps). DDIM strides by T // n, so n must divide T. First-order chains need more: the
# plug-in bridge is a little too narrow at few steps.
SOLVERS = {
    "ours": (None, {}, 1000),
    "ddim": (DDIMScheduler, {}, 250),
    "dpm++": (DPMSolverMultistepScheduler, {}, 60),
    "sde-dpm++": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, 60),
    "unipc": (UniPCMultistepScheduler, {}, 60),
    "euler": (EulerDiscreteScheduler, {}, 300),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    "process",
    [
        {},
        {"theta": 0.5, "eta": 3.0, "z_star": [-1.0, 0.0, 2.0], "beta_schedule": "squaredcos_cap_v2"},
        {"theta": 2.0, "eta": 1.0, "z_star": 0.3, "beta_schedule": "squaredcos_cap_v2"},
    ],
)
def test_samplers_reproduce_a_gaussian(process, prediction_type, solver):
    """Mean and standard deviation of 4 x 2,000 samples in each of 3 channels, by our chain and by stock solvers."""
    scheduler = OUBridgeScheduler(prediction_type=prediction_type, timestep_spacing="trailing", **process)
    mean, std = torch.tensor([0.5, -1.0, 0.2]).reshape(1, 3, 1), 0.6
    network = GaussianDenoiser(scheduler, mean, std)
    cls, kwargs, steps = SOLVERS[solver]
    if cls is not None:
        scheduler = scheduler.to_diffusers(cls, **kwargs)
    own = {"solver": "ancestral"} if cls is None else {}
    z = sample_latents(network, scheduler, (4, 3, 2000), steps, torch.Generator().manual_seed(0), **own)
    assert (z.mean((0, 2)) - mean.flatten()).abs().max() < 0.03  # 4.5 standard errors
    assert (z.std((0, 2)) / std - 1).abs().max() < 0.04  # 5 standard errors, or 2 % of bias and 2.5


def test_one_exact_step_reaches_the_data_mean():
    """A single step from T ends at E[z_0 | z_T], whatever the process."""
    scheduler = OUBridgeScheduler(
        theta=2.0, eta=1.0, z_star=0.3, prediction_type="sample", timestep_spacing="trailing"
    )
    network = GaussianDenoiser(scheduler, torch.tensor([0.5, -1.0, 0.2]).reshape(1, 3, 1), 0.6)
    z = sample_latents(network, scheduler, (1, 3, 10), 1, solver="ancestral")
    assert torch.allclose(z, torch.tensor([0.5, -1.0, 0.2]).reshape(1, 3, 1).expand_as(z), atol=0.02)


def test_swapping_by_from_config():
    kept = OUBridgeScheduler(z_star=0.3, beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")
    swapped = DDIMScheduler.from_config(kept.config)
    assert not swapped.config.clip_sample  # stock DDIM clips by default, and from_config drops other classes' defaults
    network = GaussianDenoiser(kept, torch.tensor([0.5, -1.0, 0.2]).reshape(1, 3, 1), 0.6)
    z = sample_latents(network, swapped, (4, 3, 2000), 250, generator=torch.Generator().manual_seed(0))
    assert (z.mean((0, 2)) - torch.tensor([0.5, -1.0, 0.2])).abs().max() < 0.04
    assert (z.std((0, 2)) / 0.6 - 1).abs().max() < 0.06

    wide = OUBridgeScheduler(eta=3.0, theta=0.5)
    for cls in (DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler):
        with pytest.raises(ValueError, match=rf"to_diffusers\({cls.__name__}\)"):
            sample_latents(network, cls.from_config(wide.config), (1, 3, 4), 5)
    with pytest.raises(ValueError, match="clip_sample"):
        sample_latents(network, DDIMScheduler(), (1, 3, 4), 5)
    with pytest.raises(ValueError, match="EDMEulerScheduler has noise levels of its own"):
        sample_latents(network, EDMEulerScheduler.from_config(kept.config), (1, 3, 4), 5)


@pytest.mark.parametrize("solver", ["ddim", "dpm++", "unipc", "euler"])
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_stock_solvers_start_from_noise_alone(prediction_type, solver):
    """Zero terminal SNR: alpha-bar is 0 at the last timestep, by which most of them divide."""
    betas = [*np.linspace(0.0001, 0.02, 999), 1.0]
    bridge = OUBridgeScheduler(trained_betas=betas, prediction_type=prediction_type, timestep_spacing="trailing")
    mean = torch.tensor([0.5, -1.0, 0.2]).reshape(1, 3, 1)
    cls, kwargs, steps = SOLVERS[solver]
    scheduler = bridge.to_diffusers(cls, **kwargs)
    z = sample_latents(GaussianDenoiser(bridge, mean, 0.6), scheduler, (4, 3, 2000), steps, torch.manual_seed(0))
    assert (z.mean((0, 2)) - mean.flatten()).abs().max() < 0.03
    assert (z.std((0, 2)) / 0.6 - 1).abs().max() < 0.04


def test_config_survives_the_way_through_another_class(tmp_path):
    ours = OUBridgeScheduler(
        theta=0.5, eta=3.0, z_star=(1.0, 2.0), variance_type="fixed_large", prediction_type="sample"
    )
    for cls in (DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler):
        back = OUBridgeScheduler.from_config(cls.from_config(ours.config).config)
        assert (back.config.theta, back.config.eta, back.config.z_star) == (0.5, 3.0, [1.0, 2.0])
        assert (back.config.prediction_type, back.config.variance_type) == ("sample", "fixed_large")
    ours.save_pretrained(tmp_path)
    loaded = OUBridgeScheduler.from_pretrained(tmp_path).config
    assert {k: loaded[k] for k in ours.config if not k.startswith("_")} == {
        k: v for k, v in ours.config.items() if not k.startswith("_")
    }
    # what to_diffusers makes is itself a bridge with s = 1, so it comes back as one that samples the same x + z*
    x_signal = ours.signal_to_noise(torch.arange(1000))
    for cls in (DDIMScheduler, DPMSolverMultistepScheduler):
        again = OUBridgeScheduler.from_config(ours.to_diffusers(cls).config)
        assert again.stationary_std == 1.0
        assert torch.allclose(again.signal_to_noise(torch.arange(1000)), x_signal, rtol=1e-6)
