"""Binary actions of a LeRobotDataset as -1 and +1: their numbers show whether they are {0, 1}; which of the two closes
is told, for no finger is known here.

Legend: T rows of an episode, D numbers of an action.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.sources import gripper
from pipelines.sources.gripper import TOLERANCE, Reading
from pipelines.sources.lerobot.layout import ACTION
from pipelines.sources.lerobot.statistics import Moments
from stores.errors import SourceError
from stores.spec import ObsSpec

FACT: Final = "commands"
"""Of a dataset's facts: the readings of the actions that are converted, by dimension."""
MIDDLE: Final = 0.5
"""Of 0 and 1."""


def weigh_commands(spec: ObsSpec, found: Moments, told: str) -> tuple[dict[str, Any], list[str]]:
    """What binary actions of these moments mean: facts for `convert_commands`, notes.

    told: of ``--gripper``. Raises SourceError where they are {0, 1} and nothing was told, where they would be converted
    and are no two values, and where something was told of a dataset without binary actions.
    """
    if told != gripper.DETECT and not spec.binary:
        raise SourceError(f"--gripper {told}: no action is binary (--spec says which are); leave it out")
    readings: dict[str, Any] = {}
    notes = []
    have = found.told() if found.count else {}
    for dim in spec.binary if have else ():
        low, high, mean, std = (float(have[key][dim]) for key in ("min", "max", "mean", "std"))
        name = spec.action_names[dim]
        if low > -TOLERANCE and TOLERANCE < high <= MIDDLE:
            raise SourceError(
                f"{ACTION}, {name}: binary, expected -1 and +1, or 0 and 1, got {low:g} to {high:g}: a width or a "
                "force? Declare it continuous (--spec)"
            )
        zero = -TOLERANCE < low < MIDDLE
        # The mean of (x - bottom) (1 - x): 0 where every x is one of both ends. Half-open hands are lost if converted.
        bottom = 0.0 if zero else -1.0
        between = mean * (1 + bottom) - bottom - (std**2 + mean**2)
        if (zero or told == gripper.HIGH_OPENS) and between > TOLERANCE:
            raise SourceError(
                f"{ACTION}, {name}: binary, expected {bottom:g} and 1 alone, got numbers between them (mean "
                f"{mean:.3g}, std {std:.3g}): a position? Declare it continuous (--spec)"
            )
        if zero and told == gripper.DETECT:
            raise SourceError(
                f"{ACTION}, {name}: binary, expected -1 (open) and +1 (close), got {low:g} to {high:g}; pass --gripper "
                f"{gripper.HIGH_CLOSES} (1 closes) or --gripper {gripper.HIGH_OPENS} (1 opens)"
            )
        reading = Reading(MIDDLE if zero else 0.0, told != gripper.HIGH_OPENS)
        if not reading.canonical:
            readings[str(dim)] = [reading.middle, reading.closes]
            notes.append(f"{ACTION}, {name}: {reading.text}, as --gripper {told} says; converted to -1 open, +1 close")
    return ({FACT: readings} if readings else {}), notes


def convert_commands(action: NDArray[np.float32], facts: Mapping[str, Any]) -> NDArray[np.float32]:
    """Actions [T, D] with binary ones as -1 open, +1 close. Raises SourceError where a value is not what the dataset
    had when it was looked at.
    """
    readings = facts.get(FACT, {})
    if not readings:
        return action
    converted = action.copy()
    for dim, (middle, closes) in readings.items():
        column = action[:, int(dim)].astype(np.float64)
        converted[:, int(dim)] = gripper.convert(column, Reading(middle, closes), f"{ACTION} {dim}")
    return converted
