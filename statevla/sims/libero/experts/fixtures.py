"""Skills on what stands still and moves in parts: drawers and knobs.

Legend: positions ``[3]`` in world coordinates [m], z up; rotations ``[3, 3]``.
"""

import numpy as np

from statevla.sims.libero import rotations
from statevla.sims.libero.experts.grasps import axes
from statevla.sims.libero.experts.program import CLOSED, OPEN, Go, Steps, Vector, World
from statevla.sims.libero.experts.skills import at, let_go, raised
from statevla.sims.libero.scene import Points

TILT = 1.40  # [rad] of the hand from straight down, to grip a bar from in front
FULLY = 0.20  # [m] further than any drawer slides
CLOSING_LEAN = 0.45  # [rad]
FIN_DEPTH = 0.012  # [m] of the grip below the top of a knob's fin
TWIST = 1.0  # [rad]
TURNED_ON = 0.8  # [rad] of the knob, beyond which the stove is on for certain


def outward(world: World, cabinet: str) -> Vector:
    """Unit vector ``[3]`` out of a cabinet: LIBERO's drawers slide along its -y."""
    return -world.scene.rotation(cabinet)[:, 1]


def handle(world: World, cabinet: str, drawer: str) -> Points:
    """Centre ``[3]`` of a drawer's bar: of its parts, the one furthest out."""
    out = outward(world, cabinet)
    centers = [part.mean(0) for part in world.scene.parts(f"{cabinet}_cabinet_{drawer}")]
    return max(centers, key=lambda center: float(center @ out))


def open_drawer(world: World, cabinet: str, drawer: str, to: float) -> Steps:
    """Grips a drawer's bar, fingers above and below it, and pulls until its joint is below ``to`` [m]."""
    out = outward(world, cabinet)
    bar = handle(world, cabinet, drawer)
    front = front_yaw(out)
    rotation = rotations.about_z(front) @ rotations.about_x(-TILT) @ rotations.pointing_down(0.0)
    if np.cos(front) < 0:
        rotation = rotation @ rotations.about_z(np.pi)
    into = rotation[:, 2]
    before = bar - into * 0.11
    half_way = np.array([(world.hand[0] + before[0]) / 2, before[1], max(world.hand[2], before[2] + 0.03)])
    yield Go("turn", half_way, rotation, OPEN, 0.7, 60, 0.03, turned=0.25, turn=0.6)
    yield Go("front", before, rotation, OPEN, 0.7, 60, turned=0.10, turn=0.5)
    grip = bar + into * 0.004
    yield Go("reach", grip, rotation, OPEN, 0.4, 50, 0.006)
    yield Go("close", grip, rotation, CLOSED, 0.3, 10, 0.0)
    joint = f"{cabinet}_{drawer}_level"
    yield Go("pull", grip + out * FULLY, rotation, CLOSED, 0.5, 90, 0.01, until=lambda: world.scene.joint(joint) < to)
    here = world.hand
    yield Go("open", here, rotation, OPEN, 0.3, 8, 0.0)
    yield Go("back", here - into * 0.09 + np.array([0, 0, 0.03]), rotation, OPEN, 0.6, 30, 0.02)


def close_drawer(world: World, cabinet: str, drawer: str, height: float) -> Steps:
    """Pushes a drawer's bar with closed fingers.

    The hand turns its thin side to the cabinet and leans away from it: upright it would meet the bars above, flat what
    stands behind. height: [m] at which it comes round to the front.
    """
    out = outward(world, cabinet)
    bar = handle(world, cabinet, drawer)
    lean = rotations.about_z(front_yaw(out)) @ rotations.about_x(-CLOSING_LEAN)
    rotation = rotations.nearer(lean @ rotations.pointing_down(0.0) @ rotations.about_z(np.pi / 2), world.turn)
    before = bar + out * 0.07
    joint = f"{cabinet}_{drawer}_level"
    yield Go("front", at(before + out * 0.02, height), rotation, CLOSED, 0.9, 70, 0.03, turned=0.3, turn=0.6)
    yield Go("low", before, rotation, CLOSED, 0.8, 60, 0.015, turned=0.2, turn=0.6)
    shut = bar - out * 0.24
    yield Go("push", shut, rotation, CLOSED, 0.7, 140, 0.01, until=lambda: world.scene.joint(joint) > 0.004)


def inside_drawer(world: World, cabinet: str, drawer: str, behind_front: float) -> tuple[Vector, float]:
    """A place ``[2]`` in an open drawer, ``behind_front`` [m] behind its bar's furthest part, and its floor [m]."""
    out = outward(world, cabinet)
    region = world.scene.site(f"{cabinet}_{drawer}_region").position
    parts = world.scene.parts(f"{cabinet}_cabinet_{drawer}")
    front = max(float(part.mean(0) @ out) for part in parts)
    floor = min(float(part[:, 2].max()) for part in parts)
    return region[:2] + out[:2] * (front - float(region @ out) - behind_front), floor


def turn_on(world: World, stove: str) -> Steps:
    """Grips the fin of a stove's knob and turns the wrist."""
    joint = f"{stove}_button"
    foot = world.scene.position(stove)[2]
    fin = np.concatenate([p for p in world.scene.parts(f"{stove}_button") if p[:, 2].max() - foot > 0.03])
    middle = fin.mean(0)[:2]
    plane = fin[:, :2]
    yaws = np.deg2rad(np.arange(-90, 91, 5))
    # Across its thin side; of equal ones, the yaw from which the twist is easiest for the wrist.
    yaw = float(min(yaws, key=lambda y: float(np.ptp(plane @ axes(y)[0])) + 0.002 * abs(y + 0.3)))
    grip = at(middle, float(fin[:, 2].max()) - FIN_DEPTH)
    rotation = rotations.pointing_down(yaw)
    yield Go("above", raised(grip, 0.10), rotation, OPEN, 0.9, 80, 0.015, turned=0.1)
    yield Go("down", grip, rotation, OPEN, 0.5, 50, 0.006)
    yield Go("close", grip, rotation, CLOSED, 0.3, 10, 0.0)
    turned = rotations.pointing_down(yaw + TWIST)
    yield Go(
        "twist", grip, turned, CLOSED, 0.3, 60, 0.0, turn=0.5, stay=5,
        until=lambda: world.scene.joint(joint) > TURNED_ON,
    )  # fmt: skip
    yield from let_go(world, grip, world.turn, away=0.12)


def front_yaw(out: Vector) -> float:
    """Yaw [rad] of a hand that faces a front with this outward direction."""
    return float(np.arctan2(out[1], out[0]) - np.pi / 2)
