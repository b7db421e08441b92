"""Where a parallel gripper, coming straight from above, should take an object among others. Pure NumPy.

The search is exhaustive over a small grid: the gripper's yaw and a shift along the fingers' flat side. Each candidate
costs what makes it worse: an object wider than the opening, a large turn of the wrist, an off-centre grip, and fingers
or hand coming near other objects.

Legend: P points of the target, Q points of all other objects, 3 or 2 world coordinates [m], z up.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

# The Panda gripper, [m]
OPENING = 0.074
COMFORTABLE = 0.055
FINGER_FROM_CENTER = 0.055
FINGER_HALF = (0.016, 0.014)  # across and along the finger's flat side
HAND_HALF = (0.107, 0.036)
HAND_ABOVE_TIPS = 0.035

# How far the fingers go down, [m]
FLAT = 0.045  # objects lower than this are taken at half height
TIP_DEPTH = 0.032  # of taller ones, this far below the top
FLOOR_GAP = 0.010
SLICE = 0.014  # points this near to the grip height count for its width
NEIGHBOUR = 0.05  # points this near to the grip height can be hit by fingers

YAWS = np.deg2rad(np.arange(-85, 90, 5))
SHIFTS = 7
MAX_SHIFT = 0.03
WANTED_FINGER_GAP = 0.008
WANTED_HAND_GAP = 0.006


@dataclass(frozen=True)
class Grasp:
    """A grip: ``center`` [x, y, z] of the finger tips [m], ``yaw`` [rad] about the vertical, ``width`` [m] of the
    object between the fingers; ``finger_gap`` and ``hand_gap`` [m] to the nearest neighbour (negative: overlap)."""

    center: Points
    yaw: float
    width: float
    finger_gap: float
    hand_gap: float
    cost: float


def grip_height(target: Points) -> float:
    """Height [m] of the finger tips for an object of points ``[P, 3]``."""
    low, high = float(target[:, 2].min()), float(target[:, 2].max())
    if high - low > FLAT:
        return max(low + FLOOR_GAP, high - TIP_DEPTH)
    return max(low + FLOOR_GAP, (low + high) / 2)


def plan_grasp(target: Points, others: Points) -> Grasp:
    """The cheapest grasp of ``target [P, 3]`` among ``others [Q, 3]`` (Q may be 0).

    Raises:
        ValueError: no point of the target near the height at which it would be gripped.
    """
    height = grip_height(target)
    cut = target[np.abs(target[:, 2] - height) < SLICE][:, :2]
    if len(cut) == 0:
        raise ValueError(f"no part of the object within {SLICE} m of the grip height {height:.3f} m")
    near = others[np.abs(others[:, 2] - height) < NEIGHBOUR][:, :2]
    tall = others[others[:, 2] > height + HAND_ABOVE_TIPS][:, :2]
    candidates = (_evaluate(cut, near, tall, yaw, shift, height) for yaw in YAWS for shift in _shifts(cut, yaw))
    return min(candidates, key=lambda grasp: grasp.cost)


def _axes(yaw: float) -> tuple[Points, Points]:
    """Unit vectors ``[2]``: along which the fingers close, and along their flat side."""
    return np.array([-np.sin(yaw), np.cos(yaw)]), np.array([np.cos(yaw), np.sin(yaw)])


def _shifts(cut: Points, yaw: float) -> Points:
    _, along = _axes(yaw)
    room = min(max(0.0, float(np.ptp(cut @ along)) / 2 - FINGER_HALF[1]), MAX_SHIFT)
    return np.linspace(-room, room, SHIFTS) if room > 0.004 else np.zeros(1)


def _evaluate(cut: Points, near: Points, tall: Points, yaw: float, shift: float, height: float) -> Grasp:
    across, along = _axes(yaw)
    spread, length = cut @ across, cut @ along
    width = float(np.ptp(spread))
    center = across * (spread.max() + spread.min()) / 2 + along * ((length.max() + length.min()) / 2 + shift)
    finger_gap = min(
        _gap(near - (center + across * side * FINGER_FROM_CENTER), across, along, FINGER_HALF) for side in (-1, 1)
    )
    hand_gap = _gap(tall - center, across, along, HAND_HALF)
    cost = (
        8.0 * max(0.0, width - COMFORTABLE)
        + 0.05 * abs(yaw)
        + 2.0 * abs(shift)
        + 20.0 * max(0.0, WANTED_FINGER_GAP - finger_gap)
        + 15.0 * max(0.0, WANTED_HAND_GAP - hand_gap)
        + (5.0 if width > OPENING else 0.0)
    )
    return Grasp(np.array([*center, height]), float(yaw), width, finger_gap, hand_gap, float(cost))


def _gap(offsets: Points, across: Points, along: Points, half: tuple[float, float]) -> float:
    """Smallest distance [m], in the larger of the two axes, of points ``[Q, 2]`` from a rectangle; 1 without points."""
    if len(offsets) == 0:
        return 1.0
    return float(np.maximum(np.abs(offsets @ across) - half[0], np.abs(offsets @ along) - half[1]).min())
