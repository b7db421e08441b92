"""The tabletop suite: a NumPy pick-and-place world that closes the loop with nothing to download.

Legend: O objects = blocks then bowls, S image side [px].

A red and a green block, a blue and a yellow bowl lie at random places on a table of 0.5 x 0.5 m, all of them in every
episode; the instruction names one block and one bowl, and without it the task cannot be solved. Observation keys, image
convention (upside-down, as OpenGL reads pixels back), actions and the flat state follow robosuite and LIBERO.

Physics is the least that makes the task honest: the gripper goes where the action says, fingers take two steps to
close on a block, a closed gripper centres and carries the block, an opened one lets it fall. Nothing collides. Rotation
about x and y is accepted and has no effect: the tool axis stays vertical.

The world is made to be learnt by a small policy in minutes. Table, floor and arm are grey, so that saturated colour
means a block or a bowl and nothing else. The blocks' colours are opposites, and so are the bowls', at right angles to
them: what tells the blocks apart does not see the bowls, which are five times as large. A block is taken from 6 cm off
its centre and counts as placed within 7 cm of the bowl's, which forgives errors of aim. Blocks lie nearly straight, the
gripper starts straight and no task needs a turn: position and fingers are all there is to imitate.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from statevla.sims.tabletop import arm
from statevla.sims.tabletop.render import BLOCK_HALF, Image, Renderer, Scene
from stores.errors import UsageError

BLOCKS: Final = {"red": (232, 36, 84), "green": (24, 212, 156)}
BOWLS: Final = {"blue": (72, 44, 228), "yellow": (212, 228, 44)}
TASKS: Final[tuple[str, ...]] = tuple(f"put the {block} block in the {bowl} bowl" for block in BLOCKS for bowl in BOWLS)
"""Instructions; the index is the task id, ``block * len(BOWLS) + bowl``."""

CONTROL_HZ: Final = 20
POSITION_STEP: Final = 0.05
"""Metres moved by an action of 1."""
ROTATION_STEP: Final = 0.5
"""Radians turned by an action of 1."""
LOW: Final = np.array([-0.25, -0.25, 0.015, -1.5])
HIGH: Final = np.array([0.25, 0.25, 0.30, 1.5])
"""Limits of the gripper pose [x, y, z, yaw]."""

FINGER_OPEN: Final = 0.05
FINGER_STEP: Final = 0.01
FINGER_HOLD: Final = 0.03
"""Finger position at which the fingers meet a block, half its side [m]; two steps from open."""
GRASP_RADIUS: Final = 0.06
GRASP_HEIGHT: Final = 0.05
"""The gripper takes a block that is this near in the plane, from at most this height [m]."""
BOWL_FLOOR: Final = 0.03
"""Height of a block's centre that rests in a bowl [m]: that of one on the table, for a bowl's floor is thin."""
GOAL_RADIUS: Final = 0.07
"""A block whose centre is this near to a bowl's, in the plane, lies in it [m]."""

_N_BLOCKS: Final = len(BLOCKS)
_N_OBJECTS: Final = _N_BLOCKS + len(BOWLS)
_NQ: Final = 9 + 7 * _N_OBJECTS
_NV: Final = 9 + 6 * _N_OBJECTS
STATE_SIZE: Final = 1 + _NQ + _NV

Obs = dict[str, NDArray[Any]]


def task_name(task: int) -> str:
    """The instruction with underscores, as LIBERO names files."""
    return TASKS[task].replace(" ", "_")


class TabletopEnv:
    """One world. ``seed`` feeds resets that are given none of their own."""

    max_steps: int = 100

    def __init__(self, image_size: int = 64, seed: int = 0) -> None:
        if image_size < 16 or image_size % 2:
            raise UsageError(f"image_size: expected an even number of at least 16 pixels, got {image_size}")
        self.image_size = image_size
        self.task = 0
        self.steps = 0
        self.pose = np.zeros(4)
        self.finger = FINGER_OPEN
        self.objects = np.zeros((_N_OBJECTS, 4))
        self.held: int | None = None
        self._velocity = np.zeros(_NV)
        self._seeds = np.random.default_rng(seed)
        self._renderer = Renderer(image_size)

    def reset(self, task: int | None = None, seed: int | None = None) -> Obs:
        """A new episode. The layout depends on the seed alone, so that tasks can be compared on equal layouts.

        Raises:
            UsageError: ``task`` is not an index of ``TASKS``.
        """
        if task is not None and not 0 <= task < len(TASKS):
            raise UsageError(f"task: expected 0 ... {len(TASKS) - 1}, got {task}")
        rng = np.random.default_rng(int(self._seeds.integers(2**63)) if seed is None else seed)
        self.objects = _draw_layout(rng)
        self.pose = rng.uniform([-0.12, -0.12, 0.12, 0.0], [0.12, 0.12, 0.20, 0.0])
        self.task = int(rng.integers(len(TASKS))) if task is None else task
        self.finger, self.held, self.steps = FINGER_OPEN, None, 0
        self._velocity = np.zeros(_NV)
        return self.observe()

    @property
    def instruction(self) -> str:
        return TASKS[self.task]

    @staticmethod
    def targets(task: int) -> tuple[int, int]:
        """Rows in ``objects`` of the block and the bowl that a task names."""
        return task // len(BOWLS), _N_BLOCKS + task % len(BOWLS)

    def step(self, action: NDArray[np.floating[Any]]) -> tuple[Obs, float, bool, dict[str, bool]]:
        """Advance 1/20 s. ``action [7]`` is clipped to [-1, 1]; the gripper closes when its last entry is positive.

        Returns:
            Observation, reward (1 on success), done (= success), info with ``success`` and ``truncated``.

        Raises:
            UsageError: ``action`` has another shape or is not finite.
        """
        command = np.asarray(action, np.float64)
        if command.shape != (7,) or not np.isfinite(command).all():
            raise UsageError(f"action: expected 7 finite numbers, got shape {command.shape}: {command}")
        command = np.clip(command, -1.0, 1.0)
        robot, objects = self._robot(), self.objects.copy()
        yaw = float(self.pose[3])
        delta = np.append(command[:3] * POSITION_STEP, command[5] * ROTATION_STEP)
        self.pose = np.clip(self.pose + delta, LOW, HIGH)
        if self.held is not None:
            self.objects[self.held, :3] = self.pose[:3]
            self.objects[self.held, 3] += self.pose[3] - yaw
        self._move_fingers(closing=bool(command[6] > 0))
        self.steps += 1
        self._velocity = np.zeros(_NV)
        self._velocity[:9] = (self._robot() - robot) * CONTROL_HZ
        self._velocity[9:].reshape(_N_OBJECTS, 6)[:, [0, 1, 2, 5]] = (self.objects - objects) * CONTROL_HZ
        success = self.check_success()
        info = {"success": success, "truncated": self.steps >= self.max_steps}
        return self.observe(), float(success), success, info

    def check_success(self) -> bool:
        """The named block lies released in the named bowl."""
        block, bowl = self.targets(self.task)
        offset = self.objects[block, :2] - self.objects[bowl, :2]
        return self.held != block and bool(np.hypot(*offset) < GOAL_RADIUS)

    def observe(self) -> Obs:
        """Robosuite's keys: two upside-down uint8 ``[S, S, 3]`` pictures, joints [rad] ``[7]``, fingers [m] ``[2]``."""
        agent, hand = self.render_upright()
        robot = self._robot()
        return {
            "agentview_image": np.ascontiguousarray(agent[::-1]),
            "robot0_eye_in_hand_image": np.ascontiguousarray(hand[::-1]),
            "robot0_joint_pos": robot[:7],
            "robot0_gripper_qpos": robot[7:],
        }

    def render_upright(self) -> tuple[Image, Image]:
        """What a person would see from the fixed camera and from the hand's camera."""
        colours = tuple(BLOCKS.values()), tuple(BOWLS.values())
        return self._renderer.render(
            Scene(self.pose, self.finger, arm.elbow(self.pose), arm.BASE, self.objects, self.held, *colours)
        )

    def get_state(self) -> NDArray[np.float64]:
        """``[time, qpos, qvel]`` float64: joints at 1:8, fingers at 8:10, then x, y, z, w, i, j, k of each object."""
        bodies = np.zeros((_N_OBJECTS, 7))
        bodies[:, :3] = self.objects[:, :3]
        bodies[:, 3], bodies[:, 6] = np.cos(self.objects[:, 3] / 2), np.sin(self.objects[:, 3] / 2)
        return np.concatenate([[self.steps / CONTROL_HZ], self._robot(), bodies.ravel(), self._velocity])

    def set_state(self, state: NDArray[np.float64]) -> Obs:
        """Put the world into a state of ``get_state``; the task stays. A held block is one inside the closed gripper.

        Raises:
            UsageError: ``state`` has another shape.
        """
        if state.shape != (STATE_SIZE,):
            raise UsageError(f"state: expected shape ({STATE_SIZE},), got {state.shape}")
        qpos, self._velocity = state[1 : 1 + _NQ], state[1 + _NQ :].copy()
        self.steps = round(float(state[0]) * CONTROL_HZ)
        self.pose, self.finger = arm.forward(qpos[:7]), float(qpos[7])
        bodies = qpos[9:].reshape(_N_OBJECTS, 7)
        self.objects = np.column_stack([bodies[:, :3], 2 * np.arctan2(bodies[:, 6], bodies[:, 3])])
        distance = np.abs(self.objects[:_N_BLOCKS, :3] - self.pose[:3]).max(1)
        nearest = int(distance.argmin())
        self.held = nearest if self.finger == FINGER_HOLD and distance[nearest] < 1e-9 else None
        return self.observe()

    def _robot(self) -> NDArray[np.float64]:
        return np.concatenate([arm.inverse(self.pose), [self.finger, -self.finger]])

    def _move_fingers(self, closing: bool) -> None:
        if not closing:
            self.finger = min(self.finger + FINGER_STEP, FINGER_OPEN)
            if self.held is not None:
                self._drop(self.held)
        elif self.held is None:
            block = self._block_between_fingers()
            stop = 0.0 if block is None or self.finger < FINGER_HOLD else FINGER_HOLD
            self.finger = max(self.finger - FINGER_STEP, stop)
            if block is not None and self.finger == FINGER_HOLD:
                self.held = block
                self.objects[block, :3] = self.pose[:3]

    def _block_between_fingers(self) -> int | None:
        if self.pose[2] > GRASP_HEIGHT:
            return None
        distance = np.hypot(*(self.objects[:_N_BLOCKS, :2] - self.pose[:2]).T)
        nearest = int(distance.argmin())
        return nearest if distance[nearest] < GRASP_RADIUS else None

    def _drop(self, block: int) -> None:
        """The block falls at once on what is below it."""
        bowls = self.objects[_N_BLOCKS:, :2] - self.objects[block, :2]
        inside = bool((np.hypot(*bowls.T) < GOAL_RADIUS).any())
        self.objects[block, 2] = BOWL_FLOOR if inside else BLOCK_HALF
        self.held = None


def _draw_layout(rng: np.random.Generator) -> NDArray[np.float64]:
    """Objects ``[O, 4]`` (x, y, z, yaw) at rest, far enough from each other for the gripper: rejection, one by one."""
    radii = np.array([0.06] * _N_BLOCKS + [0.085] * len(BOWLS))
    objects = np.zeros((_N_OBJECTS, 4))
    objects[:_N_BLOCKS, 2] = BLOCK_HALF
    placed: list[int] = []
    for index in reversed(range(_N_OBJECTS)):  # the large ones first
        while True:
            spot = rng.uniform(-0.185, 0.185, 2)
            apart = np.hypot(*(objects[placed, :2] - spot).T)
            if (apart > radii[placed] + radii[index]).all():
                break
        objects[index, :2] = spot
        placed.append(index)
    objects[:_N_BLOCKS, 3] = rng.uniform(-0.2, 0.2, _N_BLOCKS)
    return objects
