"""Training and evaluation see the same world: a stored demonstration's states, restored in the simulator here and
observed through `statevla.observation`, give the demonstration's stored pictures and robot state."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from statevla.observation import Observation, from_simulator, robot_state, upright_cameras
from statevla.sims.libero import suites
from statevla.sims.libero.protocol import Reset, SetState
from statevla.sims.libero.worker import Simulator

pytestmark = pytest.mark.libero

# The recording's sensors sample up to two physics substeps (4 ms) before a step's end, the restored state is its end:
# edges move by a fraction of a pixel, joints by what 4 ms of motion are.
MEAN_PIXEL = (1.0, 4.0)  # agentview stands still, eye_in_hand moves with the arm
JOINT = 0.005
FINGER = 0.001


@pytest.fixture(scope="module")
def pairs(simulator: Simulator, task: suites.Task, demo_file: Path) -> list[tuple[Observation, Observation]]:
    """(stored, restored) canonical observations at several moments of the first demonstration.

    The file stores observations after the action: ``obs[t]`` shows ``states[t + 1]``.
    """
    found = []
    with h5py.File(demo_file) as file:
        demo = file["data/demo_0"]
        for t in range(5, len(demo["states"]) - 1, 40):
            if not found:
                simulator.ask(Reset(demo["states"][t + 1], suites.SETTLE_STEPS, restore_again=True))
            reply = simulator.ask(SetState(demo["states"][t + 1]))
            stored = Observation(
                images=upright_cameras(
                    {"agentview": demo["obs/agentview_rgb"][t], "eye_in_hand": demo["obs/eye_in_hand_rgb"][t]},
                    "opengl",
                ),
                robot_state=robot_state(demo["obs/joint_states"][t], demo["obs/gripper_states"][t]),
                instruction=task.instruction,
            )
            found.append((stored, from_simulator(reply.observation, task.instruction)))
    return found


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(np.abs(a.astype(np.int16) - b.astype(np.int16)).mean())


def test_pictures_agree_and_only_in_this_orientation_and_order(pairs: list[tuple[Observation, Observation]]) -> None:
    assert len(pairs) >= 3
    for stored, restored in pairs:
        for camera in range(2):
            here = restored.images[camera]
            same = difference(stored.images[camera], here)
            assert same < MEAN_PIXEL[camera]
            for wrong in (here[::-1], here[:, ::-1], here[::-1, ::-1], restored.images[1 - camera]):
                assert difference(stored.images[camera], wrong) > 5 * same


def test_robot_state_agrees(pairs: list[tuple[Observation, Observation]]) -> None:
    for stored, restored in pairs:
        np.testing.assert_allclose(restored.robot_state[:7], stored.robot_state[:7], atol=JOINT)
        np.testing.assert_allclose(restored.robot_state[7:], stored.robot_state[7:], atol=FINGER)


def test_the_moment_agrees(simulator: Simulator, task: suites.Task, demo_file: Path) -> None:
    """A restored ``states[t]`` looks like ``obs[t - 1]`` more than like its neighbours: files store what comes after
    the action, and the canonical observation of step ``t`` is the picture of ``states[t]``."""
    with h5py.File(demo_file) as file:
        demo = file["data/demo_0"]
        moving = 12  # the arm travels at full speed above the table
        reply = simulator.ask(SetState(demo["states"][moving]))
        seen = from_simulator(reply.observation, task.instruction).images[1]
        stored = demo["obs/eye_in_hand_rgb"][moving - 2 : moving + 1][:, ::-1]
        differences = [difference(frame, seen) for frame in stored]
    assert int(np.argmin(differences)) == 1, differences
