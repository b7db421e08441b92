"""A goal told by a picture, in the real simulator: what its cameras see once the expert is done."""

import numpy as np
import pytest

from statevla.evaluators.goals import ExpertGoals
from statevla.evaluators.trials import NUMBERS
from statevla.policies.noise import Draw
from statevla.sims.libero import suites
from statevla.sims.libero.protocol import Reset
from statevla.sims.libero.worker import Simulator
from statevla.sims.suites import find_suite

pytestmark = pytest.mark.libero


def test_the_goal_is_the_trials_own_scene_with_the_task_done(task: suites.Task, simulator: Simulator) -> None:
    goal = ExpertGoals(find_suite("libero_object"), 128).of(Draw(seed=0, trial=task.index * NUMBERS + 3))
    begun = simulator.ask(Reset(suites.init_states(task)[3], suites.SETTLE_STEPS, True))
    assert goal.instruction == task.instruction
    scene = goal.images[0]
    before = np.ascontiguousarray(begun.observation["agentview_image"][::-1])
    assert scene.shape == before.shape
    moved = np.abs(scene.astype(int) - before).max(axis=-1) > 24
    assert 0.01 < moved.mean() < 0.3  # the arm and one thing; the scene stands
