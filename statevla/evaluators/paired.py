"""Two policies on the same trials: how far apart they are, how sure that is, and how many more trials would tell.

Trials are paired: the same task, initial state and seed. With both = successes of both, first and second = successes of
one only, neither = the rest, the difference of the rates is (first - second) / n. Its interval is Newcombe's for paired
proportions (Statistics in Medicine 17, 1998, 2635-2650, method 10): Wilson's limits of the two rates, combined with
their correlation.
"""

import math
from typing import NamedTuple

from statevla.evaluators.intervals import wilson

MOST_TIMES = 64
"""`trials_to_decide` looks no further than so many times the trials at hand."""


class Paired(NamedTuple):
    """Trials by outcome of the two policies."""

    both: int
    first: int
    second: int
    neither: int

    @property
    def trials(self) -> int:
        """All of them."""
        return sum(self)

    @classmethod
    def of(cls, outcomes: list[tuple[bool, bool]]) -> "Paired":
        """Count (first succeeded, second succeeded)."""
        table = [outcomes.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))]
        return cls(*table)


def difference(pairs: Paired) -> tuple[float, tuple[float, float]] | None:
    """Rate of the first minus rate of the second, in [-1, 1], and its 95% interval; None without trials."""
    return None if pairs.trials == 0 else _difference(*pairs)


def _difference(
    both: int | float, first: int | float, second: int | float, neither: int | float
) -> tuple[float, tuple[float, float]]:
    """Of counts that may be expected ones, not whole."""
    n = both + first + second + neither
    p, q = (both + first) / n, (both + second) / n
    (p_low, p_high), (q_low, q_high) = wilson(both + first, n), wilson(both + second, n)
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    phi = 0.0
    if margins:
        product = both * neither - first * second
        corrected = max(product - n / 2, 0.0) if product > 0 else product  # continuity: towards no correlation
        phi = corrected / math.sqrt(margins)
    below = _combine(p - p_low, q_high - q, phi)
    above = _combine(p_high - p, q - q_low, phi)
    return p - q, (p - q - below, p - q + above)


def trials_to_decide(pairs: Paired) -> int | None:
    """More trials until the interval would leave out 0, if outcomes went on in the same proportions.

    0 when it does already; None when it would not within `MOST_TIMES` times as many, or there is no difference at all.
    """
    if decided(pairs):
        return 0
    if pairs.trials == 0 or pairs.first == pairs.second:
        return None
    low, high = 1.0, float(MOST_TIMES)
    if not _leaves_out_0(_difference(*_scaled(pairs, high))):
        return None
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (low, middle) if _leaves_out_0(_difference(*_scaled(pairs, middle))) else (middle, high)
    return math.ceil((high - 1) * pairs.trials)


def decided(pairs: Paired) -> bool:
    """Whether the interval of the difference leaves out 0."""
    found = difference(pairs)
    return found is not None and _leaves_out_0(found)


def _leaves_out_0(found: tuple[float, tuple[float, float]]) -> bool:
    return not found[1][0] <= 0 <= found[1][1]


def _scaled(pairs: Paired, times: float) -> tuple[float, float, float, float]:
    """Not rounded: of few trials whole numbers are other proportions."""
    both, first, second, neither = pairs
    return both * times, first * times, second * times, neither * times


def _combine(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0))
