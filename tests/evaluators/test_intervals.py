"""Wilson intervals against published values, the defining equation, and their symmetries."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statevla.evaluators.intervals import disjoint, wilson
from stores.errors import UsageError

counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # Newcombe, "Two-sided confidence intervals for the single proportion", Stat. Med. 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_values(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(counts)
def test_bounds_solve_the_defining_equation(count: tuple[int, int]) -> None:
    successes, trials = count
    rate = successes / trials
    for bound in wilson(successes, trials):
        assert (rate - bound) ** 2 == pytest.approx(1.959963984540054**2 * bound * (1 - bound) / trials, abs=1e-12)


@given(counts)
def test_exchanging_success_and_failure_mirrors_the_interval(count: tuple[int, int]) -> None:
    successes, trials = count
    low, high = wilson(successes, trials)
    assert wilson(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@given(counts)
def test_the_interval_holds_the_rate_and_narrows_with_more_trials(count: tuple[int, int]) -> None:
    successes, trials = count
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    more = wilson(4 * successes, 4 * trials)
    assert more[1] - more[0] < high - low
    wider = wilson(successes, trials, confidence=0.99)
    assert wider[0] <= low
    assert high <= wider[1]


def test_no_trials_tell_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_disjoint() -> None:
    assert disjoint((0.1, 0.3), (0.4, 0.6))
    assert not disjoint((0.1, 0.45), (0.4, 0.6))
    assert not disjoint((0.4, 0.6), (0.1, 0.3))


@pytest.mark.parametrize(("successes", "trials"), [(-1, 5), (6, 5), (0, -1)])
def test_impossible_counts_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(UsageError, match="successes"):
        wilson(successes, trials)


@pytest.mark.parametrize("confidence", [0.0, 1.0, math.nan])
def test_impossible_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(UsageError, match="confidence"):
        wilson(1, 2, confidence)
