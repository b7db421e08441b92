"""Where a parallel gripper should take an object among others. Pure NumPy.

Each search is exhaustive over a small grid and gives all candidates. A candidate costs what makes it worse: an object
wider than the fingers like, a large turn of the wrist, an off-centre grip, fingers or hand that come near other things,
and an arm stretched so far that its elbow reaches the joint's end and locks.

Legend: P points of the target, Q points of everything else, 3 or 2 world coordinates [m], z up.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from statevla.sims.libero.scene import Points

# The Panda gripper, [m]
OPENING = 0.074  # between the open fingers, with room for an error
COMFORTABLE = 0.055
FINGER_FROM_CENTER = 0.050
FINGER_HALF = (0.013, 0.013)  # across and along the finger's flat side
HAND_HALF = (0.105, 0.036)
HAND_ABOVE_GRIP = 0.040
TIPS_BELOW_GRIP = 0.014

# How far the fingers go down, [m]
FLAT = 0.045  # objects lower than this are taken at half height
DEPTH = 0.032  # of taller ones, this far below the top
RIM_DEPTH = 0.025
FLOOR_GAP = 0.010
SLICE = 0.014  # points this near to the grip height count for its width
RIM_WALL = 0.020  # a rim's wall is looked at this far up from the grip
RIM_THICK = 0.012
KNOB = 0.008

YAWS = np.deg2rad(np.arange(-85, 90, 5))
RIM_DIRECTIONS = np.deg2rad(np.arange(0, 360, 10))
SHIFTS = 7
MAX_SHIFT = 0.03
WANTED_FINGER_GAP = 0.008
WANTED_RIM_GAP = 0.012
WANTED_HAND_GAP = 0.006
WANTED_RIM_HAND_GAP = 0.010

# The Panda arm, [m]: the wrist's way from the shoulder at which the elbow is almost straight
WRIST_ABOVE_GRIP, FLANGE, SHOULDER, REACH = 0.21, 0.088, 0.333, 0.61


@dataclass(frozen=True)
class Grasp:
    """A grip from above: ``center`` [x, y, z] between the fingers [m], ``yaw`` [rad] about the vertical.

    gap: [m] from fingers or hand to the nearest other thing (negative: overlap). cost: lower is better.
    """

    center: Points
    yaw: float
    gap: float
    cost: float


def grip_height(target: Points, depth: float = DEPTH) -> float:
    """Height [m] of the grip around an object of points ``[P, 3]``."""
    low, high = float(target[:, 2].min()), float(target[:, 2].max())
    if high - low > FLAT:
        return max(low + FLOOR_GAP, high - depth)
    return max(low + FLOOR_GAP, (low + high) / 2)


def around_body(target: Points, others: Points, base: Points, depth: float = DEPTH) -> list[Grasp]:
    """Grips around a whole object; none where it is too wide for the hand.

    target: ``[P, 3]``; others: ``[Q, 3]``, Q may be 0; base: origin ``[3]`` of the robot's base.
    """
    height = grip_height(target, depth)
    cut = target[np.abs(target[:, 2] - height) < SLICE][:, :2]
    if len(cut) == 0:
        return []
    found = []
    room_around = _Room(others, height)
    for yaw in YAWS:
        across, along = axes(yaw)
        spread, length = cut @ across, cut @ along
        width = float(np.ptp(spread))
        if width > OPENING:
            continue
        middle = across * (spread.max() + spread.min()) / 2 + along * (length.max() + length.min()) / 2
        room = min(max(0.0, float(np.ptp(length)) / 2 - FINGER_HALF[1]), MAX_SHIFT)
        for shift in np.linspace(-room, room, SHIFTS) if room > 0.004 else (0.0,):
            center = middle + along * shift
            fingers, hand = room_around.gaps(center, yaw)
            cost = (
                8.0 * max(0.0, width - COMFORTABLE)
                + 0.05 * abs(yaw)
                + 2.0 * abs(shift)
                + 20.0 * max(0.0, WANTED_FINGER_GAP - fingers)
                + 15.0 * max(0.0, WANTED_HAND_GAP - hand)
                + stretch(np.append(center, height), base)
            )
            found.append(Grasp(np.append(center, height), float(yaw), min(fingers, hand), float(cost)))
    return found


def over_rim(target: Points, others: Points, center: Points, base: Points, depth: float = RIM_DEPTH) -> list[Grasp]:
    """Grips of a bowl's, mug's or plate's wall: one finger inside, one outside.

    target: ``[P, 3]``; others: ``[Q, 3]``; center: origin ``[3]`` of the object; base: of the robot's base.
    """
    height = float(target[:, 2].max()) - depth
    wall = target[(target[:, 2] > height) & (target[:, 2] < height + RIM_WALL)][:, :2] - center[:2]
    room = _Room(others, height)
    found = []
    for direction in RIM_DIRECTIONS:
        outward = np.array([np.cos(direction), np.sin(direction)])
        aside = np.array([-outward[1], outward[0]])
        here = wall[(wall @ outward > 0) & (np.abs(wall @ aside) < 0.010)] @ outward
        if len(here) == 0:
            continue
        here = here[here > here.max() - RIM_THICK]
        grip = center[:2] + outward * float(here.max() + here.min()) / 2
        # The fingers close along the radius; of the two yaws that do, the one within a quarter turn.
        yaw = float(direction % np.pi - np.pi / 2)
        fingers, hand = room.gaps(grip, yaw)
        cost = (
            0.06 * abs(yaw)
            + 20.0 * max(0.0, WANTED_RIM_GAP - fingers)
            + 15.0 * max(0.0, WANTED_RIM_HAND_GAP - hand)
            + stretch(np.append(grip, height), base)
        )
        found.append(Grasp(np.append(grip, height), yaw, min(fingers, hand), float(cost)))
    return found


def on_knob(target: Points, others: Points) -> list[Grasp]:
    """Grips of the small thing on top of an object: a lid's knob. target: ``[P, 3]``; others: ``[Q, 3]``."""
    top = float(target[:, 2].max())
    height = top - KNOB
    center = target[target[:, 2] > height].mean(0)[:2]
    room = _Room(others, height)
    found = []
    for yaw in YAWS:
        fingers, hand = room.gaps(center, yaw)
        cost = (
            0.05 * abs(yaw)
            + 20.0 * max(0.0, WANTED_FINGER_GAP - fingers)
            + 15.0 * max(0.0, WANTED_HAND_GAP - hand)
        )  # fmt: skip
        found.append(Grasp(np.append(center, height), float(yaw), min(fingers, hand), float(cost)))
    return found


def choose(grasps: Iterable[Grasp], tried: Sequence[Grasp], rng: np.random.Generator, spread: float = 0.01) -> Grasp:
    """The cheapest grasp that is not like one that was ``tried`` already; costs differ by chance within ``spread``.

    Raises:
        ValueError: there is no grasp at all.
    """
    candidates = list(grasps)
    fresh = [grasp for grasp in candidates if not any(_alike(grasp, old) for old in tried)]
    if not candidates:
        raise ValueError("no way to grasp the object: it is wider than the hand opens, and has no rim")
    return min(fresh or candidates, key=lambda grasp: grasp.cost + rng.uniform(0, spread))


def axes(yaw: float) -> tuple[Points, Points]:
    """Unit vectors ``[2]``: along which the fingers close, and along their flat side."""
    return np.array([-np.sin(yaw), np.cos(yaw)]), np.array([np.cos(yaw), np.sin(yaw)])


def stretch(grip: Points, base: Points) -> float:
    """Cost of a grip ``[3]`` so far from the robot's base ``[3]`` that the elbow would be straight."""
    out = np.linalg.norm(grip[:2] - base[:2]) - FLANGE
    up = grip[2] + WRIST_ABOVE_GRIP - base[2] - SHOULDER
    return 4.0 * max(0.0, float(np.hypot(out, up)) - REACH)


def _alike(a: Grasp, b: Grasp) -> bool:
    return bool(np.linalg.norm(a.center - b.center) <= 0.02 and abs(a.yaw - b.yaw) <= 0.3)


class _Room:
    """Distances from the fingers and the hand to everything else, for grips at one height."""

    def __init__(self, others: Points, height: float) -> None:
        self._near = others[others[:, 2] > height - TIPS_BELOW_GRIP][:, :2]
        self._tall = others[others[:, 2] > height + HAND_ABOVE_GRIP][:, :2]

    def gaps(self, center: Points, yaw: float) -> tuple[float, float]:
        """Gap [m] of the open fingers and of the hand."""
        across, along = axes(yaw)
        fingers = min(
            _gap(self._near - (center + across * side * FINGER_FROM_CENTER), across, along, FINGER_HALF)
            for side in (-1, 1)
        )
        return fingers, _gap(self._tall - center, across, along, HAND_HALF)


def _gap(offsets: Points, across: Points, along: Points, half: tuple[float, float]) -> float:
    """Smallest distance [m], in the larger of the two axes, of points ``[Q, 2]`` from a rectangle; 1 without points."""
    if len(offsets) == 0:
        return 1.0
    return float(np.maximum(np.abs(offsets @ across) - half[0], np.abs(offsets @ along) - half[1]).min())
