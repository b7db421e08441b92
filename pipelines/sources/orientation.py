"""Are pictures stored upright or upside-down? What the pictures themselves tell, where they tell anything.

LIBERO stores frames as OpenGL renders them, bottom row first, and says so in an attribute. Regenerated files often have
turned them and say nothing, or keep the attribute. Two things in the pictures tell:

- *motion*: in a view from the front, what moves is higher up in an upright picture when the hand is higher. The rows'
  centre of change is correlated with the hand's height, with its two other coordinates held (a view from above shows
  nothing). On 14 demonstrations of libero_object: 0.75 to 0.94, all of one sign; in the tabletop's view from above:
  -0.7 to +0.6, either sign (2026-11-26).
- *brightness* by rows, against the other files of the suite: the same camera sees the same scene.

Legend: F frames, H, W rows and columns of a picture, N bands of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

BANDS: Final = 16
CHANGE: Final = 24
"""Sum over colours by which a pixel must change to count as moving."""
MOVING: Final = 5
"""Frames with motion below which nothing is concluded."""
DEMOS: Final = 3
"""Demonstrations that must agree about motion."""
CORRELATION: Final = 0.6
ALIKE, UNLIKE = 0.9, 0.0
"""Correlations of brightness: of what is the same way up, and of what is not."""
CONTRAST: Final = 5.0
"""Standard deviation of brightness over the bands below which it has no direction."""


@dataclass(frozen=True)
class Look:
    """Of the first camera (that of the scene; others move) in one demonstration, as stored: brightness of `BANDS` bands
    from the first row to the last; and the partial correlation of the rows of motion with the hand's height, None where
    it does not tell.
    """

    bands: list[float]
    motion: float | None


def brightness(frames: NDArray[np.uint8]) -> list[float]:
    """Mean brightness of `BANDS` bands of rows of frames [F, H, W, 3], first row first; all the same, which tells
    nothing, where there are fewer rows than bands.
    """
    count, height, width, colours = frames.shape
    sums = frames.reshape(count, height, -1).sum(axis=2, dtype=np.uint32)
    rows = sums.sum(axis=0, dtype=np.float64) / (count * width * colours)
    if height < BANDS:
        return [float(rows.mean())] * BANDS
    starts = np.arange(BANDS + 1) * height // BANDS
    bands: list[float] = (np.add.reduceat(rows, starts[:-1]) / np.diff(starts)).tolist()
    return bands


def motion(frames: NDArray[np.uint8], hand: NDArray[Any]) -> float | None:
    """Partial correlation of the row where frames [F, H, W, 3] change with the hand's height (hand: x, y, z [F, 3])."""
    step = np.maximum(frames[1:], frames[:-1]) - np.minimum(frames[1:], frames[:-1])
    change = step[..., 0].astype(np.uint16)  # colour by colour: a sum over an axis of three is many times slower
    for colour in range(1, step.shape[-1]):
        change += step[..., colour]
    change[change < CHANGE] = 0
    by_rows = change.sum(axis=2, dtype=np.int64)
    total = by_rows.sum(axis=1)
    moving = total > 8 * CHANGE
    if moving.sum() < 3 * MOVING:
        return None
    by_row = by_rows[moving]
    row = (by_row * np.arange(by_row.shape[1])).sum(axis=1) / total[moving]
    place = ((hand[1:] + hand[:-1]) / 2)[moving].astype(np.float64)
    if place.std(axis=0)[2] < 1e-3:
        return None
    held = np.column_stack([np.ones(len(place)), place[:, :2]])
    a, b = (values - held @ np.linalg.lstsq(held, values, rcond=None)[0] for values in (row, place[:, 2]))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 1e-9 else None


def from_motion(looks: Sequence[Look]) -> str | None:
    """``upside-down`` or ``upright``, as the motion in all of `looks` shows; None where it does not tell."""
    found = [look.motion for look in looks if look.motion is not None]
    if len(found) < DEMOS or abs(float(np.median(found))) < CORRELATION or len({value > 0 for value in found}) > 1:
        return None
    return "upside-down" if found[0] > 0 else "upright"


class Likeness:
    """How alike the pictures of files are in brightness from top to bottom, all pairs at once.

    looks: of each file; at least one.
    """

    def __init__(self, looks: Sequence[Sequence[Look]]) -> None:
        bands = np.array([np.mean([look.bands for look in of_file], axis=0) for of_file in looks])
        bands -= bands.mean(axis=1, keepdims=True)
        scale = np.linalg.norm(bands, axis=1, keepdims=True)
        unit = bands / np.maximum(scale, 1.0)
        self._flat = scale[:, 0] < CONTRAST * BANDS**0.5
        self._straight, self._flipped = unit @ unit.T, unit[:, ::-1] @ unit.T

    def turned(self, mine: int, other: int, over: bool) -> bool | None:
        """Whether the pictures of file `mine` are the other way up than those of `other`; None where brightness does
        not tell. over: whether the two are stored the other way round from one another, as far as one knows.
        """
        if self._flat[mine] or self._flat[other]:
            return None
        straight, flipped = self._straight[mine, other], self._flipped[mine, other]
        if over:
            straight, flipped = flipped, straight
        if flipped >= ALIKE and straight <= UNLIKE:
            return True
        return False if straight >= ALIKE and flipped <= UNLIKE else None


def turned(mine: Sequence[Look], others: Sequence[Look], over: bool) -> bool | None:
    """`Likeness.turned` of two files by themselves."""
    return Likeness([mine, others]).turned(0, 1, over)
