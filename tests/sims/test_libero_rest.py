"""When a hand of the scripted experts has come to rest, and what follows from it."""

import numpy as np
import pytest

from statevla.sims.libero import rotations
from statevla.sims.libero.experts.program import CLOSED, DONE, REST_STEPS, Follower, Go, Rest, Steps, World
from tests.sims.test_libero_experts import DOWN, two_boxes


@pytest.mark.parametrize(
    ("moved", "turned", "rests"),
    [(0.0, 0.0, True), (3e-4, 0.0, True), (5e-4, 0.0, False), (0.0, 0.01, False), (0.0, 0.003, True)],
)
def test_a_hand_that_goes_nowhere_rests(moved: float, turned: float, rests: bool) -> None:
    """By so much [m], [rad] in every step."""
    rest = Rest()
    seen = [
        rest.see(np.array([moved * step, 0, 0]), rotations.about_z(turned * step)) for step in range(REST_STEPS + 1)
    ]
    assert seen == [False] * REST_STEPS + [rests]


def test_a_hand_at_rest_stays_where_it_is_told_to_and_rests_anew_at_each_waypoint() -> None:
    """Fingers need their steps to close, and the hand then needs some to move."""

    def program(world: World) -> Steps:
        yield Go("close", np.zeros(3), np.eye(3), CLOSED, steps=14, near=0.0)
        yield Go("lift", np.ones(3), np.eye(3), CLOSED)
        yield Go("stay", np.ones(3), np.eye(3), CLOSED, stay=9)

    held = (np.zeros(3), DOWN)
    expert = Follower(two_boxes(), held, program, np.random.default_rng(0))
    stages = []
    while stages[-1:] != [DONE]:
        expert.act(held)
        stages.append(expert.stage)
    assert [stages.count(stage) for stage in ("close", "lift", "stay")] == [14, REST_STEPS + 1, 9]


def test_a_hand_that_noise_moves_does_not_rest() -> None:
    rest, rng = Rest(), np.random.default_rng(0)
    assert not any(rest.see(rng.normal(0, 3e-3, 3), np.eye(3)) for _ in range(60))
