"""The scripted expert's geometry, without a simulator: rotations, grasps, waypoints, control."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from statevla.sims.libero import grasp, pick_place, rotations
from statevla.sims.libero.scene import box_points

angles = st.floats(-np.pi + 1e-3, np.pi - 1e-3)
NOTHING = np.zeros((0, 3))


def box(x: float, y: float, half: tuple[float, float, float], yaw: float = 0.0) -> NDArray[np.float64]:
    """A box standing on the floor."""
    c, s = np.cos(yaw), np.sin(yaw)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return box_points(np.array([x, y, half[2]]), turn, np.array(half))


def quaternion(axis: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    return np.append(np.sin(angle / 2) * axis, np.cos(angle / 2))


@given(st.floats(0, np.pi), st.floats(0, 2 * np.pi), st.floats(0.01, np.pi))
def test_axis_angle_survives_quaternion_and_matrix(polar: float, azimuth: float, angle: float) -> None:
    axis = np.array([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)])
    turn = quaternion(axis, angle)
    matrix = rotations.matrix_of_quaternion(turn)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(matrix @ axis, axis, atol=1e-12)
    found = rotations.axis_angle_of_matrix(matrix)
    if angle < np.pi - 1e-3:
        np.testing.assert_allclose(found, angle * axis, atol=1e-6)
    else:  # at half a turn, axis and opposite axis are the same rotation
        np.testing.assert_allclose(np.abs(found @ axis), angle, atol=1e-5)
    np.testing.assert_allclose(rotations.axis_angle_of_quaternion(turn), angle * axis, atol=1e-7)


def test_no_rotation_has_no_axis() -> None:
    assert rotations.axis_angle_of_matrix(np.eye(3)).tolist() == [0, 0, 0]
    assert rotations.axis_angle_of_quaternion(np.array([[0, 0, 0, 1.0]])).tolist() == [[0, 0, 0]]


@given(angles)
def test_a_gripper_that_points_down_points_down(yaw: float) -> None:
    turn = rotations.pointing_down(yaw)
    np.testing.assert_allclose(turn @ [0, 0, 1], [0, 0, -1], atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1)


@given(st.floats(-1.2, 1.2))
def test_a_long_box_is_taken_across(yaw: float) -> None:
    found = grasp.plan_grasp(box(0.1, -0.2, (0.06, 0.02, 0.03), yaw), NOTHING)
    assert found.width == pytest.approx(0.04, abs=0.02)
    assert np.hypot(*(found.center[:2] - [0.1, -0.2])) < 0.01
    across = np.array([-np.sin(found.yaw), np.cos(found.yaw)])
    short_side = np.array([-np.sin(yaw), np.cos(yaw)])
    assert abs(across @ short_side) > np.cos(np.deg2rad(20))


def test_fingers_go_where_there_is_room() -> None:
    target = box(0.0, 0.0, (0.025, 0.025, 0.04))
    alone = grasp.plan_grasp(target, NOTHING)
    beside = np.concatenate([box(0.0, side * 0.065, (0.02, 0.02, 0.04)) for side in (-1, 1)])
    crowded = grasp.plan_grasp(target, beside)
    assert abs(alone.yaw) < np.deg2rad(10)  # fingers close along y
    assert abs(crowded.yaw) > np.deg2rad(30)  # where the neighbours stand
    assert crowded.finger_gap > 0


@pytest.mark.parametrize(("half_height", "expected"), [(0.015, 0.015), (0.06, 0.12 - grasp.TIP_DEPTH)])
def test_low_objects_are_taken_at_half_height_and_tall_ones_below_the_top(half_height: float, expected: float) -> None:
    assert grasp.grip_height(box(0, 0, (0.02, 0.02, half_height))) == pytest.approx(expected)


@dataclass(frozen=True)
class Boxes:
    """A scene of two boxes and a container."""

    movable: list[str]
    of_interest: list[str]

    def surface(self, name: str) -> NDArray[np.float64]:
        return box(*{"can": (0.0, -0.1), "other": (0.2, 0.2)}[name], (0.03, 0.03, 0.04))

    def position(self, name: str) -> NDArray[np.float64]:
        return {"can": np.array([0.0, -0.1, 0.04]), "basket_1": np.array([0.0, 0.26, 0.0])}[name]


DOWN = np.array([1.0, 0.0, 0.0, 0.0])  # half a turn about x


@pytest.mark.parametrize("seed", range(20))
def test_a_hand_that_follows_the_actions_takes_the_object_to_the_container(seed: int) -> None:
    """The hand moves by half of what each action asks for; the object follows a closed hand."""
    expert = pick_place.PickPlace(Boxes(["can", "other"], ["can", "basket_1"]), "basket_1", np.random.default_rng(seed))
    hand, can, closed_at, opened_at = np.array([-0.1, 0.0, 0.3]), np.array([0.0, -0.1]), None, None
    stages: list[str] = []
    while len(stages) < 200 and stages[-1:] != [pick_place.LAST]:
        action = expert.act((hand, DOWN))
        stages.append(expert.stage)
        assert np.abs(action).max() <= 1
        moved = hand + action[:3] * pick_place.POSITION_UNIT * 0.5
        if action[6] > 0:
            closed_at = closed_at if closed_at is not None else hand.copy()
            can = can + (moved - hand)[:2]
        elif closed_at is not None and opened_at is None:
            opened_at = hand.copy()
        hand = moved
    assert list(dict.fromkeys(stages)) == ["above", "down", "close", "lift", "carry", "lower", "open", "away"]
    assert closed_at is not None
    assert np.hypot(*(closed_at[:2] - [0.0, -0.1])) < 0.02
    assert closed_at[2] < 0.08
    assert opened_at is not None
    assert np.hypot(*(can - [0.0, 0.26])) < 0.04


def test_the_seed_decides() -> None:
    def first(seed: int) -> list[float]:
        scene = Boxes(["can", "other"], ["can", "basket_1"])
        expert = pick_place.PickPlace(scene, "basket_1", np.random.default_rng(seed))
        return [float(x) for x in expert.act((np.array([0, 0, 0.3]), DOWN))]

    assert first(1) == first(1)
    assert first(1) != first(2)
