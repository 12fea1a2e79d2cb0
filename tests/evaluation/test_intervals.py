import pytest
from scipy.stats import binomtest

from diffusion_bridge_vq.evaluation import wilson_interval


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (1, 1), (94, 100), (950, 1000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_wilson_interval_is_scipys(successes, trials, confidence):
    expected = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, trials, confidence) == pytest.approx(tuple(expected), abs=1e-12)


@pytest.mark.parametrize("arguments", [(-1, 10), (11, 10), (0, 0), (1, 2, 1.0), (1, 2, 0.0)])
def test_bad_numbers(arguments):
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(*arguments)
