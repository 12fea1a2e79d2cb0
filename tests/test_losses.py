"""Every term of the objective against torch.distributions, enumeration or a formula written out in float64."""

import math

import pytest
import torch
from tiny_models import make_autoencoder, make_unet
from torch.distributions import Categorical, kl_divergence

from diffusion_bridge_vq import OUBridgeScheduler
from diffusion_bridge_vq.losses import (
    categorical_kl,
    prior_loss,
    prior_temperature,
    reconstruction_loss,
    regularization_loss,
    terminal_loss,
)
from diffusion_bridge_vq.models import GumbelSoftmaxQuantizer
from diffusion_bridge_vq.training import PriorObjective


def squared_distances(z: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """(B, d, h, w), (K, d) -> (B, h, w, K), by the definition."""
    return (z.movedim(1, -1)[..., None, :] - codebook).square().sum(-1)


def test_categorical_kl_is_torchs():
    logits = 3 * torch.randn(4, 5, 7, dtype=torch.float64)
    tau_t = torch.rand(4, 1, 1, dtype=torch.float64) + 0.1
    expected = kl_divergence(Categorical(logits=logits / 0.7), Categorical(logits=logits / tau_t))
    assert torch.allclose(categorical_kl(logits, 0.7, tau_t), expected, atol=1e-10)


def test_kl_form_is_equation_5():
    scheduler, quantizer = OUBridgeScheduler(num_train_timesteps=10), GumbelSoftmaxQuantizer(6, 3).double()
    z, t = torch.randn(2, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 9])
    d = squared_distances(z, quantizer.embedding.weight)
    tau_t = torch.tensor([10 - 9.9 * 0.1, 0.1])  # paper time 1 and T = 10 of the line from 10 to 0.1
    assert torch.allclose(prior_temperature(scheduler, t), tau_t)
    kl = kl_divergence(Categorical(logits=-d), Categorical(logits=-d / tau_t[:, None, None, None])).mean() / 3
    assert torch.allclose(regularization_loss(scheduler, quantizer, z, t, "kl").double(), kl, rtol=1e-5)


def test_gamma_form_is_appendix_8_on_average():
    """
    E_q gamma_t ||z - zhat||^2 / d over the exact q, against the mean of 40,000 draws; signs at both ends of time.
    """
    scheduler, quantizer = OUBridgeScheduler(num_train_timesteps=10), GumbelSoftmaxQuantizer(6, 3)
    z = 0.7 * torch.randn(1, 3, 1, 1)
    d = squared_distances(z, quantizer.embedding.weight)[0, 0, 0]
    expected_distance = (torch.softmax(-d, 0) * d).sum()
    many = z.expand(40_000, 3, 1, 1)
    for t, gamma in ((-1, 1 - 1 / 10), (4, 1 - 1 / 5.05), (9, 1 - 1 / 0.1)):
        loss = regularization_loss(scheduler, quantizer, many, torch.full((40_000,), t), "gamma")
        assert loss.item() == pytest.approx((gamma * expected_distance / 3).item(), rel=0.03)


def test_gamma_pulls_early_and_pushes_late():
    scheduler, quantizer = OUBridgeScheduler(num_train_timesteps=10), GumbelSoftmaxQuantizer(1, 2)
    quantizer.embedding.weight.data.zero_()
    for t, sign in ((-1, 1), (9, -1)):
        z = torch.tensor([[1.0, 0.0]]).reshape(1, 2, 1, 1).requires_grad_()
        regularization_loss(scheduler, quantizer, z, torch.tensor([t]), "gamma").backward()
        assert math.copysign(1, z.grad[0, 0, 0, 0]) == sign  # descent moves z towards the code, or away
        assert math.copysign(1, quantizer.embedding.weight.grad[0, 0]) == -sign  # and the code towards z, or away
        quantizer.embedding.weight.grad = None


def test_t_zero_limit_is_the_vq_vae_loss():
    """
    T = 0: q a Dirac at the nearest code (tau -> 0), p = softmax(-d). Eq. 5 must become
    ||z_e - zhat||^2 + log sum_k exp(-||z_e - e_k||^2), which is what the quantizer reports as its loss.
    """
    quantizer = GumbelSoftmaxQuantizer(6, 3, commitment_weight=1.0).double().eval()
    z = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    d = squared_distances(z, quantizer.embedding.weight)
    vq_loss = (d.min(-1).values + torch.logsumexp(-d, -1)).mean() / 3
    limit = categorical_kl(-d, 1e-9, 1.0).mean() / 3
    assert torch.allclose(limit, vq_loss, atol=1e-10)
    assert torch.allclose(quantizer(z)[1].double(), vq_loss, rtol=1e-5)


@pytest.mark.parametrize("config", [{}, {"theta": 0.5, "eta": 3.0, "z_star": 0.4}])
def test_weighting_is_the_same_elbo_for_every_prediction(config):
    """One error of the noise, given as eps, z_0 and v: eq. 4 must not depend on which."""
    t = torch.tensor([0, 3, 500, 990])
    z_0, eps, eps_theta = torch.randn(3, 4, 2, 3, 3, dtype=torch.float64)
    scheduler = OUBridgeScheduler(**config)
    z_t = scheduler.add_noise(z_0, eps, t)
    z_theta = scheduler.predict_original_sample(eps_theta, t, z_t)
    outputs = {
        "epsilon": eps_theta,
        "sample": z_theta,
        "v_prediction": scheduler.get_velocity(z_theta, eps_theta, t),
    }
    errors = (eps - eps_theta).square().flatten(1).mean(1)
    elbo = (scheduler.elbo_weight(t) * errors).mean()
    # min(SNR, 5) on the error of z_0 in the coordinates x, from the definition of the ratio
    abar, s2 = scheduler.alphas_cumprod.double()[t], scheduler.stationary_std**2
    snr = abar / (s2 * (1 - abar))
    errors_z_0 = (z_0 - z_theta).square().flatten(1).mean(1)
    min_snr = (torch.where(snr > 5, 5, snr) * errors_z_0).mean()
    clamped = (torch.where(snr > 5, 5, torch.where(snr < 1, 1, snr)) * errors_z_0).mean()
    for prediction, output in outputs.items():
        s = OUBridgeScheduler(prediction_type=prediction, **config)
        assert torch.allclose(prior_loss(s, output, z_0, eps, t, "elbo").double(), elbo, rtol=2e-3)
        assert torch.allclose(prior_loss(s, output, z_0, eps, t, "min_snr").double(), min_snr, rtol=2e-3)
        assert torch.allclose(prior_loss(s, output, z_0, eps, t, "clamped_snr").double(), clamped, rtol=2e-3)
    simple = prior_loss(scheduler, eps_theta, z_0, eps, t, "simple")
    assert torch.allclose(simple.double(), errors.mean(), rtol=1e-5)
    with pytest.raises(ValueError, match="elbo, simple, min_snr or clamped_snr"):
        prior_loss(scheduler, eps_theta, z_0, eps, t, "snr")


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
@pytest.mark.parametrize("s", [1.0, 2.0])
def test_a_last_step_that_leaves_noise_alone(prediction, s):
    """abar_T = 0: eq. 4 from its definition, the KL between two bridges; min(SNR, 5) = 0 at T, max(1, ...) = 1."""
    betas = [0.1, 0.5, 1.0]
    scheduler = OUBridgeScheduler(3, trained_betas=betas, eta=s * math.sqrt(2), prediction_type=prediction)
    z_0, eps, output = torch.randn(3, 1, 2, 3, 3, dtype=torch.float64)
    for t, abar in enumerate((0.9, 0.45, 0.0)):
        z_t = scheduler.add_noise(z_0, eps, t)
        z_theta = scheduler.predict_original_sample(output, t, z_t)
        mu, std = scheduler.bridge_posterior(z_0, z_t, t, t - 1)
        mu_theta, _ = scheduler.bridge_posterior(z_theta, z_t, t, t - 1)
        variance = std**2 if t else 0.1 * s**2
        elbo = (mu - mu_theta).square().mean() / (2 * variance)
        snr, error = abar / (s**2 * (1 - abar)), (z_0 - z_theta).square().mean()
        min_snr, clamped = min(snr, 5.0) * error, max(1.0, min(snr, 5.0)) * error
        timesteps = torch.tensor([t])
        for weighting, expected in (("elbo", elbo), ("min_snr", min_snr), ("clamped_snr", clamped)):
            found = prior_loss(scheduler, output, z_0, eps, timesteps, weighting)
            assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_whole_elbo_in_nats_for_gaussian_data():
    """
    z_0 ~ N(0, 1), s = 1, the exact network. The true reverse step has variance beta_t, the model's the bridge's, so
    that
    -ELBO = entropy + sum_{t > 1} KL(N(m, beta_t) || N(m, bridge variance)), exactly. This ties eq. 4, the first step's
    Gaussian and L_T together.
    """
    scheduler = OUBridgeScheduler(num_train_timesteps=200, beta_start=1e-3, beta_end=0.1)
    t = torch.arange(200)
    # x_t ~ N(0, 1) and E[eps | z_t] = sqrt(1 - abar) z_t, whose mean squared error is abar
    diffusion = (scheduler.elbo_weight(t) * scheduler.alphas_cumprod.double()).sum()
    beta = torch.linspace(1e-3, 0.1, 200, dtype=torch.float64)
    normalizer = 0.5 * math.log(2 * math.pi * beta[0].item())  # of -log p(z_0 | z_1)
    z_0 = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(2, 1, 1)  # mean square 1, as N(0, 1)
    minus_elbo = diffusion + normalizer + terminal_loss(scheduler, z_0)

    abar = torch.cumprod(1 - beta, 0)
    bridge = (1 - abar[:-1]) / (1 - abar[1:]) * beta[1:]
    ratio = beta[1:] / bridge
    expected = 0.5 * math.log(2 * math.pi * math.e) + 0.5 * (ratio - 1 - ratio.log()).sum()
    assert minus_elbo.item() == pytest.approx(expected.item(), abs=1e-4)


def test_reconstruction_loss():
    x, y = torch.randn(2, 2, 3, 4, 4)
    expected = (x - y).square().mean() + 0.3 * (x - y).abs().mean()
    assert torch.allclose(reconstruction_loss(x, y, 0.3), expected)


def test_clamped_weights_of_a_network_that_predicts_the_noise_are_refused():
    """They have no bound: the first loss was 15 million."""
    vqvae, unet = make_autoencoder(3), make_unet()
    for prediction in ("sample", "v_prediction"):
        PriorObjective(vqvae, unet, OUBridgeScheduler(prediction_type=prediction), "clamped_snr")
    with pytest.raises(ValueError, match=r"predicts the noise \(epsilon\): take min_snr"):
        PriorObjective(vqvae, unet, OUBridgeScheduler(prediction_type="epsilon"), "clamped_snr")
