"""The models of the toy: exact denoiser against Bayes' rule, sizes, saving, and 1-D networks in the objectives."""

import math

import pytest
import torch
from diffusers import UNet1DModel

from diffusion_bridge_vq import OUBridgeScheduler
from diffusion_bridge_vq.models import denoise
from diffusion_bridge_vq.sampling import sample_latents
from diffusion_bridge_vq.toy.networks import (
    MixtureDenoiser,
    PaperSequenceDenoiser,
    SequenceDenoiser,
    SequenceVQModel,
)
from diffusion_bridge_vq.toy.training import toy_scheduler
from diffusion_bridge_vq.toy.walks import (
    all_toy_sequences,
    draw_toy_latents,
    draw_toy_sequences,
    is_toy_walk,
    toy_codebook,
)
from diffusion_bridge_vq.training import E2EObjective, PriorObjective

BRIDGE = {"num_train_timesteps": 10, "beta_start": 0.05, "beta_end": 0.4, "theta": 2.0, "eta": 0.8}


def test_mixture_denoiser_is_bayes_rule():
    """E[z_0 | z_t] by importance weighting of draws from the prior."""
    scheduler = OUBridgeScheduler(**BRIDGE, prediction_type="sample")
    std, t = 0.3, 4
    means = torch.randn(6, 2, 3)
    network = MixtureDenoiser(means, std, scheduler)
    n = 400_000
    z_0 = means[torch.randint(6, (n,))] + std * torch.randn(n, 2, 3)
    abar = math.prod(1 - (0.05 + i * 0.35 / 9) for i in range(t + 1))
    variance = 0.8**2 / 4 * (1 - abar)
    z_t = abar**0.5 * z_0[0] + variance**0.5 * torch.randn(2, 3)
    weights = (-(z_t - abar**0.5 * z_0).square().sum((1, 2)) / (2 * variance)).softmax(0)
    assert 1 / weights.square().sum() > 500  # enough draws count
    expected = (weights[:, None, None] * z_0).sum(0)
    got = denoise(network, scheduler, z_t[None], torch.tensor([t]))[0]
    torch.testing.assert_close(got, expected, atol=0.05, rtol=0)


def test_the_papers_network_has_about_5000_weights():
    assert sum(p.numel() for p in PaperSequenceDenoiser().parameters()) == 4994


@pytest.mark.parametrize("cls", [SequenceDenoiser, PaperSequenceDenoiser])
def test_networks_see_position_and_time_and_can_be_saved(tmp_path, cls):
    network = cls().eval()
    x = torch.randn(3, 2, 5, requires_grad=True)
    output = network(x, torch.tensor(7))
    torch.testing.assert_close(output, network(x, torch.full((3,), 7)))
    assert (output - network(x, torch.tensor(30))).abs().max() > 1e-4
    gradient = torch.autograd.grad(output[0, 0, 2], x)[0]
    assert (gradient[0] != 0).any(0)[1:4].all() and not gradient[1:].any()  # neighbors, never other samples
    network.save_pretrained(tmp_path)
    torch.testing.assert_close(cls.from_pretrained(tmp_path)(x, torch.tensor(7)), output)


def test_residual_network_gives_weighted_means_of_its_vectors():
    """So its output stays in their convex hull, wherever the input is."""
    network = SequenceDenoiser(num_vectors=4)
    with torch.no_grad():
        network.vectors.weight.copy_(torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]]))
        network.vectors.bias.zero_()
        output = network(100 * torch.randn(500, 2, 5), torch.tensor(0))
    assert output.abs().sum(dim=1).max() <= 1 + 1e-5


def test_sequence_autoencoder_is_its_quantizer():
    model = SequenceVQModel(2, 8).eval()
    x = torch.randn(4, 2, 5)
    assert torch.equal(model.encode(x).latents, x)
    nearest = torch.cdist(x.transpose(1, 2), model.quantize.embedding.weight).argmin(-1)
    z_q = model.quantize.embedding.weight[nearest].transpose(1, 2)
    torch.testing.assert_close(model.decode(x).sample, z_q)
    torch.testing.assert_close(model.decode(z_q, force_not_quantize=True).sample, z_q)


def unet_1d() -> UNet1DModel:
    return UNet1DModel(
        in_channels=2,
        out_channels=2,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock1DNoSkip", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1DNoSkip"),
        time_embedding_type="positional",
        extra_in_channels=32,
    )


@pytest.mark.parametrize(("make", "mode"), [(unet_1d, None), (SequenceDenoiser, None), (SequenceDenoiser, "stable")])
def test_one_dimensional_networks_run_through_the_objectives(make, mode):
    """diffusers' 1-D U-Net and the toy's network learn: the loss falls, and the sampling loop takes (B, d, N)."""
    network, vqvae = make(), SequenceVQModel()
    with torch.no_grad():
        vqvae.quantize.embedding.weight.copy_(toy_codebook())
    scheduler = OUBridgeScheduler(**BRIDGE, prediction_type="sample")
    parts = (vqvae, network, scheduler)
    objective = PriorObjective(*parts) if mode is None else E2EObjective(*parts, mode)
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(40):
        output = objective(draw_toy_latents(draw_toy_sequences(64)))
        losses.append(output.losses["prior"].item())
        sum(output.losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    z_0 = sample_latents(network.eval(), scheduler, (4, 2, 5), 10, solver="ancestral")
    assert z_0.shape == (4, 2, 5) and z_0.isfinite().all()


def test_exact_denoiser_samples_valid_sequences_only():
    scheduler = toy_scheduler()
    means = toy_codebook()[all_toy_sequences()].transpose(1, 2)
    z_0 = sample_latents(MixtureDenoiser(means, 0.05, scheduler), scheduler, (2000, 2, 5), 50, solver="ancestral")
    codes = torch.cdist(z_0.transpose(1, 2), toy_codebook()).argmin(-1)
    assert is_toy_walk(codes).float().mean() > 0.995
    assert len(codes.unique(dim=0)) > 120
    residual = z_0 - toy_codebook()[codes].transpose(1, 2)
    assert abs(residual.std() - 0.05) < 0.01  # the noise of the data comes back too
