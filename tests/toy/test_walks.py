"""The toy's law against enumeration by another route."""

import itertools

import pytest
import torch

from diffusion_bridge_vq.toy.walks import (
    all_toy_sequences,
    draw_toy_latents,
    draw_toy_sequences,
    fix_toy_positions,
    is_toy_walk,
    toy_codebook,
)


def brute_force() -> set[tuple[int, ...]]:
    """Every one of the 8^5 sequences whose neighbors are neighbors on the circle."""
    return {
        q
        for q in itertools.product(range(8), repeat=5)
        if all((b - a) % 8 in (1, 7) for a, b in itertools.pairwise(q))
    }


def test_all_sequences_are_those_of_brute_force():
    sequences = [tuple(q) for q in all_toy_sequences().tolist()]
    assert len(sequences) == 128 and set(sequences) == brute_force()


def test_walks_are_told_from_others():
    everything = torch.cartesian_prod(*[torch.arange(8)] * 5)
    found = {tuple(q) for q in everything[is_toy_walk(everything)].tolist()}
    assert found == brute_force()  # 128 of 32,768: 1 in 256


def test_draws_are_uniform_over_the_sequences():
    n = 64_000
    place = 8 ** torch.arange(5)
    counts = torch.bincount(draw_toy_sequences(n) @ place, minlength=8**5)
    expected = counts[all_toy_sequences() @ place]
    assert expected.sum() == n
    chi_squared = ((expected - n / 128) ** 2 / (n / 128)).sum()
    assert chi_squared < 127 + 5 * (2 * 127) ** 0.5


def test_latents_are_code_vectors_with_noise():
    codebook = toy_codebook()
    torch.testing.assert_close(codebook.norm(dim=1), torch.ones(8))
    torch.testing.assert_close(codebook[[0, 2]], torch.tensor([[1.0, 0.0], [0.0, 1.0]]), atol=1e-6, rtol=0)
    torch.testing.assert_close((codebook * codebook.roll(-1, 0)).sum(1), torch.full((8,), 0.5**0.5))  # 45 degrees
    sequences = draw_toy_sequences(20_000)
    noise = draw_toy_latents(sequences) - codebook[sequences].transpose(1, 2)
    assert noise.mean().abs() < 1e-3 and abs(noise.std() - 0.05) < 5e-4


def test_fixed_positions():
    known, mask = fix_toy_positions({1: 0, 5: 4})
    assert mask.tolist() == [False, True, True, True, False]
    torch.testing.assert_close(known[0, :, [0, 4]], torch.tensor([[1.0, -1.0], [0.0, 0.0]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ({}, "fix at least one position"),
        (dict.fromkeys(range(1, 7), 0), "6 positions are fixed, but a walk has only 5"),
        ({6: 0}, "q_6 = 0"),
        ({0: 0}, "q_0 = 0"),
        ({1: 8}, "q_1 = 8"),
    ],
)
def test_positions_that_there_are_not(codes, message):
    with pytest.raises(ValueError, match=message):
        fix_toy_positions(codes)
