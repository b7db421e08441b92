"""Putting a mug into LIBERO's microwave and closing it.

The opening faces sideways and is 144 mm high, the mug 103 mm: no hand that comes from above fits, and a level one is
out of the arm's reach. So the mug is taken by the upright bar of its handle with the hand half-way between, pushed in
ahead of the hand, and the door, swung shut by its outer face, pushes it the last centimetre. All numbers of the oven
are of its model, [m] from its origin, in its own axes.
"""

import numpy as np

from statevla.sims.libero import rotations
from statevla.sims.libero.experts.fixtures import front_yaw
from statevla.sims.libero.experts.program import CLOSED, OPEN, Go, Steps, Vector, World
from statevla.sims.libero.experts.skills import CAME_ALONG, CLOSING_STEPS, OPENING_STEPS, TRIES, at, raised

TILT = 0.80  # [rad] of the hand from straight down: more is out of reach, less meets the oven's top
FLOOR = 0.024
INSIDE = np.array([-0.040, -0.022])  # of the mug's origin when it is in
HINGE = np.array([-0.1725, -0.088])
DOOR_TOP = 0.190
PUSH_RADIUS = 0.185  # from the hinge, short of the door's handle
DOOR_FACE = 0.025  # of the door's outer face beyond the hinge's line
FINGERS = 0.022  # half of the closed fingers, and a little
SHUT = -0.004  # [rad]


def take_by_handle(world: World, mug: str) -> Steps:
    """Grips the bar of a mug's handle, which points along the mug's own x, and lifts it a little."""
    for _ in range(TRIES):
        out = world.scene.rotation(mug)[:, 0]
        bar = max((part.mean(0) for part in world.scene.parts(f"{mug}_main")), key=lambda point: float(point @ out))
        rotation = _half_down(world, out)
        into = rotation[:, 2]
        before = bar - into * 0.09
        height = world.scene.position(mug)[2]
        yield Go("turn", raised(before, 0.08), rotation, OPEN, 0.9, 80, 0.03, turned=0.2, turn=0.6)
        yield Go("front", before, rotation, OPEN, 0.7, 50, turned=0.1, turn=0.5)
        grip = bar + into * 0.006
        yield Go("reach", grip, rotation, OPEN, 0.4, 50, 0.006)
        yield Go("close", grip, rotation, CLOSED, 0.3, CLOSING_STEPS, 0.0)
        yield Go("lift", raised(grip, 0.05), rotation, CLOSED, 0.5, 30)
        if world.scene.position(mug)[2] > height + CAME_ALONG:
            return
        yield Go("retry", before, rotation, OPEN, 0.6, 40, 0.02)


def put_in(world: World, mug: str, oven: str) -> Steps:
    """Pushes the held mug in, ahead of the hand, lets go and draws back."""
    origin, turn = world.scene.position(oven), world.scene.rotation(oven)
    rotation = world.turn
    foot = float(world.scene.site(f"{oven}_heating_region").position[2]) - 0.096

    def hand_for(inside: float, above: float) -> Vector:
        """The hand, for the mug's origin ``inside`` past its final place and its bottom ``above`` the oven's floor."""
        offset = world.scene.position(mug) - world.hand
        goal = origin + turn @ np.array([INSIDE[0], INSIDE[1] + inside, 0.0])
        hanging = world.hand[2] - world.bottom(mug)
        return np.append((goal - offset)[:2], foot + FLOOR + above + hanging)

    yield Go("carry", hand_for(-0.20, 0.020), rotation, CLOSED, 0.8, 90, 0.015)
    yield Go("in", hand_for(-0.20, 0.014), rotation, CLOSED, 0.5, 30, 0.008)
    yield Go("in", hand_for(0.0, 0.014), rotation, CLOSED, 0.6, 60, 0.010)
    low = hand_for(0.0, 0.003)
    yield Go("lower", low, rotation, CLOSED, 0.4, 20, 0.006)
    yield Go("open", low, rotation, OPEN, 0.3, OPENING_STEPS, 0.0)
    back = world.hand - turn @ np.array([0.0, 0.16, 0.0])
    yield Go("back", back, rotation, OPEN, 0.6, 40, 0.02)
    yield Go("up", at(back, foot + DOOR_TOP + 0.16), rotations.pointing_down(0.0), CLOSED, 0.9, 50, 0.04, turn=0.6)


def close_door(world: World, oven: str) -> Steps:
    """Swings the door shut with closed fingers that reach just below its upper edge, along its outer face."""
    origin, turn = world.scene.position(oven), world.scene.rotation(oven)
    foot = float(world.scene.site(f"{oven}_heating_region").position[2]) - 0.096
    joint = f"{oven}_microjoint"
    down = rotations.pointing_down(0.0)

    def beside(angle: float, gap: float, height: float) -> Vector:
        """A point at the door's outer face when the door stands at ``angle`` [rad], ``gap`` [m] away from it."""
        along = np.array([np.cos(angle), np.sin(angle)])
        outer = np.array([np.sin(angle), -np.cos(angle)])
        plane = HINGE + PUSH_RADIUS * along + (DOOR_FACE + FINGERS + gap) * outer
        return np.append((origin + turn @ np.append(plane, 0.0))[:2], foot + height)

    start = world.scene.joint(joint)
    reach = DOOR_TOP - 0.022
    yield Go("behind", beside(start, 0.05, DOOR_TOP + 0.14), down, CLOSED, 0.9, 90, 0.03, turned=0.25, turn=0.6)
    yield Go("down", beside(start, 0.05, reach), down, CLOSED, 0.7, 40, 0.015)
    for angle in np.linspace(start, 0.0, 9):
        yield Go("swing", beside(float(angle), -0.01, reach), down, CLOSED, 0.8, 20, 0.020)
    shut = beside(0.0, -0.06, reach)
    yield Go("shut", shut, down, CLOSED, 0.6, 60, 0.0, until=lambda: world.scene.joint(joint) > SHUT)
    yield Go("hold", world.hand, down, CLOSED, 0.3, 12, 0.0)


def _half_down(world: World, out: Vector) -> Vector:
    """A tilted hand that faces a thing with this outward direction, its fingers side by side."""
    facing = rotations.about_z(front_yaw(out)) @ rotations.about_x(-TILT) @ rotations.pointing_down(0.0)
    return rotations.nearer(facing @ rotations.about_z(np.pi / 2), world.turn)
