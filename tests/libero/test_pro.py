"""LIBERO-PRO in the simulator: places swapped, things repainted, and what it has no model for is named."""

import numpy as np
import pytest

from statevla.sims.libero import assets, pro, suites
from statevla.sims.libero.errors import SimulatorFailed, SimulatorMissing
from statevla.sims.libero.protocol import IMAGE_KEYS, Reset
from statevla.sims.libero.worker import Simulator

pytestmark = pytest.mark.libero

MILK = 7


@pytest.fixture(scope="module", autouse=True)
def package(simulator_installed: None) -> None:
    if pro.folder() is None:
        pytest.skip(f"LIBERO-PRO is not on this machine; run: {pro.INSTALL}")


def start(suite: str, task: int) -> np.ndarray:
    """The scene's picture after a reset from the first initial state."""
    try:
        assets.find(suite)
    except SimulatorMissing as error:
        pytest.skip(str(error))
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


def test_a_thing_without_model_is_named() -> None:
    try:
        assets.find("libero_object_with_red_box")
    except SimulatorMissing as error:
        pytest.skip(str(error))
    task = suites.tasks("libero_object_with_red_box")[0]
    with pytest.raises(SimulatorFailed, match="no class, and the assets no model, for 'red_box'"), Simulator(task) as s:
        _ = s.scenery
