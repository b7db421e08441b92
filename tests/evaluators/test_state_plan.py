"""Planning in state space: where states add up as actions do the plan is right, elsewhere it is not."""

import numpy as np
import pytest

from statevla.evaluators import state_plan
from statevla.evaluators.state_plan import DISTANCES, END, STEP, clipped, correlation, plans
from statevla.evaluators.state_probes import Coded

LENGTH, EPISODES = 60, 12


def coded(turns: bool, seed: int = 0, hidden: bool = False) -> Coded:
    """Episodes in which a thing moves evenly, each its own way, and back in the second half where it `turns`. features:
    where it is, or noise where that is `hidden`.
    """
    rng = np.random.default_rng(seed)
    ways = np.repeat(rng.normal(size=(EPISODES, 2)), LENGTH, axis=0)
    step = np.tile(np.arange(LENGTH), EPISODES)
    action = ways * np.where(turns & (step >= LENGTH // 2), -1, 1)[:, None] + rng.normal(0, 0.01, (len(step), 2))
    episode = np.repeat(np.arange(EPISODES), LENGTH)
    places = np.concatenate([np.cumsum(action[episode == number], axis=0) for number in range(EPISODES)])
    features = rng.normal(size=(len(step), 4)) if hidden else np.concatenate([places - action, 0 * places], axis=1)
    return Coded({"state": features}, action, episode, np.arange(len(step)))


def test_differences_are_cut_and_keep_their_direction() -> None:
    found = clipped(np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]), 1.0)
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.3, 0.4], [0, 0]])


def test_the_correlation_is_pearsons_and_its_interval_is_over_episodes() -> None:
    rng = np.random.default_rng(0)
    shown, episode = rng.normal(size=(200, 3)), np.repeat(np.arange(20), 10)
    planned = shown + rng.normal(size=shown.shape)
    r, low, high = correlation(planned, shown, episode, 0)
    each = [np.corrcoef(planned[:, place], shown[:, place])[0, 1] for place in range(3)]
    assert r == pytest.approx(np.mean(each))
    assert low is not None
    assert high is not None
    assert low < r < high
    assert correlation(planned, shown, np.zeros(200, int), 0)[1:] == (None, None)
    planned[:, 0] = 1.0
    assert correlation(planned, shown, episode, 0)[0] == pytest.approx(np.mean([0, *each[1:]]))


def test_a_straight_way_is_right_as_long_as_the_thing_moves_straight() -> None:
    straight, turning = coded(turns=False), coded(turns=True)
    found = plans(straight, coded(turns=False, seed=1), "state", 0)
    for distance in (*(str(each) for each in DISTANCES if each < LENGTH), END):
        told = found[distance]
        assert told is not None
        assert told.r > 0.9, distance
    assert found["80"] is None, "no episode is so long"
    back = plans(turning, coded(turns=True, seed=1), "state", 0)
    near, far = back["10"], back[END]
    assert near is not None
    assert far is not None
    assert near.r > 0.95
    assert far.r < 0.5, "its end is where it began"
    assert far.pairs == EPISODES * (LENGTH - STEP)


def test_what_is_planned_is_the_first_part_of_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the length that states move in so many frames."""
    asked = []
    monkeypatch.setattr(state_plan, "clipped", lambda ways, length: asked.append(length) or 0 * ways)
    train = coded(turns=False)
    found = plans(train, coded(turns=False, seed=1), "state", 0)
    assert all(told is None or abs(told.r) < 1e-6 for told in found.values())
    states = train.features["state"]
    sizes = [np.linalg.norm(states[t + STEP] - states[t]) for t in range(len(states) - STEP) if t % LENGTH < 50]
    assert asked == [pytest.approx(np.median(sizes))] * 4


def test_states_that_tell_nothing_plan_nothing() -> None:
    found = plans(coded(False, hidden=True), coded(False, seed=1, hidden=True), "state", 0)
    assert all(told is None or abs(told.r) < 0.3 for told in found.values())


def test_too_few_episodes_fit_no_probe() -> None:
    whole = coded(False)
    one = whole.episode == 0
    few = Coded({"state": whole.features["state"][one]}, whole.action[one], whole.episode[one], whole.row[one])
    assert set(plans(few, whole, "state", 0).values()) == {None}
