"""Pushes while an expert demonstrates: how strong, how long, and that there are pauses."""

from itertools import groupby

import numpy as np

from statevla.sims.libero.pushes import DRIFT, PAUSE_STEPS, PUSH_STEPS, SHARES, Pushes

STEPS = 40_000


def pushed(noise: float, seed: int = 0, steps: int = STEPS) -> np.ndarray:
    pushes = Pushes(noise, np.random.default_rng(seed))
    return np.array([pushes.next() for _ in range(steps)])


def test_pushes_and_pauses_have_their_lengths() -> None:
    runs = [(on, len(list(steps))) for on, steps in groupby(pushed(0.3).any(axis=1).tolist())]
    for on, wanted in ((True, PUSH_STEPS), (False, PAUSE_STEPS)):
        lengths = np.array([length for is_on, length in runs if is_on is on])
        np.testing.assert_allclose(lengths.mean(), wanted, rtol=0.06)
        assert lengths.min() == 1, "geometrically distributed"
    assert runs[0][0] is False, "an episode does not begin with a push in progress"


def test_a_push_is_a_drift_of_the_given_deviation() -> None:
    noise = pushed(0.3)
    on = noise.any(axis=1)
    np.testing.assert_allclose(noise[on].std(axis=0), 0.3 * SHARES, rtol=0.06)
    both = on[1:] & on[:-1]
    for axis in range(6):
        np.testing.assert_allclose(np.corrcoef(noise[1:][both, axis], noise[:-1][both, axis])[0, 1], DRIFT, atol=0.02)


def test_no_noise_pushes_nothing_and_a_seed_tells_all() -> None:
    assert not pushed(0.0, steps=500).any()
    np.testing.assert_array_equal(pushed(0.3, 1, 500), pushed(0.3, 1, 500))
    assert (pushed(0.3, 1, 500) != pushed(0.3, 2, 500)).any()
