"""The simulation does not depend on when somebody looks, nor on the episode before."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.collect.libero_parts import HOLD, holds
from statevla.sims.libero import suites
from statevla.sims.libero.protocol import IMAGE_KEYS, PROPRIOCEPTION_KEYS, Demonstrate, Reply, Reset, Run
from statevla.sims.libero.worker import Simulator

pytestmark = pytest.mark.libero

LOOK_EVERY = 8


@pytest.fixture(scope="module")
def actions() -> NDArray[np.float64]:
    """A rapid motion of all joints with the gripper closing half-way."""
    rng = np.random.default_rng(0)
    found = rng.uniform(-0.8, 0.8, (16, 7))
    found[:, 6] = np.repeat([-1.0, 1.0], 8)
    return found


def run_in_blocks(
    simulator: Simulator, state: NDArray[np.float64], actions: NDArray[np.float64], block: int
) -> list[Reply]:
    simulator.ask(Reset(state, suites.SETTLE_STEPS))
    return [simulator.ask(Run(actions[first : first + block], through=True)) for first in range(0, len(actions), block)]


def test_pictures_and_states_are_those_of_looking_at_every_step(
    simulator: Simulator, task: suites.Task, actions: NDArray[np.float64]
) -> None:
    state = suites.init_states(task)[3]
    every = run_in_blocks(simulator, state, actions, 1)
    seldom = run_in_blocks(simulator, state, actions, LOOK_EVERY)
    for look, reply in enumerate(seldom):
        same = every[(look + 1) * LOOK_EVERY - 1]
        np.testing.assert_array_equal(reply.state, same.state)
        for key in (*IMAGE_KEYS, *PROPRIOCEPTION_KEYS):
            np.testing.assert_array_equal(reply.observation[key], same.observation[key], err_msg=key)


def test_an_episode_does_not_depend_on_the_one_before(
    simulator: Simulator, task: suites.Task, actions: NDArray[np.float64]
) -> None:
    states = suites.init_states(task)
    first = run_in_blocks(simulator, states[0], actions, 16)[-1]
    run_in_blocks(simulator, states[1], -actions, 16)
    again = run_in_blocks(simulator, states[0], actions, 16)[-1]
    with Simulator(task, render_threads=2) as fresh:
        other = run_in_blocks(fresh, states[0], actions, 16)[-1]
    np.testing.assert_array_equal(again.state, first.state)
    np.testing.assert_array_equal(other.state, first.state)
    for key in IMAGE_KEYS:
        np.testing.assert_array_equal(other.observation[key], first.observation[key], err_msg=key)


def test_scattered_things_stand_elsewhere_and_can_be_taken(simulator: Simulator, task: suites.Task) -> None:
    """A state is time, positions, velocities; the first nine positions are the robot's, then seven a thing."""
    start = suites.init_states(task)[0]
    plain = simulator.ask(Reset(start, suites.SETTLE_STEPS))
    other = simulator.ask(Reset(start, suites.SETTLE_STEPS, expert_seed=(0,), scatter=(1, 5)))
    track = simulator.ask(Demonstrate(suites.max_steps(task.suite), HOLD)).track
    assert track is not None
    assert holds(track), "the expert looks where things are"
    np.testing.assert_array_equal(track.states[0], other.state)
    things = (len(start) - 1 - 9) * 7 // 13 // 7
    places, before = (reply.state[10 : 10 + 7 * things].reshape(things, 7) for reply in (other, plain))
    np.testing.assert_array_equal(other.state[1:10], plain.state[1:10])
    moved = np.linalg.norm(places[:, :2] - before[:, :2], axis=1)
    assert (moved > 0.02).sum() == things - 1, moved  # the basket stays
    np.testing.assert_allclose(places[:, 2], before[:, 2], atol=2e-3)
    again = simulator.ask(Reset(start, suites.SETTLE_STEPS, scatter=(1, 5)))
    np.testing.assert_array_equal(again.state, other.state)
    for key in IMAGE_KEYS:
        assert (other.observation[key] != plain.observation[key]).any()
    after = simulator.ask(Reset(start, suites.SETTLE_STEPS))
    np.testing.assert_array_equal(after.state, plain.state)


def test_filming_changes_nothing(simulator: Simulator, task: suites.Task, actions: NDArray[np.float64]) -> None:
    state = suites.init_states(task)[0]
    plain = run_in_blocks(simulator, state, actions, 16)[-1]
    simulator.ask(Reset(state, suites.SETTLE_STEPS))
    filmed = simulator.ask(Run(actions, film=4, through=True))
    assert len(filmed.film) == 4
    np.testing.assert_array_equal(filmed.state, plain.state)
    np.testing.assert_array_equal(filmed.film[-1][IMAGE_KEYS[0]], plain.observation[IMAGE_KEYS[0]])
    for block in (1, 3):  # a film goes on from one request to the next
        simulator.ask(Reset(state, suites.SETTLE_STEPS))
        parts = [simulator.ask(Run(actions[i : i + block], film=4, through=True)).film for i in range(0, 16, block)]
        for whole, part in zip(filmed.film, itertools.chain(*parts), strict=True):
            np.testing.assert_array_equal(part[IMAGE_KEYS[0]], whole[IMAGE_KEYS[0]])


def test_the_worker_is_told_the_instruction_that_files_have(simulator: Simulator, task: suites.Task) -> None:
    assert simulator.scenery.problem_info["language_instruction"] == task.instruction
