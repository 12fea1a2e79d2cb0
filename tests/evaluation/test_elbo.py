"""The bound on Gaussian data with the exact denoiser, where every term has a closed form."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_models import make_autoencoder, make_unet

from diffusion_bridge_vq import OUBridgeScheduler
from diffusion_bridge_vq.evaluation import bridge_elbo
from diffusion_bridge_vq.toy.networks import MixtureDenoiser, SequenceVQModel

STD = 0.6
MEAN = torch.tensor([[0.5, -1.0, 0.2], [1.5, 0.0, -0.4]])  # (d, N)


def gaussian_case(betas: list[float], n: int):
    """z_0 ~ N(MEAN, STD^2), its exact denoiser, s = 0.8, and a codebook of four codes."""
    scheduler = OUBridgeScheduler(len(betas), trained_betas=betas, theta=2.0, eta=1.6, prediction_type="sample")
    vqvae = SequenceVQModel(2, 4).eval()
    x = MEAN + STD * torch.randn(n, 2, 3)
    return vqvae, MixtureDenoiser(MEAN[None], STD, scheduler).eval(), scheduler, x


COARSE = torch.linspace(0.1, 0.6, 12, dtype=torch.float64).tolist()


def closed_form(betas: list[float], s: float, x: torch.Tensor) -> tuple[float, float, float]:
    """
    Nats per coordinate, by one-dimensional Gaussians: sum_t -L_t, terminal KL (both in expectation over
    z_0 ~ N(m, STD^2) but for the terminal one, which is taken on x), and -E log p(z_0) of the generative chain.
    """
    abar, prior = 1.0, 0.0
    steps = []  # z_{t-1} = a z_t + b m + noise of variance v, which is the model's reverse step
    for t, beta in enumerate(betas, start=1):
        alpha, before, abar = 1 - beta, abar, abar * (1 - beta)
        noise = s**2 * (1 - abar)
        gain = math.sqrt(abar) * STD**2 / (abar * STD**2 + noise)  # E[z_0 | z_t] = m + gain (z_t - sqrt(abar) m)
        posterior_variance = STD**2 * noise / (abar * STD**2 + noise)
        if t == 1:
            variance, c_original, c_sample = beta * s**2, 1.0, 0.0
            prior += 0.5 * math.log(2 * math.pi * variance) + posterior_variance / (2 * variance)
        else:
            variance = s**2 * (1 - before) / (1 - abar) * beta
            c_original, c_sample = math.sqrt(before) * beta / (1 - abar), math.sqrt(alpha) * (1 - before) / (1 - abar)
            prior += c_original**2 * posterior_variance / (2 * variance)
        steps.append((c_original * gain + c_sample, c_original * (1 - gain * math.sqrt(abar)), variance))
    terminal = 0.5 * (abar * ((x.double() / s) ** 2).mean().item() - abar - math.log(1 - abar))
    offset, variance = 0.0, s**2  # p(z_T) = N(0, s^2); means are offset * m
    for a, b, v in reversed(steps):
        offset, variance = a * offset + b, a**2 * variance + v
    error = STD**2 + (MEAN.double() * (1 - offset)).square().mean().item()
    return prior, terminal, 0.5 * math.log(2 * math.pi * variance) + error / (2 * variance)


def test_terms_have_their_closed_forms():
    """Twelve coarse steps, where the KLs are far from 0, and 20,000 images; the standard error is about 0.5 %."""
    vqvae, network, scheduler, x = gaussian_case(COARSE, 20_000)
    elbo = bridge_elbo(vqvae, network, scheduler, x, torch.Generator().manual_seed(1), variance=0.3, batch_size=5000)
    prior, terminal, nll = closed_form(COARSE, 0.8, x)
    assert elbo.prior * math.log(2) == pytest.approx(prior, rel=0.015)
    assert elbo.terminal * math.log(2) == pytest.approx(terminal, rel=1e-4)
    assert nll + 0.1 < prior + terminal  # the bound isn't tight here
    nearest = torch.cdist(x.transpose(1, 2), vqvae.quantize.embedding.weight).amin(dim=-1)
    squared = nearest.square().double().mean().item() / 2  # of a point of two coordinates
    reconstruction = 0.5 * math.log(2 * math.pi * 0.3) + squared / 0.6
    assert elbo.reconstruction * math.log(2) == pytest.approx(reconstruction, rel=1e-5)
    assert elbo.total == pytest.approx(elbo.reconstruction + elbo.prior + elbo.terminal)
    assert elbo.variance == 0.3


def test_many_steps_close_the_gap_to_the_log_likelihood():
    """Steps that raise the noise-to-signal ratio by the same factor: -E log p(z_0) is the data's entropy then."""
    entropy, gaps = 0.5 * math.log(2 * math.pi * math.e * STD**2), []
    for steps in (100, 400):
        noise_to_signal = torch.logspace(-3, 3, steps, dtype=torch.float64)
        abar = torch.cat([torch.ones(1, dtype=torch.float64), 1 / (1 + noise_to_signal)])
        betas = (1 - abar[1:] / abar[:-1]).tolist()
        vqvae, network, scheduler, x = gaussian_case(betas, 1000)
        elbo = bridge_elbo(
            vqvae, network, scheduler, x, torch.Generator().manual_seed(1), variance=0.3, batch_size=1000
        )
        prior, terminal, nll = closed_form(betas, 0.8, x)
        assert nll == pytest.approx(entropy, abs=2e-3)
        assert (elbo.prior + elbo.terminal) * math.log(2) == pytest.approx(prior + terminal, abs=0.03)
        gaps.append(prior + terminal - nll)
    assert 0 < gaps[1] < 0.06 and gaps[0] / gaps[1] == pytest.approx(4, rel=0.1)  # second order in log steps


def test_variance_of_largest_likelihood():
    vqvae, network, scheduler, x = gaussian_case([0.1, 0.2, 0.3], 50)
    best = bridge_elbo(vqvae, network, scheduler, x)
    mse = (vqvae.decode(x).sample - x).square().double().mean().item()
    assert best.variance == pytest.approx(mse)
    assert best.reconstruction == pytest.approx(0.5 * math.log2(2 * math.pi * math.e * mse))
    for variance in (0.9 * mse, 1.1 * mse):
        assert bridge_elbo(vqvae, network, scheduler, x, variance=variance).reconstruction > best.reconstruction


def test_random_timesteps_estimate_the_whole_sum():
    vqvae, network, scheduler, x = gaussian_case(COARSE, 20_000)
    elbo = bridge_elbo(
        vqvae, network, scheduler, x, torch.Generator().manual_seed(2), timesteps_per_image=10, batch_size=5000
    )
    prior, _, _ = closed_form(COARSE, 0.8, x)
    assert elbo.prior * math.log(2) == pytest.approx(prior, rel=0.03)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_image_models(prediction_type):
    """Per image, not per coordinate: bits per dimension of pixels. An untrained U-Net against eq. 4 written out."""
    vqvae = make_autoencoder(latent_channels=4).eval()
    unet = make_unet(levels=1, in_channels=4, out_channels=4).eval()
    scheduler = OUBridgeScheduler(5, trained_betas=[0.1, 0.2, 0.3, 0.4, 0.5], eta=2.0, prediction_type=prediction_type)
    images = torch.rand(3, 3, 8, 8) * 2 - 1
    elbo = bridge_elbo(vqvae, unet, scheduler, images, torch.Generator().manual_seed(4), batch_size=3)

    generator, nats = torch.Generator().manual_seed(4), 0.0
    with torch.no_grad():
        z_0 = vqvae.encode(images).latents
        assert z_0.shape == (3, 4, 4, 4)
        for i in range(5):
            noise = torch.randn(z_0.shape, generator=generator)
            z_t = scheduler.add_noise(z_0, noise, i)
            output = unet(scheduler.scale_model_input(z_t, i), i).sample
            predicted = scheduler.predict_original_sample(output, i, z_t)
            mean, std = scheduler.bridge_posterior(predicted, z_t, i, i - 1)
            true_mean, _ = scheduler.bridge_posterior(z_0, z_t, i, i - 1)
            variance = 2.0 * 0.1 if i == 0 else std.double() ** 2  # s^2 = 2
            nats += ((mean - true_mean).double().square() / (2 * variance)).sum().item()
        nats += z_0.numel() * 0.5 * math.log(2 * math.pi * 2.0 * 0.1)
        mse = (vqvae.decode(z_0).sample - images).square().mean().item()
    assert elbo.prior == pytest.approx(nats / images.numel() / math.log(2), rel=1e-4)
    assert elbo.variance == pytest.approx(mse, rel=1e-5)


def test_what_is_refused():
    vqvae, network, scheduler, x = gaussian_case([0.1, 0.2, 0.3], 4)
    for options, message in (
        ({"timesteps_per_image": 0}, "timesteps_per_image"),
        ({"variance": 0.0}, "variance"),
        ({"batch_size": 0}, "batch_size"),
    ):
        with pytest.raises(ValueError, match=message):
            bridge_elbo(vqvae, network, scheduler, x, **options)
    with pytest.raises(ValueError, match="not empty"):
        bridge_elbo(vqvae, network, scheduler, x[:0])
    with pytest.raises(ValueError, match="DDIMScheduler"):
        bridge_elbo(vqvae, network, DDIMScheduler(), x)
    with pytest.raises(ValueError, match="training mode"):
        bridge_elbo(vqvae.train(), network, scheduler, x)
    codes = vqvae.eval().quantize.embedding.weight.detach()[:3].T.expand(4, -1, -1)
    with pytest.raises(ValueError, match="give `variance`"):
        bridge_elbo(vqvae, network, scheduler, codes)
