"""LIBERO-PRO in the simulator: places swapped, things repainted, and what it has no model for is named."""

import numpy as np
import pytest

from statevla.sims.libero import pro, suites
from statevla.sims.libero.errors import SimulatorFailed
from statevla.sims.libero.protocol import IMAGE_KEYS, Reset
from statevla.sims.libero.worker import Simulator
from tests.libero.conftest import require_assets

pytestmark = pytest.mark.libero

MILK = 7


@pytest.fixture(scope="module", autouse=True)
def package(simulator_installed: None) -> None:
    if pro.folder() is None:
        pytest.skip(f"LIBERO-PRO is not on this machine; run: {pro.INSTALL}")


def start(suite: str, task: int) -> np.ndarray:
    """The scene's picture after a reset from the first initial state."""
    require_assets(suite)
    chosen = suites.tasks(suite)[task]
    with Simulator(chosen, render_threads=2) as simulator:
        reply = simulator.ask(Reset(suites.init_states(chosen)[0], 1))
        assert not reply.succeeded
        return reply.observation[IMAGE_KEYS[0]].astype(int)


def test_swapped_and_repainted_scenes_are_others() -> None:
    base = start("libero_object", MILK)
    swapped = start("libero_object_swap", MILK)
    repainted = start("libero_object_object", MILK)
    assert np.abs(swapped - base).mean() > 1
    assert np.abs(repainted - base).mean() > 1


@pytest.mark.parametrize("kind", ["task", "with_mug"])
def test_another_goal_and_another_thing_come_up(kind: str) -> None:
    assert start(f"libero_object_{kind}", MILK).std() > 20


def moved(kind: str) -> np.ndarray:
    """How far ``[N, 2]`` [m] each of the N things is from where it is in `libero_object`, in the mean of all states.

    A state is time, positions, velocities; the first nine positions are the robot's, then seven a thing.
    """
    base, other = (
        suites.init_states(suites.tasks(suite)[MILK]) for suite in ("libero_object", f"libero_object_{kind}")
    )
    things = (base.shape[1] - 1 - 9) * 7 // 13 // 7
    places = [states[:, 10 : 10 + 7 * things].reshape(-1, things, 7)[..., :2].mean(0) for states in (base, other)]
    return np.asarray(places[1] - places[0])


@pytest.mark.parametrize(("kind", "axis"), [("temp_x0.1", 0), ("temp_x0.4", 0), ("temp_y0.2", 1)])
def test_an_offset_in_a_name_is_that_of_the_target_alone(kind: str, axis: int) -> None:
    """Up to two of the others are 10 m away, where the target comes near to them."""
    target, *others = moved(kind)
    wanted = np.zeros(2)
    wanted[axis] = pro.OFFSET * float(kind[-3:])
    np.testing.assert_allclose(target, wanted, atol=3e-3)
    assert all(np.linalg.norm(way) < 0.01 or np.linalg.norm(way) > 5 for way in others)


def test_swapped_things_have_changed_places() -> None:
    far = [way for way in moved("swap") if np.linalg.norm(way) > 0.01]
    assert len(far) == 2
    np.testing.assert_allclose(far[0], -far[1], atol=5e-3)


def test_a_thing_without_model_is_named() -> None:
    require_assets("libero_object_with_red_box")
    task = suites.tasks("libero_object_with_red_box")[0]
    with pytest.raises(SimulatorFailed, match="no class, and the assets no model, for 'red_box'"), Simulator(task) as s:
        _ = s.scenery
