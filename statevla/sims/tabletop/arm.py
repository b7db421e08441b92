"""Kinematics of the tabletop robot: 7 joint positions and the gripper pose, each an exact function of the other.

World frame: metres, origin at the table's centre, ``x`` right, ``y`` away from the robot, ``z`` up; yaw [rad] turns
from x to y. The base stands at (0, -0.45), outside the table.

The chain has three parts, so that the pose (x, y, z, yaw) and the joints determine each other:

- joints 1, 2 turn two horizontal links of 0.40 m (elbow always on the robot's right): position in the plane;
- joints 3, 4, 5 pitch two links of 0.25 m as a scissor lift, at theta, pi - 2 theta and theta - pi/2: they move the
  gripper straight up and keep the tool axis vertical;
- joints 6, 7 share the wrist's turn equally.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

BASE: Final = (0.0, -0.45)
LINK: Final = 0.40
"""Length of each of the two horizontal links [m]."""
LIFT_LINK: Final = 0.25
"""Length of each of the two lift links [m]."""
LIFT_FLOOR: Final = -0.10
"""Height of the gripper with the lift folded flat [m]; the workspace stays above it."""


def forward(joints: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gripper pose [x, y, z, yaw] (m, rad; yaw in [-pi, pi]) of seven joint positions [rad], for any joints."""
    q1, q2, q3, q4, _, q6, q7 = (float(q) for q in joints)
    heading = q1 + q2
    reach = LINK + LIFT_LINK * (np.cos(q3) + np.cos(q3 + q4))
    x = BASE[0] + LINK * np.cos(q1) + reach * np.cos(heading)
    y = BASE[1] + LINK * np.sin(q1) + reach * np.sin(heading)
    z = LIFT_FLOOR + LIFT_LINK * (np.sin(q3) + np.sin(q3 + q4))
    return np.array([x, y, z, wrap(heading + q6 + q7)])


def inverse(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seven joint positions [rad] of a gripper pose [x, y, z, yaw] inside the workspace; ``forward`` undoes it."""
    dx, dy = float(pose[0]) - BASE[0], float(pose[1]) - BASE[1]
    # Law of cosines for two equal links; acos in (0, pi) keeps the elbow on one side.
    elbow = np.arccos((dx * dx + dy * dy) / (2 * LINK * LINK) - 1.0)
    shoulder = np.arctan2(dy, dx) - elbow / 2
    theta = np.arcsin((float(pose[2]) - LIFT_FLOOR) / (2 * LIFT_LINK))
    wrist = wrap(float(pose[3]) + np.pi / 2 - shoulder - elbow) - np.pi / 2
    return np.array(
        [shoulder, elbow, theta, np.pi - 2 * theta, theta - np.pi / 2, wrist / 2, wrist / 2],
    )


def elbow(pose: NDArray[np.float64]) -> tuple[float, float]:
    """Place of the elbow in the plane [m], for drawing."""
    shoulder = float(inverse(pose)[0])
    return BASE[0] + LINK * float(np.cos(shoulder)), BASE[1] + LINK * float(np.sin(shoulder))


def wrap(angle: float) -> float:
    """The same angle [rad] in [-pi, pi]."""
    return float(np.arctan2(np.sin(angle), np.cos(angle)))
