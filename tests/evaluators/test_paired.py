import numpy as np
import pytest

from statevla.evaluators.intervals import wilson
from statevla.evaluators.paired import Paired, decided, difference, trials_to_decide


def test_counts() -> None:
    outcomes = [(True, True), (True, False), (True, False), (False, True), (False, False)]
    assert Paired.of(outcomes) == Paired(1, 2, 1, 1)


def test_uncorrelated_policies_have_the_unpaired_interval() -> None:
    pairs = Paired(20, 20, 5, 5)  # 20·5 = 20·5: no correlation
    value, (low, high) = difference(pairs)
    (p_low, p_high), (q_low, q_high) = wilson(40, 50), wilson(25, 50)
    assert value == pytest.approx(0.3)
    assert low == pytest.approx(0.3 - np.hypot(0.8 - p_low, q_high - 0.5))
    assert high == pytest.approx(0.3 + np.hypot(p_high - 0.8, 0.5 - q_low))


def test_swapping_the_policies_mirrors_the_interval() -> None:
    one, other = difference(Paired(30, 9, 4, 7)), difference(Paired(30, 4, 9, 7))
    assert one[0] == pytest.approx(-other[0])
    assert one[1] == pytest.approx((-other[1][1], -other[1][0]))


def test_pairing_makes_the_interval_narrower_where_policies_fail_alike() -> None:
    paired, unpaired = difference(Paired(40, 5, 0, 55)), difference(Paired(18, 27, 22, 33))
    assert paired[0] == pytest.approx(unpaired[0])
    assert np.diff(paired[1]) < 0.6 * np.diff(unpaired[1])


@pytest.mark.parametrize("chances", [(0.6, 0.15, 0.1, 0.15), (0.9, 0.06, 0.02, 0.02)])
def test_the_interval_holds_the_truth_in_about_95_of_100_draws(chances: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    truth = chances[1] - chances[2]
    intervals = [difference(Paired(*map(int, row)))[1] for row in rng.multinomial(100, chances, size=4000)]
    held = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.935 <= held <= 0.985


def test_trials_that_would_decide() -> None:
    close = Paired(40, 6, 3, 1)
    assert not decided(close)
    more = trials_to_decide(close)
    assert more is not None
    times = (50 + more) / 50
    assert decided(Paired(*(round(count * times) for count in close)))
    assert not decided(Paired(*(round(count * (times - 0.3)) for count in close)))
    assert trials_to_decide(Paired(20, 25, 0, 5)) == 0
    assert trials_to_decide(Paired(40, 3, 3, 4)) is None
    assert trials_to_decide(Paired(0, 0, 0, 0)) is None


@pytest.mark.parametrize(
    ("counts", "more"), [((1, 1, 4, 2), 8), ((0, 3, 1, 4), 23), ((0, 3, 8, 9), 14), ((40, 6, 3, 1), 149)]
)
def test_trials_that_would_decide_keep_the_proportions_of_few(counts: tuple[int, int, int, int], more: int) -> None:
    """Wanted: from Newcombe's formulas by themselves, of parts of trials too."""
    assert trials_to_decide(Paired(*counts)) == pytest.approx(more, abs=1)
