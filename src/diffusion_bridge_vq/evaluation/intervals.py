"""Confidence intervals."""

import math
from statistics import NormalDist

from .arguments import check_count, check_number


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """
    Wilson's score interval of a proportion (Wilson 1927); it is valid near 0 and 1 too.

    Args:
        successes (`int`), trials (`int`): 0 <= successes <= trials, at least one trial.
        confidence (`float`, *optional*, defaults to 0.95): coverage, in (0, 1).

    Raises:
        TypeError: no numbers.
        ValueError: numbers outside these ranges.
    """
    check_count("successes", successes, 0)
    check_count("trials", trials, 0)
    check_number("confidence", confidence, 0)
    if successes > trials or trials < 1 or not 0 < confidence < 1:
        raise ValueError(
            "Expected 0 <= successes <= trials, trials >= 1 and 0 < confidence < 1, "
            f"got {successes}, {trials} and {confidence}."
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / trials
    middle = share + z**2 / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
