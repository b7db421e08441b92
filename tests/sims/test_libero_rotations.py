"""Rotations that experts, files and cameras need."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from statevla.sims.libero import rotations

angles = st.floats(-np.pi + 1e-3, np.pi - 1e-3)


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


@given(angles, st.floats(-0.5, 0.5))
def test_upright_keeps_the_yaw_and_loses_the_lean(yaw: float, lean: float) -> None:
    tilted = rotations.about_z(yaw) @ rotations.about_y(lean) @ rotations.pointing_down(0.0)
    np.testing.assert_allclose(rotations.upright(tilted), rotations.pointing_down(yaw), atol=1e-9)


@given(angles, angles)
def test_the_nearer_of_two_equal_grips_is_within_a_quarter_turn(yaw: float, now: float) -> None:
    chosen = rotations.nearer(rotations.pointing_down(yaw), rotations.pointing_down(now))
    assert rotations.angle_between(chosen, rotations.pointing_down(now)) <= np.pi / 2 + 1e-6
    closing = chosen[:, 1] @ rotations.pointing_down(yaw)[:, 1]
    assert abs(closing) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("turn", "axis"), [(rotations.about_x, 0), (rotations.about_y, 1), (rotations.about_z, 2)])
def test_turns_about_the_axes(turn: object, axis: int) -> None:
    matrix = turn(0.3)  # type: ignore[operator]
    np.testing.assert_allclose(rotations.axis_angle_of_matrix(matrix), 0.3 * np.eye(3)[axis], atol=1e-12)


@given(st.lists(st.floats(-1.5, 1.5), min_size=3, max_size=3), st.lists(st.floats(-1.5, 1.5), min_size=3, max_size=3))
def test_quaternion_products_are_matrix_products(first: list[float], second: list[float]) -> None:
    a = rotations.quaternion_of_axis_angle(np.array(first))
    b = rotations.quaternion_of_axis_angle(np.array(second))
    product = rotations.quaternion_product(a, b)

    def matrix(wxyz: NDArray[np.float64]) -> NDArray[np.float64]:
        return rotations.matrix_of_quaternion(np.append(wxyz[1:], wxyz[0]))

    np.testing.assert_allclose(matrix(product), matrix(a) @ matrix(b), atol=1e-9)
    np.testing.assert_allclose(rotations.axis_angle_of_matrix(matrix(a)), first, atol=1e-6)
