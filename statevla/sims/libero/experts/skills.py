"""Skills that every suite uses: pick up an object, put down the one that is held.

Legend: positions ``[3]`` in world coordinates [m], z up; rotations ``[3, 3]``.
"""

from collections.abc import Callable, Generator, Iterable
from functools import partial

import numpy as np

from statevla.sims.libero import rotations
from statevla.sims.libero.experts import grasps
from statevla.sims.libero.experts.grasps import Grasp
from statevla.sims.libero.experts.program import CLOSED, OPEN, Go, Steps, Vector, World

Grips = Callable[[World, str], Iterable[Grasp]]
"""Candidates for an object, asked for anew before every attempt."""

TRIES = 3
CLOSING_STEPS = 14
OPENING_STEPS = 8
HOVER = 0.09
CHECK_LIFT = 0.06  # [m] up, then the hand looks whether the object came along
CAME_ALONG = 0.018  # [m]; a bowl that hangs by its rim tilts, and comes less than the hand
DOWN_STEPS = 32
BLOCKED = 0.015  # [m] above the grip, where the hand came to rest
ABOVE_ALL = 0.10
DROP = 0.006  # [m] above the surface that an object is let go


def by_body(world: World, name: str, depth: float = grasps.DEPTH) -> list[Grasp]:
    """Around the whole object; by its rim where it is too wide."""
    scene = world.scene
    shape, others = scene.surface(name), world.obstacles(name)
    return grasps.around_body(shape, others, scene.base, depth) or by_rim(world, name)


def by_rim(world: World, name: str, depth: float = grasps.RIM_DEPTH) -> list[Grasp]:
    """The wall of a bowl, mug or plate between the fingers."""
    scene = world.scene
    return grasps.over_rim(
        scene.surface(name), world.obstacles(name), scene.position(name), scene.base, depth
    )  # fmt: skip


def by_knob(world: World, name: str) -> list[Grasp]:
    """The knob of a lid: the pot is too wide for the hand."""
    return grasps.on_knob(world.scene.surface(name), world.obstacles(name))


def deep(depth: float) -> Grips:
    """Around the whole object, ``depth`` [m] below its top."""
    return partial(by_body, depth=depth)


def pick(
    world: World,
    name: str,
    grips: Grips = by_body,
    *,
    lift: float = 0.14,
    over: float | None = None,
    lean: float = 0.0,
    hover: float = HOVER,
    hasty: bool = False,
) -> Steps:
    """Takes an object from above and lifts it by ``lift`` [m]; tries another grip when it did not come along.

    over: height [m] at which the hand crosses what stands in between; None: straight there.
    lean: angle [rad] by which the hand leans towards the robot. hasty: a grip that the hand does not reach is left for
    another one without closing; what is far away may be held all the same, so this is for suites with little time.
    """
    rng = world.rng
    tried: list[Grasp] = []
    for _ in range(TRIES):
        grasp = grasps.choose(grips(world, name), tried, rng)
        tried.append(grasp)
        rotation = rotations.about_y(-lean) @ rotations.pointing_down(grasp.yaw + rng.normal(0, 0.02))
        grip = grasp.center + np.append(rng.normal(0, 0.0015, 2), 0.0)
        before = world.scene.position(name)[2]
        above = raised(grip, hover)
        aside = float(np.linalg.norm(world.hand[:2] - grip[:2])) > 0.04
        if world.hand[2] < above[2] - 0.02 or (over is not None and world.hand[2] < over and aside):
            yield Go("rise", at(world.hand, max(above[2], over or 0.0)), rotation, OPEN, 0.8, 30, 0.03)
        if over is not None and over > above[2]:
            yield Go("over", at(grip, over), rotation, OPEN, 0.9, 60, 0.03)
        yield Go("above", above, rotation, OPEN, 0.9, 70, 0.015, turned=0.08)
        yield Go("down", grip, rotation, OPEN, 0.5, DOWN_STEPS, 0.005)
        if hasty and world.hand[2] > grip[2] + BLOCKED:
            continue
        yield Go("close", grip, rotation, CLOSED, 0.4, CLOSING_STEPS, 0.0)
        yield Go("lift", raised(grip, min(lift, CHECK_LIFT)), rotation, CLOSED, 0.5, 25)
        if world.scene.position(name)[2] > before + CAME_ALONG:
            yield Go("lift", raised(grip, lift), rotation, CLOSED, 0.8, 40, 0.025)
            return
        yield Go("retry", above, rotation, OPEN, 0.6, 40, 0.02)


def place(
    world: World,
    name: str,
    where: Vector,
    surface: float,
    *,
    carry: float = 0.0,
    rotation: Vector | None = None,
    drop: float = DROP,
    jitter: float = 0.004,
    away: float = 0.10,
) -> Steps:
    """:func:`bring`, then lets go and moves up by ``away`` [m]."""
    rotation = rotations.upright(world.turn) if rotation is None else rotation
    low = yield from bring(world, name, where, surface, carry=carry, rotation=rotation, drop=drop, jitter=jitter)
    yield from let_go(world, low, rotation, away)


def bring(
    world: World,
    name: str,
    where: Vector,
    surface: float,
    *,
    carry: float,
    rotation: Vector,
    drop: float = DROP,
    jitter: float = 0.004,
    careful: bool = False,
) -> Generator[Go, None, Vector]:
    """Holds the object's origin above ``where`` [2 or more], its lowest point ``drop`` [m] above ``surface`` [m].

    Where the object hangs in the hand is looked at again before carrying and before lowering.
    carry: height [m] of the hand on the way, if higher than needed. rotation: of the hand. careful: comes to rest above
    the goal and goes down slowly, for where there is little room. Returns where the hand was sent last.
    """
    goal = where[:2] + world.rng.uniform(-jitter, jitter, 2)

    def hand_for(height: float) -> Vector:
        """Where the hand must be for the object's origin above the goal and its bottom ``height`` above the surface."""
        offset = world.scene.position(name) - world.hand
        hanging = world.hand[2] - world.bottom(name)
        return np.append(goal - offset[:2], surface + height + hanging)

    high = max(carry, hand_for(drop)[2] + 0.06)
    if world.hand[2] < high - 0.02:
        yield Go("raise", at(world.hand, high), rotation, CLOSED, 0.8, 40, 0.02)
    yield Go("carry", at(hand_for(drop), high), rotation, CLOSED, 0.9, 90, 0.02)
    if careful:
        yield Go("align", at(hand_for(drop), high), rotation, CLOSED, 0.3, 40, 0.004, turned=0.03, stay=8)
    yield Go("lower", hand_for(drop + 0.02), rotation, CLOSED, 0.35 if careful else 0.7, 80 if careful else 40, 0.010)
    low = hand_for(drop)
    yield Go("lower", low, rotation, CLOSED, 0.4, 30, 0.006)
    return low


def let_go(world: World, where: Vector, rotation: Vector, away: float = 0.10) -> Steps:
    """Opens the hand and goes straight up by ``away`` [m]."""
    yield Go("open", where, rotation, OPEN, 0.3, OPENING_STEPS, 0.0)
    yield Go("away", raised(world.hand, away), rotation, OPEN, 0.6, 30, 0.02)


def at(plane: Vector, height: float) -> Vector:
    """The point ``[3]`` above ``plane`` [2 or more] at ``height`` [m]."""
    return np.array([plane[0], plane[1], height])


def raised(point: Vector, by: float) -> Vector:
    """``point [3]``, higher by ``by`` [m]."""
    return np.array([point[0], point[1], point[2] + by])
