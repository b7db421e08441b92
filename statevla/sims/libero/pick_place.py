"""A scripted expert that picks one object and drops it into a container.

Waypoints above, at and away from the object and the container, followed by a proportional controller on the robot's
end-effector pose. Speeds, heights, grip and drop points vary with the seed, and the actions are smoothed and slightly
noisy, so that demonstrations differ as those of people do.

Legend: positions ``[3]`` in world coordinates [m], rotations ``[3, 3]``, actions ``[7]`` in controller units.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from statevla.sims.libero import rotations
from statevla.sims.libero.grasp import Grasp, plan_grasp
from statevla.sims.libero.scene import Scene

Vector = NDArray[np.float64]
Pose = tuple[Vector, Vector]
"""End-effector position ``[3]`` [m] and quaternion ``[4]`` (x, y, z, w)."""

POSITION_UNIT = 0.05  # [m] that an action of 1 asks for (OSC_POSE)
ROTATION_UNIT = 0.5  # [rad]
MAX_TURN = 0.35  # of the rotation's action, so that turning does not outrun moving
ROTATION_GAIN = 0.9
SMOOTHING = 0.35  # share of the previous action
NOISE = 0.012
DEAD_ZONE = 2e-3
OPEN, CLOSED = -1.0, 1.0

CONTAINER_RIM = 0.145  # [m] of LIBERO's basket above its origin
LAST = "away"


@runtime_checkable
class Expert(Protocol):
    """What an expert must offer: an action for the present pose, and a word for what it is doing."""

    @property
    def stage(self) -> str:
        """What the expert is doing; ``"away"`` when it has nothing left to do."""

    def act(self, pose: Pose) -> Vector:
        """Action ``[7]`` in controller units, each in [-1, 1], for the present end-effector pose."""


@dataclass(frozen=True)
class Waypoint:
    """Go to ``position`` and ``rotation`` with ``gripper``, no faster than ``speed`` (action units).

    Left when nearer than ``tolerance`` [m] or after ``steps``; without a tolerance after exactly ``steps``; never when
    ``steps`` is None.
    """

    name: str
    position: Vector
    rotation: Vector
    gripper: float
    speed: float
    steps: int | None
    tolerance: float | None = None

    def reached(self, position: Vector, elapsed: int) -> bool:
        """Whether to go on to the next waypoint after ``elapsed`` steps at this one."""
        if self.steps is None:
            return False
        near = self.tolerance is not None and float(np.linalg.norm(self.position - position)) < self.tolerance
        return near or elapsed >= self.steps


class PickPlace:
    """Picks the task's first object of interest, drops it into ``container``."""

    def __init__(self, scene: Scene, container: str, rng: np.random.Generator) -> None:
        target = scene.of_interest[0]
        neighbours = [scene.surface(name) for name in scene.movable if name != target]
        others = np.concatenate(neighbours) if neighbours else np.zeros((0, 3))
        shape = scene.surface(target)
        self.grasp = plan_grasp(shape, others)
        self._rng = rng
        self._gain = rng.uniform(1.2, 1.6)
        self._waypoints = plan_waypoints(
            self.grasp, float(shape[:, 2].min()), scene.position(target), scene.position(container), rng
        )
        self._index = 0
        self._elapsed = 0
        self._smoothed = np.zeros(6)

    @property
    def stage(self) -> str:
        """Name of the present waypoint."""
        return self._waypoints[self._index].name

    def act(self, pose: Pose) -> Vector:
        """Action ``[7]`` in controller units, each in [-1, 1]."""
        position, quaternion = pose
        while self._waypoints[self._index].reached(position, self._elapsed):
            self._index, self._elapsed = self._index + 1, 0
        self._elapsed += 1
        waypoint = self._waypoints[self._index]
        move = self._gain * (waypoint.position - position) / POSITION_UNIT
        move = move * min(1.0, waypoint.speed / max(float(np.abs(move).max()), 1e-9))
        error = rotations.axis_angle_of_matrix(waypoint.rotation @ rotations.matrix_of_quaternion(quaternion).T)
        turn = np.clip(ROTATION_GAIN * error / ROTATION_UNIT, -MAX_TURN, MAX_TURN)
        self._smoothed = SMOOTHING * self._smoothed + (1 - SMOOTHING) * np.concatenate([move, turn])
        pose_action = self._smoothed + np.concatenate([self._rng.normal(0, NOISE, 3), np.zeros(3)])
        pose_action = np.where(np.abs(pose_action) < DEAD_ZONE, 0.0, pose_action)
        return np.append(np.clip(pose_action, -1.0, 1.0), waypoint.gripper)


def plan_waypoints(
    grasp: Grasp, floor: float, target: Vector, container: Vector, rng: np.random.Generator
) -> tuple[Waypoint, ...]:
    """The way from anywhere above the table to the container and away from it.

    floor: height [m] of the target's lowest point. target, container: origins ``[3]`` of the bodies.
    """
    grip_down = rotations.pointing_down(grasp.yaw + rng.normal(0, 0.03))
    drop_down = rotations.pointing_down(rng.normal(0, 0.08))
    center = grasp.center[:2] + rng.normal(0, 0.0025, 2)
    height = float(grasp.center[2])
    # What must land in the container is the object's origin, which is carried along beside the finger tips.
    drop = container[:2] + rng.uniform(-0.012, 0.012, 2) - (target[:2] - center)
    hanging = height - floor
    hover = height + rng.uniform(0.07, 0.12)
    carry = max(0.17 + hanging + rng.uniform(0.0, 0.05), 0.22)
    release = max(float(container[2]) + CONTAINER_RIM + 0.012, hanging + 0.075 + rng.uniform(0.0, 0.02))
    swerve = rng.normal(0, 0.02, 2)
    speed = rng.uniform(0.65, 1.0)

    def at(plane: Vector, z: float) -> Vector:
        return np.array([plane[0], plane[1], z])

    above = at(center + rng.normal(0, 0.006, 2), hover)
    grip = at(center, height)
    let_go = at(drop, release)
    return (
        Waypoint("above", above, grip_down, OPEN, speed, 70, 0.018),
        Waypoint("down", grip, grip_down, OPEN, 0.6 * speed, 60, 0.005),
        Waypoint("close", grip, grip_down, CLOSED, 0.4, int(rng.integers(10, 15))),
        Waypoint("lift", at(center + 0.3 * swerve, carry), grip_down, CLOSED, 0.9 * speed, 50, 0.03),
        Waypoint("carry", at(drop + 0.2 * swerve, carry), drop_down, CLOSED, speed, 90, 0.02),
        Waypoint("lower", let_go, drop_down, CLOSED, 0.7 * speed, 40, 0.012),
        Waypoint("open", let_go, drop_down, OPEN, 0.3, int(rng.integers(8, 13))),
        Waypoint(LAST, at(drop, carry + 0.03), drop_down, OPEN, 0.5 * speed, None),
    )
