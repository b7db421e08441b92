"""Scripted expert of the tabletop suite.

It reads the true places of things, but what it does is a smooth function of what the cameras and the joints show:
gripper against block and bowl, finger opening, block in hand or not. There is no stage counter, so that a policy
without memory can imitate it.

Its aims lie *beyond* the places where the fingers act: it is still on its way down when it closes them, and still on
its way to the bowl's centre when it opens them. An expert that comes to rest just where it releases teaches an imitator
to hover there for ever. For the same reason these places
vary between episodes, so that acting grows certain on the way.

It never turns the gripper: rx, ry and rz are exactly 0 in every action, noise is on x, y and z alone.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from statevla.sims.tabletop.environment import GOAL_RADIUS, POSITION_STEP, Obs, TabletopEnv

GRASP_Z: Final = 0.010
HOVER_Z: Final = 0.11
CARRY_Z: Final = 0.13
PLACE_Z: Final = 0.05
RETREAT_Z: Final = 0.16
GAIN: Final = 0.4
"""Share of the remaining way covered in a step, near the target."""


class TabletopExpert:
    """Solves ``env``'s present task. ``rng`` draws each episode's speed and places to act, each action's noise.

    ``task`` makes it follow another instruction than the environment's own.
    """

    def __init__(
        self, env: TabletopEnv, rng: np.random.Generator, task: int | None = None, noise: float = 0.03
    ) -> None:
        self.env, self.rng, self.task, self.noise = env, rng, task, noise
        self.speed = float(rng.uniform(0.40, 0.52))
        self.close_below = float(rng.uniform(0.026, 0.045))
        self.release_within = float(rng.uniform(0.020, 0.050))

    def act(self, obs: Obs) -> NDArray[np.float64]:
        """Action ``[7]`` in [-1, 1]. ``obs`` is not read: the environment's state holds the same and more."""
        del obs
        env = self.env
        block_row, bowl_row = env.targets(env.task if self.task is None else self.task)
        block, bowl, hand = env.objects[block_row], env.objects[bowl_row], env.pose
        holding = env.held == block_row
        target = np.array([*(bowl if holding else block)[:2], 0.0])
        away = float(np.hypot(*(target[:2] - hand[:2])))
        if holding:
            target[2] = _funnel(away, PLACE_Z, CARRY_Z)
            close = away > self.release_within
        elif np.hypot(*(block[:2] - bowl[:2])) < GOAL_RADIUS:
            target[:2], target[2], close = hand[:2], RETREAT_Z, False
        else:
            target[2] = _funnel(away, GRASP_Z, HOVER_Z)
            close = away < 0.05 and hand[2] < self.close_below
        action = np.zeros(7)
        action[:3] = self._towards(target - hand[:3])
        action[:3] += self.noise * self.rng.standard_normal(3)
        action[6] = 1.0 if close else -1.0
        return np.clip(action, -1.0, 1.0)

    def _towards(self, way: NDArray[np.float64]) -> NDArray[np.float64]:
        """Proportional near the target, of constant speed far from it, always straight."""
        length = float(np.linalg.norm(way)) + 1e-9
        pace = self.speed * float(np.tanh(GAIN * length / POSITION_STEP / self.speed))
        return way * (pace / length)


def _funnel(away: float, low: float, high: float) -> float:
    """Height to aim for: ``low`` above the target, rising smoothly to ``high`` at 11 cm from it."""
    t = min(max((away - 0.04) / 0.07, 0.0), 1.0)
    return low + (high - low) * t * t * (3 - 2 * t)
