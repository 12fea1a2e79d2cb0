"""The solvers draw the exact law with the toy's exact denoiser."""

import math

import pytest
import torch
from tiny_models import make_unet

from diffusion_bridge_vq import OUBridgeScheduler
from diffusion_bridge_vq.sampling import sample_latents
from diffusion_bridge_vq.toy.networks import MixtureDenoiser
from diffusion_bridge_vq.toy.walks import NOISE_STD, all_toy_sequences, is_toy_walk, toy_codebook


def mixture(scheduler: OUBridgeScheduler) -> MixtureDenoiser:
    return MixtureDenoiser(toy_codebook()[all_toy_sequences()].transpose(1, 2), NOISE_STD, scheduler)


@pytest.mark.parametrize("s", [1.0, 3.0])
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_twenty_steps_draw_the_exact_law(schedule, s):
    """
    With the exact network of the 128 walks: every walk is valid and as likely as the others (chi-squared), and the
    data's noise comes back within a tenth, less what z_0's posterior mean at the last level has to leave out. Even
    steps in time lose walks (up to 1 in 10) or the noise.
    """
    scheduler = OUBridgeScheduler(beta_schedule=schedule, eta=s * math.sqrt(2), prediction_type="sample")
    n = 10_000
    generator = torch.Generator().manual_seed(0)
    z_0 = sample_latents(mixture(scheduler), scheduler, (n, 2, 5), 20, generator, solver="dpmsolver++")
    codes = torch.cdist(z_0.transpose(1, 2).contiguous(), toy_codebook()).argmin(-1)
    assert is_toy_walk(codes).float().mean() > 0.9995
    counts = (codes[:, None] == all_toy_sequences()).all(-1).sum(0).float()
    chi_squared = ((counts - n / 128) ** 2 / (n / 128)).sum()
    assert abs(chi_squared - 127) < 4 * math.sqrt(2 * 127)
    residual = z_0 - toy_codebook()[codes].transpose(1, 2)
    abar = scheduler.alphas_cumprod[scheduler.timesteps[-1]].item()
    last = s**2 * (1 - abar) / abar  # variance of what the last network call sees besides z_0
    std = NOISE_STD / math.sqrt(1 + last / NOISE_STD**2)
    assert abs(residual.std() - std) < 0.1 * std and residual.mean().abs() < 0.002


def test_second_order_is_nearer_to_the_solution_than_first():
    """Against 500 steps from the same noise; DPM-Solver++(2M) converges as h^2, DDIM as h (global error)."""
    scheduler = OUBridgeScheduler(prediction_type="sample", lambda_max_clipped=10)  # all end at the same level
    network, noise = mixture(scheduler), torch.randn(500, 2, 5, generator=torch.Generator().manual_seed(1))

    def solve(solver, steps):
        return sample_latents(network, scheduler, noise.shape, steps, latents=noise, solver=solver)

    solution = solve("dpmsolver++", 500)
    error = {(s, n): (solve(s, n) - solution).abs().median() for s in ("dpmsolver++", "ddim") for n in (12, 24)}
    assert error["dpmsolver++", 24] < 0.35 * error["dpmsolver++", 12] and error["ddim", 24] > 0.4 * error["ddim", 12]
    assert error["dpmsolver++", 24] < 0.3 * error["ddim", 24]


class Half(torch.nn.Module):
    """eps = w x, where x must be as the weight is."""

    def __init__(self, weight: torch.Tensor | None):
        super().__init__()
        if weight is not None:
            self.weight = torch.nn.Parameter(weight)

    def forward(self, x, t):
        return 0.5 * x if next(self.parameters(), None) is None else torch.einsum("bdn,de->ben", x, self.weight)


def test_weights_that_are_stored_in_8_bits_are_drawn_with_as_they_are_computed_with():
    unet = make_unet(sample_size=4).eval()
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    z_0 = sample_latents(unet, OUBridgeScheduler(), (2, 3, 4, 4), 2)
    assert z_0.dtype == torch.float32 and z_0.isfinite().all()


@pytest.mark.parametrize(
    ("of_latents", "of_weights", "given", "expected"),
    [
        (None, None, {}, torch.float32),
        (None, torch.float64, {}, torch.float64),
        (None, torch.bfloat16, {"device": "cpu"}, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16, {}, torch.bfloat16),
        (torch.float64, None, {}, torch.float64),
        (torch.float32, torch.float64, {"dtype": torch.float64}, torch.float64),
    ],
)
def test_samples_are_as_the_latents_else_as_the_network(of_latents, of_weights, given, expected):
    network = Half(None if of_weights is None else torch.eye(2, dtype=of_weights))
    latents = None if of_latents is None else torch.ones(3, 2, 4, dtype=of_latents)
    z_0 = sample_latents(network, OUBridgeScheduler(), (3, 2, 4), 2, latents=latents, **given)
    assert z_0.dtype == expected and z_0.isfinite().all()


@pytest.mark.parametrize("weight", [None, torch.eye(2)])
def test_samples_stay_on_the_device_of_the_latents(weight):
    """Here "meta", the only other one that there always is; weights that are offloaded to it say nothing."""
    latents = torch.ones(3, 2, 4, device="meta")
    network = Half(None if weight is None else weight.to("meta"))
    assert sample_latents(network, OUBridgeScheduler(), latents.shape, 2, latents=latents).is_meta
    assert not sample_latents(Half(None), OUBridgeScheduler(), latents.shape, 2).is_meta
    if weight is not None:
        network.register_forward_pre_hook(lambda module, args: setattr(module, "weight", torch.nn.Parameter(weight)))
        assert not sample_latents(network, OUBridgeScheduler(), latents.shape, 2).is_meta
