"""Programs of waypoints, and the expert that follows one.

A program is a generator of :class:`Go`. It is resumed when the hand has arrived, so each waypoint is planned from the
world as it is then: what slipped, fell or rolled away is seen. Skills are generators that programs ``yield from``.

Legend: positions ``[3]`` in world coordinates [m], z up; rotations ``[3, 3]``; actions ``[7]`` in controller units.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from statevla.sims.libero import rotations
from statevla.sims.libero.scene import Points, Scene

Vector = NDArray[np.float64]
Pose = tuple[Vector, Vector]
"""End-effector position ``[3]`` [m] and quaternion ``[4]`` (x, y, z, w)."""

POSITION_UNIT = 0.05  # [m] that an action of 1 asks for (OSC_POSE)
ROTATION_UNIT = 0.5  # [rad]
ROTATION_GAIN = 0.9
SMOOTHING = 0.35  # share of the previous action
JITTER = 0.01  # of the expert's own actions, so that demonstrations differ as those of people do
DEAD_ZONE = 2e-3
REST_STEPS = 5  # within MOVED and TURNED: something holds the hand
MOVED, TURNED = 2e-3, 0.02  # [m], [rad]
OPEN, CLOSED = -1.0, 1.0
DONE: Final = "done"


@dataclass(frozen=True)
class Go:
    """Go to ``position`` and ``rotation`` with ``gripper``.

    speed: largest part of the move's action. turn: largest part of the rotation's action.
    near: left when nearer than this [m], or when the hand has come to rest; 0: stays for all ``steps``.
    turned: and turned to within this [rad].
    steps: left after so many in any case. stay: not before so many. until: left when true.
    """

    name: str
    position: Vector
    rotation: Vector
    gripper: float
    speed: float = 0.9
    steps: int = 60
    near: float = 0.012
    turned: float | None = None
    turn: float = 0.35
    stay: int = 0
    until: Callable[[], bool] | None = None

    def over(self, elapsed: int, position: Vector, rotation: Vector, at_rest: bool = False) -> bool:
        """Whether to ask the program for the next waypoint after ``elapsed`` steps on the way to this one."""
        if elapsed >= self.steps:
            return True
        if elapsed < self.stay:
            return False
        if self.until is not None and self.until():
            return True
        if at_rest and self.near > 0:
            return True
        if float(np.linalg.norm(self.position - position)) >= self.near:
            return False
        return self.turned is None or rotations.angle_between(self.rotation, rotation) < self.turned


class Rest:
    """Whether the hand has come to rest on its way to a waypoint.

    A hand that waits out its steps where something holds it shows a policy many equal pictures with the same action,
    and then the same picture with another one: of such demonstrations a policy without memory learns to stand still.
    A hand that noise moves does not rest.
    """

    def __init__(self) -> None:
        self._position = self._rotation = np.zeros(0)
        self._steps = 0

    def see(self, position: Vector, rotation: Vector) -> bool:
        """Takes the next pose; whether the last ``REST_STEPS`` brought the hand nowhere."""
        if len(self._position) and self._still(position, rotation):
            self._steps += 1
        else:
            self._position, self._rotation, self._steps = position, rotation, 0
        return self._steps >= REST_STEPS

    def _still(self, position: Vector, rotation: Vector) -> bool:
        near = float(np.linalg.norm(position - self._position)) < MOVED
        return near and rotations.angle_between(rotation, self._rotation) < TURNED


class World:
    """What a program sees: the scene, and the hand as it was observed last.

    hand: position ``[3]`` of the grip point. turn: rotation ``[3, 3]`` of the hand. rng: of this episode.
    """

    def __init__(self, scene: Scene, pose: Pose, rng: np.random.Generator) -> None:
        self.scene = scene
        self.rng = rng
        self.see(pose)

    def see(self, pose: Pose) -> None:
        """Takes the hand's present pose."""
        self.hand: Vector = np.array(pose[0], np.float64)
        self.turn: Vector = rotations.matrix_of_quaternion(pose[1])

    def obstacles(self, *besides: str) -> Points:
        """Points ``[P, 3]`` of all things that can be hit, but for those named."""
        names = [name for name in (*self.scene.movable, *self.scene.fixtures) if name not in besides]
        shapes = [self.scene.surface(name) for name in names]
        return np.concatenate(shapes) if shapes else np.zeros((0, 3))

    def bottom(self, name: str) -> float:
        """Height [m] of a thing's lowest point."""
        return float(self.scene.surface(name)[:, 2].min())

    def top(self, *names: str) -> float:
        """Height [m] of the highest point of some things."""
        return max(float(self.scene.surface(name)[:, 2].max()) for name in names)


Steps = Generator[Go, None, None]
Program = Callable[[World], Steps]


@runtime_checkable
class Expert(Protocol):
    """What an expert must offer: an action for the present pose, and a word for what it is doing."""

    @property
    def stage(self) -> str:
        """What the expert is doing; ``DONE`` when it has nothing left to do."""

    def act(self, pose: Pose) -> Vector:
        """Action ``[7]`` in controller units, each in [-1, 1], for the present end-effector pose."""


class Follower:
    """The expert that follows a program. A proportional controller on the hand's pose, smoothed and slightly unsteady.

    The same scene, poses and random numbers give the same actions.
    """

    def __init__(self, scene: Scene, pose: Pose, program: Program, rng: np.random.Generator) -> None:
        self._world = World(scene, pose, rng)
        self._rng = rng
        self._gain = rng.uniform(1.25, 1.55)
        self._smoothed = np.zeros(6)
        self._steps = program(self._world)
        self._begin(next(self._steps))

    def _begin(self, go: Go) -> None:
        self._go, self._rest, self._elapsed = go, Rest(), 0

    @property
    def stage(self) -> str:
        """Name of the present waypoint, ``DONE`` at the end of the program."""
        return self._go.name

    def act(self, pose: Pose) -> Vector:
        """Action ``[7]`` in controller units, each in [-1, 1]."""
        world = self._world
        world.see(pose)
        at_rest = self._rest.see(world.hand, world.turn)
        while self.stage != DONE and self._go.over(self._elapsed, world.hand, world.turn, at_rest):
            stay = Go(DONE, world.hand, world.turn, self._go.gripper, speed=0.3)
            self._begin(next(self._steps, stay))
            at_rest = False
        self._elapsed += 1
        go = self._go
        move = self._gain * (go.position - world.hand) / POSITION_UNIT
        move = move * min(1.0, go.speed / max(float(np.abs(move).max()), 1e-9))
        error = rotations.axis_angle_of_matrix(go.rotation @ world.turn.T)
        turn = np.clip(ROTATION_GAIN * error / ROTATION_UNIT, -go.turn, go.turn)
        self._smoothed = SMOOTHING * self._smoothed + (1 - SMOOTHING) * np.concatenate([move, turn])
        action = self._smoothed + np.concatenate([self._rng.normal(0, JITTER, 3), np.zeros(3)])
        action = np.where(np.abs(action) < DEAD_ZONE, 0.0, action)
        return np.append(np.clip(action, -1.0, 1.0), go.gripper)
