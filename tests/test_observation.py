"""The canonical observation: orientation, camera order, robot state, and what is refused."""

import numpy as np
import pytest

from statevla.observation import (
    from_simulator,
    libero_spec,
    robot_state,
    spec_of,
    upright,
    upright_cameras,
)
from stores.errors import ObsSpecMismatch, SourceError


def simulator_observation(size=8):
    rng = np.random.default_rng(0)
    return {
        "agentview_image": rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
        "robot0_eye_in_hand_image": rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
        "robot0_joint_pos": rng.normal(size=7),
        "robot0_gripper_qpos": rng.normal(size=2),
    }


def test_opengl_frames_are_flipped_top_to_bottom_and_not_mirrored():
    frame = np.zeros((4, 6, 3), np.uint8)
    frame[0, 1] = 200  # OpenGL: row 0 is the bottom of the picture
    turned = upright(frame, "opengl")
    assert turned[3, 1, 0] == 200
    assert turned.sum() == frame.sum()
    assert np.array_equal(upright(turned, "opengl"), frame)
    assert np.array_equal(upright(frame, "opencv"), frame)


def test_unknown_convention_is_refused():
    with pytest.raises(SourceError, match="opengl"):
        upright(np.zeros((2, 2, 3), np.uint8), "vulkan")


def test_from_simulator_orders_cameras_and_joins_the_robot_state():
    observed = simulator_observation()
    got = from_simulator(observed, "do it")
    assert [image.shape for image in got.images] == [(8, 8, 3), (8, 8, 3)]
    assert np.array_equal(got.images[0], observed["agentview_image"][::-1])
    assert np.array_equal(got.images[1], observed["robot0_eye_in_hand_image"][::-1])
    expected = np.r_[observed["robot0_joint_pos"], observed["robot0_gripper_qpos"]].astype(np.float32)
    assert np.array_equal(got.robot_state, expected)
    assert got.instruction == "do it"
    assert spec_of(got) == libero_spec(8)


def test_training_and_simulation_pass_through_the_same_code():
    observed = simulator_observation()
    frames = {"agentview": observed["agentview_image"][None], "eye_in_hand": observed["robot0_eye_in_hand_image"][None]}
    seen = from_simulator(observed, "").images
    for mine, theirs in zip(upright_cameras(frames, "opengl"), seen, strict=True):
        assert np.array_equal(mine[0], theirs)


@pytest.mark.parametrize("key", ["agentview_image", "robot0_gripper_qpos"])
def test_a_missing_simulator_key_is_named(key):
    observed = simulator_observation()
    del observed[key]
    with pytest.raises(ObsSpecMismatch, match=key):
        from_simulator(observed, "")


def test_bad_frames_and_states_are_refused():
    good = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(SourceError, match="eye_in_hand"):
        upright_cameras({"agentview": good}, "opengl")
    with pytest.raises(SourceError, match="uint8"):
        upright_cameras({"agentview": good.astype(np.float32), "eye_in_hand": good}, "opengl")
    with pytest.raises(SourceError, match="finite"):
        robot_state(np.full(7, np.nan), np.zeros(2))
    with pytest.raises(SourceError, match="joint positions"):
        robot_state(np.zeros(6), np.zeros(2))
    with pytest.raises(SourceError, match="gripper positions"):
        robot_state(np.zeros((3, 7)), np.zeros((2, 2)))
