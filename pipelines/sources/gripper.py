"""Which gripper command closes? The fingers show it: their distance shrinks while the closing command is given.

Canonical is -1 open, +1 close (`stores.spec`). Files exist with {0, 1}, with {1, 0} (1 opens, as RLDS copies have it)
and with the sign turned round. Told wrong, a policy learns to open where it should grasp, and nothing looks wrong.

Legend: T observations of a canonical episode, A its actions (T or T - 1); command ``c[t]`` acts between observations t
and t + 1.

Measured on 14 demonstrations of libero_object (2026-11-26): the fingers' changes follow the command's sign by -0.98 to
-0.85 of what they could (`Grip.toward` / `Grip.moved`), over 27 to 160 mm of finger motion.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stores.errors import SourceError

DETECT: Final = "detect"
HIGH_CLOSES: Final = "high-closes"
HIGH_OPENS: Final = "high-opens"
CHOICES: Final = (DETECT, HIGH_CLOSES, HIGH_OPENS)
"""Of ``--gripper``: what the higher of the two commands does."""

AGREEMENT: Final = 0.5
"""Share of the fingers' motion that must go one way with the command."""
CLEAR: Final = 0.8
CLEAR_MOTION: Final = 0.03
"""Share and finger motion [m] from which a few demonstrations speak for a file; what was measured is above both."""
MOTION: Final = 0.004
"""Finger motion [m, both fingers] below which nothing is concluded."""
NOISE: Final = 2e-4
"""Change of the fingers' distance in a step [m] that counts as none."""
WIDEST: Final = 0.3
"""Finger positions [m, both together] beyond which they are no distance, but something else."""
TOLERANCE: Final = 1e-3


@dataclass(frozen=True)
class Grip:
    """What demonstrations show. low, high: least and largest command. toward: sum over steps of the command's sign,
    about the middle between both, times the change of the fingers' distance [m]; moved: sum of its absolute values.
    """

    low: float
    high: float
    toward: float
    moved: float

    @property
    def closes(self) -> bool | None:
        """Whether the higher command closes; None where the fingers do not tell."""
        if self.high - self.low < TOLERANCE or self.moved < MOTION or abs(self.toward) < AGREEMENT * self.moved:
            return None
        return self.toward < 0

    @property
    def clear(self) -> bool:
        """Whether the fingers tell, by so much motion and so little against it that chance does not look like this."""
        return self.closes is not None and self.moved >= CLEAR_MOTION and abs(self.toward) >= CLEAR * self.moved

    @property
    def from_zero(self) -> bool:
        """Whether no command is negative."""
        return self.low > -TOLERANCE


def see(command: NDArray[Any], fingers: NDArray[Any]) -> Grip:
    """command: [A]; fingers: [T, 2] positions [m], of a canonical episode."""
    low, high = float(command.min()), float(command.max())
    width = np.abs(fingers.astype(np.float64)).sum(axis=1)
    steps = min(len(command), len(width) - 1)
    change = np.diff(width)[:steps]
    change = np.where(np.abs(change) < NOISE, 0.0, change)
    if width.max(initial=0.0) > WIDEST:
        return Grip(low, high, 0.0, 0.0)
    sign = np.sign(command[:steps].astype(np.float64) - (low + high) / 2)
    return Grip(low, high, float((sign * change).sum()), float((np.abs(sign) * np.abs(change)).sum()))


def pool(parts: Iterable[Grip]) -> Grip | None:
    """Of all together; None of none."""
    found = list(parts)
    if not found:
        return None
    return Grip(
        min(part.low for part in found),
        max(part.high for part in found),
        sum(part.toward for part in found),
        sum(part.moved for part in found),
    )


@dataclass(frozen=True)
class Reading:
    """How commands are read: above `middle` is high; `closes`: high is the closing one."""

    middle: float
    closes: bool

    @property
    def canonical(self) -> bool:
        """Whether ±1 commands stay what they are."""
        return self.middle == 0.0 and self.closes

    @property
    def text(self) -> str:
        """For people."""
        low, high = ("0", "1") if self.middle else ("-1", "+1")
        return f"{low} {'opens' if self.closes else 'closes'}, {high} {'closes' if self.closes else 'opens'}"


def decide(mine: Grip, all_files: Grip, told: str, where: str) -> tuple[Reading, str | None]:
    """The reading of a file whose demonstrations show `mine`, among files that together show `all_files`; and a note
    where something was converted or assumed.

    Raises SourceError where the file contradicts what was `told`, and where it uses {0, 1} and nothing tells.
    """
    seen = mine if mine.high - mine.low >= TOLERANCE else all_files
    middle = 0.5 if seen.from_zero else 0.0
    known, source = mine.closes, "its fingers"
    if known is None and all_files.closes is not None and seen.from_zero == all_files.from_zero:
        known, source = all_files.closes, "the fingers of the other files"
    if told != DETECT:
        closes = told == HIGH_CLOSES
        if known is not None and known != closes:
            other = Reading(middle, closes)
            raise SourceError(
                f"{where}: gripper: told {told!r} ({other.text}), but {source} show {Reading(middle, known).text}"
            )
        known, source = closes, f"--gripper {told}"
    if known is None and middle:
        raise SourceError(
            f"{where}: gripper: commands are {mine.low:g} to {mine.high:g}, and the fingers do not show which closes; "
            f"where you know, pass --gripper {HIGH_CLOSES} (1 closes) or --gripper {HIGH_OPENS} (1 opens)"
        )
    if known is None:
        return Reading(middle, True), (
            f"{where}: gripper: the fingers do not show which command closes; taken as -1 opens, +1 closes "
            f"(--gripper {HIGH_OPENS} says otherwise)"
        )
    reading = Reading(middle, known)
    if reading.canonical:
        return reading, None
    return reading, f"{where}: gripper: {reading.text}, as {source} say; converted to -1 opens, +1 closes"


def convert(
    command: NDArray[np.float64], reading: Reading, where: str = "key 'actions', gripper"
) -> NDArray[np.float64]:
    """Commands [A] -> -1 open, +1 close. One exactly in the middle commands nothing: the one before it goes on.

    Raises SourceError where the values are not those of the reading.
    """
    low, high = float(command.min()), float(command.max())
    if reading.middle and low < -TOLERANCE:
        raise SourceError(f"{where}: expected 0 to 1, as in the file's other demonstrations, got {low:g} to {high:g}")
    if not reading.middle and low > -TOLERANCE and low < 0.5 <= high:
        raise SourceError(f"{where}: expected -1 to +1, as in the file's other demonstrations, got {low:g} to {high:g}")
    sign = np.sign(command - reading.middle)
    given = np.flatnonzero(sign)
    if not len(given):
        return np.full(len(command), -1.0)
    last = given[np.maximum(np.searchsorted(given, np.arange(len(sign)), side="right") - 1, 0)]
    return np.asarray(sign[last] if reading.closes else -sign[last], np.float64)


def require_agreement(command: NDArray[np.float64], fingers: NDArray[Any]) -> None:
    """Raise SourceError where the fingers [T, 2] of an episode show that its converted command [A] is the wrong way."""
    if see(command, fingers).closes is False:
        raise SourceError(
            "gripper: read as the file's other demonstrations are, +1 would close, but the fingers of this one show "
            "that it opens"
        )
