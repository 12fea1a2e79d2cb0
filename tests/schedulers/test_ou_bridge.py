"""The bridge against dense Gaussian conditioning, moments, and diffusers' own DDPM."""

import math
import re

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
)

from diffusion_bridge_vq import OUBridgeScheduler

PROCESSES = [
    {},
    {"theta": 2.0, "eta": 0.1, "z_star": 0.3},
    {"theta": 0.5, "eta": 3.0, "z_star": [-1.0, 0.0, 2.0], "beta_schedule": "squaredcos_cap_v2"},
    {"eta": 2.5, "beta_schedule": "scaled_linear"},
]


def dense_process(scheduler: OUBridgeScheduler, times: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """
    Joint law of (Z_t)_{t in times} of dZ = -theta (Z - z*) dt + eta dW with Z_0 ~ N(0, 1), z* = 0, built from the
    SDE: the real times come from beta_t = 1 - exp(-2 theta delta_t), the covariance from the OU kernel. No alpha-bar
    in sight.
    """
    theta, eta = scheduler.config.theta, scheduler.config.eta
    betas = scheduler.betas.double().numpy()
    clock = np.concatenate([[0.0], np.cumsum(-np.log1p(-betas) / (2 * theta))])[times]
    s2 = eta**2 / (2 * theta)
    decay = np.exp(-theta * clock)
    cov = np.outer(decay, decay) * 1.0
    for i, a in enumerate(clock):
        for j, b in enumerate(clock):
            cov[i, j] += s2 * (np.exp(-theta * abs(a - b)) - np.exp(-theta * (a + b)))
    return np.zeros(len(times)), cov


@pytest.mark.parametrize("config", [{}, {"theta": 2.0, "eta": 0.1}, {"theta": 0.5, "eta": 3.0}])
@pytest.mark.parametrize(("t", "prev"), [(7, 6), (9, 4), (9, 0), (3, -1), (0, -1)])
def test_bridge_posterior_is_dense_gaussian_conditioning(config, t, prev):
    betas = np.linspace(0.05, 0.3, 10).astype(np.float32).astype(np.float64)
    scheduler = OUBridgeScheduler(num_train_timesteps=10, trained_betas=betas.tolist(), **config)
    _, cov = dense_process(scheduler, [0, prev + 1, t + 1])  # paper time is timestep + 1
    # law of Z_s given (Z_0, Z_t)
    known, rest = [0, 2], [1]
    gain = cov[np.ix_(rest, known)] @ np.linalg.pinv(cov[np.ix_(known, known)])
    variance = (cov[np.ix_(rest, rest)] - gain @ cov[np.ix_(known, rest)]).item()

    z_0, z_t = torch.randn(2, 1, 1, 5, dtype=torch.float64)
    mean, std = scheduler.bridge_posterior(z_0, z_t, t, prev)
    assert torch.allclose(mean, gain[0, 0] * z_0 + gain[0, 1] * z_t, atol=1e-10)
    assert abs(std.item() ** 2 - variance) < 1e-10


@pytest.mark.parametrize("config", PROCESSES)
def test_z_star_only_shifts_the_process(config):
    shifted = OUBridgeScheduler(**config)
    plain = OUBridgeScheduler(**{k: v for k, v in config.items() if k != "z_star"})
    z_star = torch.tensor(np.broadcast_to(config.get("z_star", 0.0), 3).copy()).reshape(1, 3, 1)
    z_0, eps, z_t = torch.randn(3, 2, 3, 4, dtype=torch.float64)
    t = torch.tensor([5, 900])
    assert torch.allclose(shifted.add_noise(z_0 + z_star, eps, t), plain.add_noise(z_0, eps, t) + z_star, atol=1e-12)
    mean, std = shifted.bridge_posterior(z_0 + z_star, z_t + z_star, t, t - 5)
    expected, expected_std = plain.bridge_posterior(z_0, z_t, t, t - 5)
    assert torch.allclose(mean, expected + z_star, atol=1e-12)
    assert torch.allclose(std, expected_std)


def test_paper_time_is_timestep_plus_one():
    scheduler = OUBridgeScheduler(num_train_timesteps=4, trained_betas=[0.1, 0.2, 0.3, 0.4])
    # alpha-bar at paper time 2 is alpha_1 alpha_2, and it is at timestep 1
    assert scheduler.alphas_cumprod[1].item() == pytest.approx(0.9 * 0.8)
    z, zero = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64)
    assert scheduler.add_noise(z, zero, 1).item() == pytest.approx(math.sqrt(0.9 * 0.8), abs=1e-12)
    assert scheduler.add_noise(z, zero, -1).item() == 1.0  # paper time 0
    # and back: the first reverse step starts at T - 1 and the last ends at -1
    scheduler.set_timesteps(4)
    assert [int(t) for t in scheduler.timesteps] == [3, 2, 1, 0]
    assert [scheduler.previous_timestep(t) for t in scheduler.timesteps] == [2, 1, 0, -1]


def test_forward_marginal_is_the_sde():
    """Euler-Maruyama paths of dZ = -theta (Z - z*) dt + eta dW, 40,000 of them, against add_noise."""
    theta, eta, z_star, z_0 = 1.5, 0.8, 0.4, -1.2
    betas = [0.1, 0.2, 0.3]
    scheduler = OUBridgeScheduler(num_train_timesteps=3, trained_betas=betas, theta=theta, eta=eta, z_star=z_star)
    rng = np.random.default_rng(0)
    z, n_steps = np.full(40_000, z_0), 400
    for i, beta in enumerate(betas):
        dt = -math.log1p(-beta) / (2 * theta) / n_steps
        for _ in range(n_steps):
            z += -theta * (z - z_star) * dt + eta * math.sqrt(dt) * rng.standard_normal(len(z))
        start, zero = torch.full((1, 1, 1), z_0, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64)
        mean = scheduler.add_noise(start, zero, i).item()
        std = scheduler.add_noise(start, zero + 1, i).item() - mean
        assert abs(z.mean() - mean) < 5 * std / math.sqrt(len(z))
        assert abs(z.std() / std - 1) < 5 / math.sqrt(2 * len(z))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize(("schedule", "spacing"), [("linear", "leading"), ("scaled_linear", "linspace")])
def test_defaults_are_ddpm_step_by_step(prediction_type, variance_type, schedule, spacing):
    shared = {"prediction_type": prediction_type, "beta_schedule": schedule, "timestep_spacing": spacing}
    ours = OUBridgeScheduler(variance_type=variance_type, **shared)
    theirs = DDPMScheduler(variance_type=variance_type, clip_sample=False, **shared)
    assert torch.allclose(ours.betas, theirs.betas, atol=1e-8)
    # their float32 table loses digits of 1 - abar at the first timesteps; their arithmetic is compared on a float64
    # one
    theirs.alphas_cumprod = torch.from_numpy(np.cumprod(1 - betas_in_float64(ours)))
    theirs.one = theirs.one.double()
    for n in (1000, 37):
        ours.set_timesteps(n)
        theirs.set_timesteps(n)
        assert torch.equal(ours.timesteps, theirs.timesteps)
        sample = torch.randn(2, 3, 4, 4)
        for t in theirs.timesteps[:: max(1, n // 20)].tolist() + theirs.timesteps[-3:].tolist():
            output = torch.randn(2, 3, 4, 4)
            a = ours.step(output, t, sample, generator=torch.Generator().manual_seed(t))
            b = theirs.step(output, t, sample, generator=torch.Generator().manual_seed(t))
            assert torch.allclose(a.pred_original_sample, b.pred_original_sample, rtol=1e-5, atol=1e-4)
            assert torch.allclose(a.prev_sample, b.prev_sample, rtol=1e-5, atol=2e-5)
    sample, noise, t = sample.double(), torch.randn_like(sample).double(), torch.tensor([3, 700])
    assert torch.allclose(ours.add_noise(sample, noise, t), theirs.add_noise(sample, noise, t), atol=1e-10)
    assert torch.allclose(ours.get_velocity(sample, noise, t), theirs.get_velocity(sample, noise, t), atol=1e-10)
    assert ours.scale_model_input(sample, 5).equal(sample)


@pytest.mark.parametrize("config", PROCESSES)
def test_reverse_mean_is_the_corrected_formula(config):
    """mu_theta of section 3.2 with 1 / sqrt(alpha_t) in front, which the print has as 1 / sqrt(abar_t)."""
    scheduler = OUBridgeScheduler(variance_type="zero", **config)
    s = scheduler.stationary_std
    z_star = torch.tensor(np.broadcast_to(scheduler.config.z_star, 3).copy()).reshape(1, 3, 1)
    z_t, eps = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    abar = np.concatenate([[1.0], np.cumprod(1 - betas_in_float64(scheduler))])
    for t in (1, 10, 500, 1000):
        alpha = abar[t] / abar[t - 1]
        mu = z_star + (z_t - z_star - s * (1 - alpha) / math.sqrt(1 - abar[t]) * eps) / math.sqrt(alpha)
        assert torch.allclose(scheduler.step(eps, t - 1, z_t).prev_sample, mu, atol=1e-10, rtol=1e-10)


def betas_in_float64(scheduler: OUBridgeScheduler) -> np.ndarray:
    c, n = scheduler.config, scheduler.config.num_train_timesteps
    if c.beta_schedule == "linear":
        return np.linspace(c.beta_start, c.beta_end, n)
    if c.beta_schedule == "scaled_linear":
        return np.linspace(math.sqrt(c.beta_start), math.sqrt(c.beta_end), n) ** 2
    f = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
    return np.minimum(1 - np.array(f[1:]) / np.array(f[:-1]), 0.999)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("config", PROCESSES)
def test_a_perfect_network_gives_back_z_0(config, prediction_type):
    """eps, z_0 and v of one noisy sample are three descriptions of it, for any process."""
    scheduler = OUBridgeScheduler(prediction_type=prediction_type, **config)
    z_0, eps = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    for t in (0, 400, 900):
        z_t = scheduler.add_noise(z_0, eps, t)
        output = {"epsilon": eps, "sample": z_0, "v_prediction": scheduler.get_velocity(z_0, eps, t)}
        assert torch.allclose(scheduler.predict_original_sample(output[prediction_type], t, z_t), z_0, atol=1e-8)


@pytest.mark.parametrize("config", PROCESSES)
def test_model_input_has_unit_variance(config):
    scheduler = OUBridgeScheduler(**config)
    z_star = torch.tensor(np.broadcast_to(scheduler.config.z_star, 3).copy()).reshape(1, 3, 1).float()
    z_0 = z_star + torch.randn(64, 3, 2000)
    for t in (0, 300, 999):
        x = scheduler.scale_model_input(scheduler.add_noise(z_0, torch.randn_like(z_0), t), t)
        assert x.mean((0, 2)).abs().max() < 0.02
        assert (x.var((0, 2)) - 1).abs().max() < 0.03


@pytest.mark.parametrize("config", PROCESSES)
def test_elbo_weight_is_the_kl_between_two_bridges(config):
    """
    Eq. 4 from its definition: KL between Gaussians with the bridge's variance, means those for eps and eps_theta. At
    the first step the negative log-density of z_0 with variance beta_1 s^2, without its normalizer.
    """
    scheduler = OUBridgeScheduler(**config)
    eps, eps_theta = torch.randn(2, 1, 3, 4, dtype=torch.float64)
    z_0 = torch.randn(1, 3, 4, dtype=torch.float64)
    for t in (0, 1, 2, 250, 998):
        z_t = scheduler.add_noise(z_0, eps, t)
        mu, std = scheduler.bridge_posterior(z_0, z_t, t, t - 1)
        mu_theta, _ = scheduler.bridge_posterior(scheduler.predict_original_sample(eps_theta, t, z_t), z_t, t, t - 1)
        variance = std**2 if t > 0 else betas_in_float64(scheduler)[0] * scheduler.stationary_std**2
        kl = (mu - mu_theta).square().sum() / (2 * variance)
        weight = scheduler.elbo_weight(torch.tensor([t]))
        assert torch.allclose(weight * (eps - eps_theta).square().sum(), kl, rtol=1e-6)


def test_terminal_kl_is_torchs():
    scheduler = OUBridgeScheduler(num_train_timesteps=5, beta_end=0.3, theta=2.0, eta=0.7, z_star=0.3)
    z_0 = torch.randn(2, 3, 4, dtype=torch.float64)
    mean = scheduler.add_noise(z_0, torch.zeros_like(z_0), 4)
    std = (scheduler.add_noise(z_0, torch.ones_like(z_0), 4) - mean).flatten()[0]
    q = torch.distributions.Normal(mean, std)
    p = torch.distributions.Normal(torch.tensor(0.3).double(), torch.tensor(scheduler.stationary_std).double())
    assert torch.allclose(scheduler.terminal_kl(z_0), torch.distributions.kl_divergence(q, p), atol=1e-9)


# ------------------------------------------------------------------------------------------ diffusers' contract


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_outside_float64_inside(dtype):
    scheduler = OUBridgeScheduler(eta=3.0, z_star=[0.1, 0.2, 0.3])
    z, eps = torch.randn(2, 2, 3, 4, dtype=torch.float64).to(dtype)
    exact_z, exact_eps = z.double(), eps.double()
    t = torch.tensor([10, 900])
    pairs = [
        (scheduler.add_noise(z, eps, t), scheduler.add_noise(exact_z, exact_eps, t)),
        (scheduler.scale_model_input(z, t), scheduler.scale_model_input(exact_z, t)),
        (scheduler.get_velocity(z, eps, t), scheduler.get_velocity(exact_z, exact_eps, t)),
        (scheduler.step(eps, 0, z).prev_sample, scheduler.step(exact_eps, 0, exact_z).prev_sample),
    ]
    for half, exact in pairs:
        assert half.dtype == dtype
        # rounded once, at the end: within half a unit in the last place
        assert torch.equal(half, exact.to(dtype)) or (half.double() - exact).abs().max() <= (
            torch.finfo(dtype).eps * exact.abs().max()
        )


def test_timesteps_and_bad_input():
    scheduler = OUBridgeScheduler(num_train_timesteps=100)
    for spacing in ("linspace", "leading", "trailing"):
        scheduler = OUBridgeScheduler(num_train_timesteps=100, timestep_spacing=spacing)
        for n in (1, 7, 33, 100):
            scheduler.set_timesteps(n)
            assert len(set(scheduler.timesteps.tolist())) == n
            assert scheduler.timesteps.tolist() == sorted(scheduler.timesteps.tolist(), reverse=True)
    scheduler.set_timesteps(timesteps=[90, 40, 3])
    assert [scheduler.previous_timestep(t) for t in (90, 40, 3)] == [40, 3, -1]
    z = torch.randn(2, 3, 4)
    for call, words in [
        (lambda: OUBridgeScheduler(theta=0.0), "theta"),
        (lambda: OUBridgeScheduler(eta=-1.0), "eta"),
        (lambda: OUBridgeScheduler(prediction_type="score"), "prediction_type"),
        (lambda: OUBridgeScheduler(beta_start=-1.0), "`beta_start` must lie in [0, 1], got -1.0"),
        (lambda: OUBridgeScheduler(beta_end=2.0), "`beta_end` must lie in [0, 1], got 2.0"),
        (lambda: OUBridgeScheduler(beta_end=math.nan, beta_schedule="scaled_linear"), "`beta_end`"),
        (lambda: OUBridgeScheduler(beta_start=0.0), "first above 0"),
        (lambda: OUBridgeScheduler(2, trained_betas=[1e-17, 0.1]), "first above 0"),  # 1 - 1e-17 is 1
        (lambda: OUBridgeScheduler(2, trained_betas=[0.1, math.nan]), "`trained_betas` must lie in [0, 1]"),
        (lambda: OUBridgeScheduler(2, trained_betas=[0.1, 1.5]), "`trained_betas` must lie in [0, 1]"),
        (lambda: OUBridgeScheduler(2, trained_betas=[1.0, 0.1]), "all but the last below 1"),
        (lambda: OUBridgeScheduler(3, trained_betas=[0.1, 0.2]), "one for each of the 3 `num_train_timesteps`, got 2"),
        (lambda: OUBridgeScheduler(2, trained_betas=[[0.1, 0.2]]), "got shape (1, 2)"),
        (lambda: OUBridgeScheduler(2, trained_betas=[0.1, 1.0]), "'sample' or 'v_prediction'"),
        (lambda: OUBridgeScheduler(clip_sample_range=-1.0), "`clip_sample_range` must be a positive number"),
        (lambda: OUBridgeScheduler(lambda_max_clipped=0.0), "`lambda_max_clipped` must be a positive number"),
        (lambda: OUBridgeScheduler(z_star=[0.0, math.inf]), "`z_star`"),
        (lambda: scheduler.add_noise(z[:1], z[:1], torch.tensor([1, 2, 3])), "one for all 1 samples or one for each"),
        (lambda: scheduler.bridge_posterior(z, z, torch.tensor([5, 6, 7]), 1), "for each, got 3"),
        (lambda: OUBridgeScheduler(beta_schedule="sigmoid"), "trained_betas"),
        (lambda: scheduler.set_timesteps(101), "1..100"),
        (lambda: scheduler.set_timesteps(0), "1..100"),
        (lambda: scheduler.set_timesteps(), "one of the two"),
        (lambda: scheduler.set_timesteps(3, timesteps=[3, 2, 1]), "one of the two"),
        (lambda: scheduler.set_timesteps(timesteps=[1, 2]), "descending"),
        (lambda: scheduler.set_timesteps(timesteps=[100, 2]), "0..99"),
        (lambda: OUBridgeScheduler(100, steps_offset=1).set_timesteps(100), "0..99, got 100..1"),
        (lambda: scheduler.add_noise(z, z, torch.tensor([0, 100])), "-1..99"),
        (lambda: scheduler.add_noise(z, z[:1], 3), "shape"),
        (lambda: scheduler.step(z, 100, z), "0..99"),
        (lambda: scheduler.step(z, -1, z), "0..99"),
        (lambda: scheduler.step(z[:1], 3, z), "shape"),
        (lambda: OUBridgeScheduler(z_star=[1.0, 2.0]).add_noise(z, z, 3), "one per channel"),
        (lambda: scheduler.to_diffusers(type("NoBetas", (), {"__init__": lambda self: None})), "trained_betas"),
    ]:
        with pytest.raises(ValueError, match=re.escape(words)):
            call()


def test_generators_one_per_sample():
    scheduler = OUBridgeScheduler()
    z, eps = torch.randn(2, 3, 2, 4)
    together = scheduler.step(eps, 500, z, generator=[torch.Generator().manual_seed(i) for i in range(3)]).prev_sample
    for i in range(3):
        alone = scheduler.step(
            eps[i : i + 1], 500, z[i : i + 1], generator=torch.Generator().manual_seed(i)
        ).prev_sample
        assert torch.allclose(together[i : i + 1], alone)


def test_one_training_timestep():
    scheduler = OUBridgeScheduler(num_train_timesteps=1)
    scheduler.set_timesteps(1)
    z, eps = torch.randn(2, 1, 2, 3, dtype=torch.float64)
    z_t = scheduler.add_noise(z, eps, 0)
    assert torch.allclose(scheduler.step(eps, 0, z_t).prev_sample, z, atol=1e-10)
