"""Where few steps lie."""

import itertools
import math

import numpy as np
import pytest

from diffusion_bridge_vq import OUBridgeScheduler


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
    gaps = np.abs(np.diff(log_snr))  # between neighboring levels: the nearest is off by half of one at most
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
