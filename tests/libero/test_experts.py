"""A task of each skill of the scripted experts, in the simulator: it succeeds, and what it did stays as it is."""

import numpy as np
import pytest

from pipelines.collect.libero_parts import HOLD, holds
from statevla.sims.libero import suites
from statevla.sims.libero.protocol import Demonstrate, Reset, Run
from statevla.sims.libero.worker import Simulator
from tests.libero.conftest import require_assets

pytestmark = pytest.mark.libero

INIT_STATE = 0
SKILLS = {
    "a bowl by its rim, onto a plate": ("libero_spatial", 0),
    "a drawer opened": ("libero_goal", 0),
    "a plate drawn over the table": ("libero_goal", 5),
    "a bottle around its body, stood upright in a rack": ("libero_goal", 9),
    "a knob turned, and a pot by the knob of its lid": ("libero_10", 2),
    "a bowl into a drawer, which is pushed shut": ("libero_10", 3),
    "a book held upright in its compartment": ("libero_10", 5),
    "a mug by its handle into the microwave, whose door is swung shut": ("libero_10", 9),
}
"""What is done -> a task that shows it. Boxes and cans around their bodies: libero_object, in the other tests here."""


@pytest.mark.parametrize(("suite", "index"), SKILLS.values(), ids=SKILLS)
def test_a_skill_succeeds_and_its_success_holds(simulator_installed: None, suite: str, index: int) -> None:
    require_assets(suite)
    task = suites.tasks(suite)[index]
    with Simulator(task, image_size=16) as simulator:
        state = suites.init_states(task)[INIT_STATE]
        simulator.ask(Reset(state, suites.SETTLE_STEPS, expert_seed=(0, index, INIT_STATE, 0)))
        shown = simulator.ask(Demonstrate(suites.max_steps(suite), HOLD))
        assert shown.track is not None
        held = holds(shown.track)
        assert held
        assert shown.stage == "done", "nothing of the program was left out"
        gripper = shown.track.executed[-1, 6]  # a book stays in the hand
        later = simulator.ask(Run(np.tile([0, 0, 0, 0, 0, 0, gripper], (10, 1)), look=False, through=True))
    assert later.succeeded
