"""Where few steps lie, and that the solvers draw the exact law with the toy's exact denoiser."""

import itertools
import math

import numpy as np
import pytest
import torch

from diffusion_bridge_vq import OUBridgeScheduler
from diffusion_bridge_vq.sampling import sample_latents
from diffusion_bridge_vq.toy.networks import MixtureDenoiser
from diffusion_bridge_vq.toy.walks import NOISE_STD, all_toy_sequences, is_toy_walk, toy_codebook


@pytest.mark.parametrize(("s", "end"), [(0.5, 2.5), (1.0, 2.5), (1.0, 3.5), (1.0, 100.0), (3.0, 2.5), (3.0, 1.0)])
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_logsnr_spacing_is_even_in_the_log_snr(schedule, s, end):
    ends = {} if end == 2.5 else {"lambda_max_clipped": end}
    scheduler = OUBridgeScheduler(beta_schedule=schedule, eta=s * math.sqrt(2), **ends)
    scheduler.set_timesteps(20, timestep_spacing="logsnr")
    abar = np.cumprod(1 - scheduler.betas.double().numpy())
    log_snr = 0.5 * np.log(abar / (s**2 * (1 - abar)))
    chosen = scheduler.timesteps.numpy()
    found = log_snr[chosen]
    gaps = np.abs(np.diff(log_snr))  # between neighbouring levels: the nearest is off by half of one at most
    half_level = np.maximum(gaps[np.minimum(chosen, 998)], gaps[np.maximum(chosen - 1, 0)]) / 2
    expected = np.linspace(max(-5.1, log_snr[-1]), min(end, log_snr[0]), 20)
    assert (np.abs(found - expected) <= half_level + 1e-4).all()


@pytest.mark.parametrize("num_train", [1, 2, 20, 100])
def test_logsnr_spacing_never_puts_two_steps_on_one_level(num_train):
    scheduler = OUBridgeScheduler(num_train_timesteps=num_train, beta_schedule="squaredcos_cap_v2")
    for n in range(1, num_train + 1):
        scheduler.set_timesteps(n, timestep_spacing="logsnr")
        chosen = scheduler.timesteps.tolist()
        assert len(chosen) == n and set(chosen) <= set(range(num_train))
        assert all(a > b for a, b in itertools.pairwise(chosen))
    assert chosen == list(range(num_train - 1, -1, -1))


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
    last = s**2 * (1 - abar) / abar  # variance of what the last network call sees beside z_0
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
