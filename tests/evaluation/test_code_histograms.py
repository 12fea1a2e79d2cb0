"""Histograms against scipy and enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from diffusion_bridge_vq.evaluation import code_kl, code_perplexity, code_usage


def test_code_kl_is_scipys_entropy():
    codes, reference = torch.randint(7, (50, 3, 4)), torch.randint(5, (50, 3, 4))
    kl = code_kl(codes, reference, 7)
    assert kl.shape == (3, 4) and kl.dtype == torch.float64
    for i, j in itertools.product(range(3), range(4)):
        counts = [np.bincount(c[:, i, j].numpy(), minlength=7) + 0.5 for c in (reference, codes)]
        assert kl[i, j].item() == pytest.approx(entropy(*counts), rel=1e-12)  # entropy(p, q) is KL(p || q)


def test_code_kl_by_hand():
    """Two codes, one position. Three of four real ones are code 0, no sample is: 3.5 to 1.5 against 0.5 to 4.5."""
    real, sampled = torch.tensor([[0], [0], [1], [0]]), torch.tensor([[1], [1], [1], [1]])
    expected = 0.7 * math.log(0.7 / 0.1) + 0.3 * math.log(0.3 / 0.9)
    assert code_kl(sampled, real, 2).tolist() == pytest.approx([expected])
    assert code_kl(real, real, 2).tolist() == [0.0]
    assert code_kl(real.flip(0), real, 2).tolist() == [0.0]


def test_floor_of_code_kl():
    """Two sets of one law: about (K - 1) / M, the mean of chi-squared / 2M twice over, when M is large against K."""
    codes = torch.randint(8, (2, 2000, 30, 30))
    assert code_kl(codes[0], codes[1], 8).mean().item() == pytest.approx(7 / 2000, rel=0.1)


def test_usage_and_perplexity():
    codes = torch.tensor([[[0, 0], [1, 1]], [[0, 3], [3, 3]]])
    assert code_usage(codes, 8) == 3 / 8
    assert code_perplexity(codes, 8) == pytest.approx(math.exp(entropy([3, 2, 3])))
    assert code_perplexity(torch.arange(6), 6) == pytest.approx(6)
    assert code_perplexity(torch.zeros(5, dtype=torch.long), 6) == 1


@pytest.mark.parametrize(
    ("codes", "reference", "message"),
    [
        (torch.zeros(4, 3, 3, dtype=torch.long), torch.zeros(4, 3, 2, dtype=torch.long), "differ in size"),
        (torch.full((4, 3), 5), torch.zeros(4, 3, dtype=torch.long), r"0\.\.4, got 5\.\.5"),
        (torch.zeros(4, 3, dtype=torch.long), torch.full((4, 3), -1), r"got -1\.\.-1"),
        (torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.long), "integers"),
        (torch.zeros(0, 3, dtype=torch.long), torch.zeros(4, 3, dtype=torch.long), "not empty"),
    ],
)
def test_codes_that_are_refused(codes, reference, message):
    with pytest.raises(ValueError, match=message):
        code_kl(codes, reference, 5)
