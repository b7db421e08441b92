"""Wilson's score interval for a success rate.

Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927): the set of
rates p at which the observed rate is within z standard errors sqrt(p (1 - p) / n) of p.
"""

from math import sqrt
from statistics import NormalDist

from stores.errors import UsageError


def wilson(successes: int | float, trials: int | float, confidence: float = 0.95) -> tuple[float, float]:
    """Bounds in [0, 1] of the success rate behind ``successes`` of ``trials``; (0, 1) when nothing was tried.

    Raises:
        UsageError: counts are not ``0 <= successes <= trials``, or ``confidence`` is outside (0, 1).
    """
    if not 0 <= successes <= trials:
        raise UsageError(f"success interval: expected 0 <= successes <= trials, got {successes} of {trials}")
    if not 0.0 < confidence < 1.0:
        raise UsageError(f"success interval: expected a confidence in (0, 1), got {confidence}")
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, weight = successes / trials, z * z / trials
    centre = (rate + weight / 2) / (1 + weight)
    half = z / (1 + weight) * sqrt(rate * (1 - rate) / trials + weight / (4 * trials))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high


def disjoint(lower: tuple[float, float], upper: tuple[float, float]) -> bool:
    """Whether the first interval lies wholly below the second: then one success rate is clearly the worse."""
    return lower[1] < upper[0]
