"""The toy's measures on hand-made samples, and a trained network against the enumerated conditional law."""

import pytest
import torch

from diffusion_bridge_vq import OUBridgeScheduler
from diffusion_bridge_vq.sampling import inpaint_latents, sample_latents
from diffusion_bridge_vq.toy.analysis import forward_path, total_variation, toy_codes, valid_share
from diffusion_bridge_vq.toy.networks import MixtureDenoiser, SequenceVQModel
from diffusion_bridge_vq.toy.training import ToyConfig, toy_scheduler, train_toy
from diffusion_bridge_vq.toy.walks import all_toy_sequences, draw_toy_sequences, fix_toy_positions, toy_codebook


def test_valid_share():
    sequences = torch.tensor([[0, 1, 2, 3, 4]] * 3 + [[0, 7, 0, 1, 2]] + [[0, 1, 3, 4, 5]])
    share = valid_share(sequences)
    assert (share.successes, share.trials) == (4, 5) and share.low < 0.8 < share.high
    assert str(share).startswith("0.800 (4 of 5, 95 % interval 0.376 to 0.964)")  # Wilson's, by hand


def test_total_variation():
    assert total_variation(all_toy_sequences()) == pytest.approx(0)
    both = torch.tensor([[0, 1, 2, 3, 4], [0, 7, 6, 5, 4]])
    fixed = {1: 0, 5: 4}
    assert total_variation(both, fixed) == pytest.approx(0)
    assert total_variation(both[:1], fixed) == pytest.approx(0.5)
    assert total_variation(both[[0, 0, 0, 1]], fixed) == pytest.approx(0.25)
    assert total_variation(torch.zeros(3, 5, dtype=torch.long), fixed) == pytest.approx(1)
    assert total_variation(both, {3: 2}) == pytest.approx(15 / 16)  # one of the sixteen, half of the time


def test_codes_are_told_by_where_they_are_not_by_their_number():
    vqvae, order = SequenceVQModel(), torch.randperm(8)
    with torch.no_grad():
        vqvae.quantize.embedding.weight.copy_(1.1 * toy_codebook()[order])
    sequences = draw_toy_sequences(50)
    latents = toy_codebook()[sequences].transpose(1, 2)
    assert torch.equal(toy_codes(vqvae, latents), sequences)


def test_forward_path_is_markov_with_the_right_marginals():
    """Moments at every t, and the correlation of neighbors, which single marginals would not have."""
    scheduler = OUBridgeScheduler(20, beta_start=0.02, beta_end=0.3, theta=2.0, eta=0.8, z_star=0.5)
    n, s2 = 20_000, 0.8**2 / 4
    path = forward_path(scheduler, torch.full((n, 1, 1), 2.0))[..., 0, 0]
    assert path.shape == (21, n)
    abar = 1.0
    for t in range(1, 21):
        alpha = 1 - (0.02 + (t - 1) * 0.28 / 19)
        before, abar = abar, abar * alpha
        assert path[t].mean() == pytest.approx(0.5 + abar**0.5 * 1.5, abs=0.015)
        assert path[t].var() == pytest.approx(s2 * (1 - abar), rel=0.05)
        covariance = ((path[t] - path[t].mean()) * (path[t - 1] - path[t - 1].mean())).mean()
        assert covariance == pytest.approx(alpha**0.5 * s2 * (1 - before), abs=0.01)


def complete(network, scheduler, vqvae, fixed: dict[int, int], n: int, **options) -> torch.Tensor:
    known, mask = fix_toy_positions(fixed)
    generator = torch.Generator().manual_seed(3)
    z_0 = inpaint_latents(network, scheduler, known.expand(n, -1, -1), mask, 50, generator, **options)
    return toy_codes(vqvae, z_0)


@pytest.mark.slow
def test_trained_network_follows_the_enumerated_laws():
    """Unconditional: walks. q_1 = 0 and q_5 = 4 leave (0, 1, 2, 3, 4) and (0, 7, 6, 5, 4), with equal chance."""
    model = train_toy(ToyConfig(), seed=0)
    z_0 = sample_latents(
        model.unet, model.scheduler, (2000, 2, 5), 50, torch.Generator().manual_seed(3), solver="ancestral"
    )
    assert valid_share(toy_codes(model.vqvae, z_0)).low > 0.95
    fixed = {1: 0, 5: 4}
    sequences = complete(model.unet, model.scheduler, model.vqvae, fixed, 2000, jump_n_sample=10)
    assert (sequences[:, 0] == 0).all() and (sequences[:, 4] == 4).all()
    assert total_variation(sequences, fixed) <= 0.05


def test_exact_denoiser_follows_the_enumerated_conditional_law_with_resampling():
    """The sampler alone. Without resampling, appendix 7 to the letter, a third of the sequences isn't valid."""
    scheduler, vqvae = toy_scheduler(), SequenceVQModel()
    with torch.no_grad():
        vqvae.quantize.embedding.weight.copy_(toy_codebook())
    means = toy_codebook()[all_toy_sequences()].transpose(1, 2)
    network, fixed = MixtureDenoiser(means, 0.05, scheduler), {1: 0, 5: 4}
    resampled = complete(network, scheduler, vqvae, fixed, 2000, jump_n_sample=10)
    assert total_variation(resampled, fixed) < 0.05
    plain = complete(network, scheduler, vqvae, fixed, 2000)
    assert 0.55 < valid_share(plain).successes / 2000 < 0.75


def test_end_to_end_moves_the_codes_and_the_regularization_has_a_say():
    settings = {"end_to_end": True, "max_train_steps": 5, "batch_size": 16}
    models = [train_toy(ToyConfig(regularization=form, **settings), seed=0) for form in ("gamma", "none")]
    moved = [model.vqvae.quantize.embedding.weight - model.initial_codebook for model in models]
    assert all(way.any() for way in moved)
    assert not torch.equal(*moved)


@pytest.mark.slow
def test_end_to_end_places_every_code():
    """From random codes, of which several share the nearest true point, each true point gets one of its own."""
    settings = {"max_train_steps": 2500, "batch_size": 64, "learning_rate": 1e-2}
    model = train_toy(ToyConfig(network="paper", end_to_end=True, **settings), seed=1)
    torch.testing.assert_close(model.initial_codebook.norm(dim=1), torch.ones(8))
    nearest = [
        torch.cdist(codes, toy_codebook()).argmin(1).unique()
        for codes in (model.initial_codebook, model.vqvae.quantize.embedding.weight)
    ]
    assert len(nearest[0]) < 6 and len(nearest[1]) == 8
