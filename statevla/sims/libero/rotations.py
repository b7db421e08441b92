"""The few rotations that experts and demonstration files need. Quaternions are (x, y, z, w), as robosuite's."""

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def matrix_of_quaternion(quaternion: Vector) -> Vector:
    """Unit quaternion ``[4]`` -> rotation matrix ``[3, 3]``."""
    x, y, z, w = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def axis_angle_of_matrix(rotation: Vector) -> Vector:
    """Rotation matrix ``[3, 3]`` -> axis times angle ``[3]`` [rad], angle in [0, pi]."""
    cosine = np.clip((np.trace(rotation) - 1) / 2, -1.0, 1.0)
    angle = float(np.arccos(cosine))
    skew = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    if angle < 1e-8:
        return np.zeros(3)
    if np.pi - angle < 1e-4:  # the skew part vanishes: the axis is the eigenvector, from the largest diagonal entry
        square = (rotation + np.eye(3)) / 2
        axis: Vector = square[:, int(np.argmax(np.diag(square)))]
        axis = axis / np.linalg.norm(axis)
        return angle * (axis if axis @ skew >= 0 else -axis)
    return np.asarray(angle * skew / (2 * np.sin(angle)))


def axis_angle_of_quaternion(quaternion: Vector) -> Vector:
    """Quaternions ``[..., 4]`` -> axis times angle ``[..., 3]`` [rad], angle in [0, 2 pi].

    The convention of LIBERO's files (``ee_ori``): the quaternion's sign is kept, so the angle may exceed pi.
    """
    w = np.clip(quaternion[..., 3:], -1.0, 1.0)
    sine = np.sqrt(1.0 - w * w)
    still = sine < 1e-9
    scaled: Vector = quaternion[..., :3] * 2.0 * np.arccos(w) / np.where(still, 1.0, sine)
    return np.where(still, 0.0, scaled)


def about_x(angle: float) -> Vector:
    """Rotation ``[3, 3]`` by ``angle`` [rad] about x."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def about_y(angle: float) -> Vector:
    """Rotation ``[3, 3]`` by ``angle`` [rad] about y."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def about_z(angle: float) -> Vector:
    """Rotation ``[3, 3]`` by ``angle`` [rad] about z."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def pointing_down(yaw: float) -> Vector:
    """Rotation ``[3, 3]`` of a gripper that points straight down, turned by ``yaw`` [rad] about the vertical."""
    return about_z(yaw) @ np.diag([1.0, -1.0, -1.0])


def upright(rotation: Vector) -> Vector:
    """The gripper rotation that points straight down and has the yaw of ``rotation``."""
    return pointing_down(float(np.arctan2(rotation[1, 0], rotation[0, 0])))


def angle_between(a: Vector, b: Vector) -> float:
    """Angle [rad] of the turn from rotation ``b`` to rotation ``a``."""
    return float(np.linalg.norm(axis_angle_of_matrix(a @ b.T)))


def nearer(rotation: Vector, now: Vector) -> Vector:
    """A parallel gripper is the same after half a turn about its axis: of the two, the smaller turn from ``now``."""
    other = rotation @ about_z(np.pi)
    return min((rotation, other), key=lambda goal: angle_between(goal, now))


def quaternion_of_axis_angle(turn: Vector) -> Vector:
    """Axis times angle ``[3]`` [rad] -> unit quaternion ``[4]`` in MuJoCo's order (w, x, y, z)."""
    half = float(np.linalg.norm(turn)) / 2
    return np.append(np.cos(half), turn * 0.5 * np.sinc(half / np.pi))


def quaternion_product(a: Vector, b: Vector) -> Vector:
    """Turn ``b``, then ``a``: quaternions ``[4]`` in MuJoCo's order (w, x, y, z)."""
    vector = a[0] * b[1:] + b[0] * a[1:] + np.cross(a[1:], b[1:])
    return np.append(a[0] * b[0] - a[1:] @ b[1:], vector)
