"""An episode that was recorded blind and drawn later has the pictures of one that was drawn on the way; perturbations
change the pictures and nothing else."""

import numpy as np
import pytest
from numpy.typing import NDArray

from statevla.sims.libero import suites
from statevla.sims.libero.perturb import Perturbation
from statevla.sims.libero.protocol import IMAGE_KEYS, PROPRIOCEPTION_KEYS, Demonstrate, Draw, Reset, Run, Track
from statevla.sims.libero.worker import Simulator
from tests.libero.conftest import require_assets

pytestmark = pytest.mark.libero

STEPS = 10


def record(simulator: Simulator, state: NDArray[np.float64], noise: float = 0.0, steps: int = STEPS) -> Track:
    simulator.ask(Reset(state, suites.SETTLE_STEPS, expert_seed=(0,)))
    track = simulator.ask(Demonstrate(steps, 10, noise, noise_seed=(1,))).track
    assert track is not None
    return track


def same_when_drawn_on_the_way(simulator: Simulator, state: NDArray[np.float64], track: Track) -> None:
    later = simulator.ask(Draw(track.drawn, track.glow)).film
    first = simulator.ask(Reset(state, suites.SETTLE_STEPS))
    on_the_way = simulator.ask(Run(track.executed, film=1, through=True))
    np.testing.assert_array_equal(on_the_way.state, track.states[-1])
    for step, seen in enumerate([first.observation, *on_the_way.film]):
        for key in IMAGE_KEYS:
            np.testing.assert_array_equal(later[step][key], seen[key], err_msg=f"{key}, step {step}")
        for key in PROPRIOCEPTION_KEYS:
            np.testing.assert_array_equal(track.seen[key][step], seen[key], err_msg=f"{key}, step {step}")
    moving = np.abs(later[-1][IMAGE_KEYS[0]].astype(int) - later[0][IMAGE_KEYS[0]]).mean()
    assert moving > 1  # the arm moved: the comparison is one


def test_pictures_drawn_later_are_those_drawn_on_the_way(simulator: Simulator, task: suites.Task) -> None:
    state = suites.init_states(task)[2]
    same_when_drawn_on_the_way(simulator, state, record(simulator, state))


def test_a_simulator_that_was_never_reset_draws_the_same(simulator: Simulator, task: suites.Task) -> None:
    state = suites.init_states(task)[2]
    track = record(simulator, state)
    wanted = simulator.ask(Draw(track.drawn[:3], track.glow[:3])).film
    with Simulator(task, render_threads=2) as fresh:
        drawn = fresh.ask(Draw(track.drawn[:3], track.glow[:3])).film
    for mine, its in zip(wanted, drawn, strict=True):
        for key in IMAGE_KEYS:
            np.testing.assert_array_equal(mine[key], its[key])


def test_a_burner_that_glows_does_so_in_pictures_drawn_later(simulator_installed: None) -> None:
    stove = 7
    require_assets("libero_goal")
    task = suites.tasks("libero_goal")[stove]
    state = suites.init_states(task)[0]
    with Simulator(task, render_threads=2) as simulator:
        first = simulator.ask(Reset(state, suites.SETTLE_STEPS, expert_seed=(0,)))
        track = simulator.ask(Demonstrate(suites.MAX_STEPS["libero_goal"], 10)).track
        assert track is not None
        assert track.succeeded[-10:].all()
        assert (track.glow[-1] != track.glow[0]).any()
        lit = int(np.argmax(track.succeeded)) + 2
        later = simulator.ask(Draw(track.drawn[lit - 3 : lit + 1], track.glow[lit - 3 : lit + 1])).film
        again = simulator.ask(Reset(state, suites.SETTLE_STEPS))
        assert again.model == first.model, "files say what the model is: the same in any episode of a worker"
        simulator.ask(Run(track.executed[: lit - 4], look=False, through=True))
        film = simulator.ask(Run(track.executed[lit - 4 : lit], film=1, through=True)).film
    for drawn, seen in zip(later, film, strict=True):
        np.testing.assert_array_equal(drawn[IMAGE_KEYS[0]], seen[IMAGE_KEYS[0]])


def test_noise_moves_the_arm_and_leaves_the_labels_to_the_expert(simulator: Simulator, task: suites.Task) -> None:
    state = suites.init_states(task)[2]
    plain, noisy = record(simulator, state, steps=60), record(simulator, state, noise=0.3, steps=60)
    np.testing.assert_array_equal(plain.executed, plain.labels)
    pushed = (noisy.executed != noisy.labels).any(axis=1)
    assert 0 < pushed.mean() < 0.7  # there are pushes, and pauses
    assert np.abs(noisy.executed - noisy.labels)[:, :6].max() > 0.05
    np.testing.assert_array_equal(noisy.executed[:, 6], noisy.labels[:, 6])
    assert np.abs(noisy.executed).max() <= 1
    np.testing.assert_array_equal(noisy.labels[0], plain.labels[0])  # before the noise shows, the same wish


def test_perturbations_change_what_is_seen_and_nothing_else(simulator: Simulator, task: suites.Task) -> None:
    state = suites.init_states(task)[0]
    plain = simulator.ask(Reset(state, 1))
    seen = {}
    for name, perturbation in {
        "camera": Perturbation(camera_shift=0.05, seed=1),
        "turn": Perturbation(camera_turn=4.0, seed=1),
        "light": Perturbation(light=0.5),
        "lamps": Perturbation(light_shift=1.0, seed=1),
        "noise": Perturbation(noise=20.0, seed=1),
    }.items():
        reply = simulator.ask(Reset(state, 1, perturbation=perturbation))
        np.testing.assert_array_equal(reply.state, plain.state)
        seen[name] = [reply.observation[key].astype(int) - plain.observation[key] for key in IMAGE_KEYS]
    assert all(np.abs(pictures[0]).mean() > 1 for pictures in seen.values())
    assert np.abs(seen["camera"][1]).max() == 0  # the hand's camera stays on the hand
    assert seen["light"][0].mean() < -20
    assert np.abs(seen["noise"][0]).mean() == pytest.approx(20 * np.sqrt(2 / np.pi), rel=0.25)
    again = simulator.ask(Reset(state, 1))
    for key in IMAGE_KEYS:
        np.testing.assert_array_equal(again.observation[key], plain.observation[key])


def test_fixtures_stand_where_the_seed_puts_them(simulator_installed: None) -> None:
    require_assets("libero_goal")
    task = suites.tasks("libero_goal")[0]
    state = suites.init_states(task)[0]
    with Simulator(task, render_threads=2) as simulator:
        first, other, again = (simulator.ask(Reset(state, 1, fixtures=seed)) for seed in (0, 1, 0))
    view = IMAGE_KEYS[0]
    assert np.abs(first.observation[view].astype(int) - other.observation[view]).mean() > 1
    np.testing.assert_array_equal(first.observation[view], again.observation[view])


def test_an_expert_takes_over_from_somebody_else(simulator: Simulator, task: suites.Task) -> None:
    """Whoever drove went down beside everything; a new expert plans from there and its success holds."""
    state = suites.init_states(task)[3]
    simulator.ask(Reset(state, suites.SETTLE_STEPS, expert_seed=(0,)))
    away = np.tile([0.3, -0.5, -0.4, 0, 0, 0, 1.0], (15, 1))
    left = simulator.ask(Run(away, look=False)).state
    track = simulator.ask(Demonstrate(suites.max_steps(task.suite), 10, take_over=(0, 3))).track
    assert track is not None
    np.testing.assert_array_equal(track.states[0], left)
    assert track.succeeded[-10:].all()
    np.testing.assert_array_equal(track.executed, track.labels)
