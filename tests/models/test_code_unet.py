"""`CodeUNet2DModel` against Bayes' rule, written out for every code, and against laws whose entropy is known."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from tiny_models import unet_settings

from diffusion_bridge_vq import OUBridgeScheduler
from diffusion_bridge_vq.evaluation.code_bits import bridge_code_bits
from diffusion_bridge_vq.models import CodeUNet2DModel, GumbelSoftmaxQuantizer, denoise
from diffusion_bridge_vq.sampling import sample_latents

K, D = 6, 3
Z_STAR = [0.5, -1.0, 2.0]


@pytest.fixture
def scheduler() -> OUBridgeScheduler:
    return OUBridgeScheduler(
        100, beta_schedule="squaredcos_cap_v2", theta=0.5, eta=2.0, z_star=Z_STAR, prediction_type="sample"
    )


def make_unet(scheduler: OUBridgeScheduler, codebook: torch.Tensor, **kwargs) -> CodeUNet2DModel:
    settings = unet_settings(sample_size=4, in_channels=D, out_channels=D, **kwargs)
    unet = CodeUNet2DModel(**settings, num_codes=K, num_noise_levels=len(scheduler)).eval()
    snr = scheduler.signal_to_noise(torch.arange(len(scheduler)))
    unet.set_process(codebook, snr.log(), torch.tensor(scheduler.config.z_star))
    return unet


def know_shares(unet: CodeUNet2DModel, shares: torch.Tensor) -> None:
    """The network of codes that are drawn independently with these frequencies: constant logits."""
    torch.nn.init.zeros_(unet.conv_out.weight)
    unet.conv_out.bias.data = shares.log()


@torch.no_grad()
def test_the_posterior_is_bayes_rule(scheduler):
    """In the latents' own coordinates: q(z_t | e_k) has mean z* + sqrt(abar) (e_k - z*), variance s^2 (1 - abar)."""
    codebook, shares = torch.randn(K, D), torch.rand(K).softmax(0)
    unet = make_unet(scheduler, codebook)
    know_shares(unet, shares)
    for t in (0, 30, 70, 99):
        codes = torch.randint(K, (2, 4, 4))
        z_t = scheduler.add_noise(codebook[codes].movedim(-1, 1), torch.randn(2, D, 4, 4), torch.tensor(t))
        found = denoise(unet, scheduler, z_t, torch.tensor(t))
        abar = math.prod(1 - beta for beta in scheduler.betas.double().tolist()[: t + 1])
        variance = 2.0**2 / (2 * 0.5) * (1 - abar)
        z_star = torch.tensor(Z_STAR, dtype=torch.float64)
        for b, i, j in [(0, 0, 0), (1, 2, 3)]:
            z = z_t[b, :, i, j].double()
            weights = [
                p * math.exp(-float((z - z_star - math.sqrt(abar) * (e - z_star)).square().sum()) / (2 * variance))
                for p, e in zip(shares.tolist(), codebook.double(), strict=True)
            ]
            mean = sum(w * e for w, e in zip(weights, codebook.double(), strict=True)) / sum(weights)
            torch.testing.assert_close(found[b, :, i, j].double(), mean, atol=2e-4, rtol=2e-4)


def test_samples_follow_the_law_of_independent_codes(scheduler):
    """The exact posterior mean draws every code as often as it occurs, by ancestral steps and stock solvers."""
    codebook, shares = (
        2 * torch.randn(K, D, generator=torch.Generator().manual_seed(1)),
        torch.tensor([0.4, 0.25, 0.15, 0.1, 0.07, 0.03]),
    )
    unet = make_unet(scheduler, codebook)
    know_shares(unet, shares)
    quantizer = GumbelSoftmaxQuantizer(K, D)
    quantizer.embedding.weight.data = codebook
    stock = [scheduler.to_diffusers(cls) for cls in (EulerDiscreteScheduler, DDIMScheduler)]
    for taken, solver in ((scheduler, "ancestral"), *((one, None) for one in stock)):
        generator = torch.Generator().manual_seed(0)
        z_0 = sample_latents(unet, taken, (250, D, 4, 4), 100, generator=generator, solver=solver)
        codes = quantizer.encode_codes(z_0)
        torch.testing.assert_close(
            torch.bincount(codes.flatten(), minlength=K) / codes.numel(), shares, atol=0.03, rtol=0
        )


def test_bits_of_independent_codes_are_their_entropy(scheduler):
    codebook, shares = torch.randn(K, D), torch.tensor([0.4, 0.25, 0.15, 0.1, 0.07, 0.03])
    unet = make_unet(scheduler, codebook)
    know_shares(unet, shares)
    quantizer = GumbelSoftmaxQuantizer(K, D)
    quantizer.embedding.weight.data = codebook
    codes = torch.multinomial(shares, 400 * 16, replacement=True).reshape(400, 4, 4)
    bits = bridge_code_bits(unet, scheduler, quantizer, codes, torch.Generator().manual_seed(0)).mean()
    entropy = -(shares * shares.log2()).sum()
    assert abs(bits - entropy) < 0.08  # 2.19 bits; of equal shares it would be 2.58
