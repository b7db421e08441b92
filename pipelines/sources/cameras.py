"""Cameras that show nothing: blank pictures, and pictures that stand still while the arm moves.

A renderer that failed leaves black frames, or the last one again and again. Nothing else in the file is wrong, so they
are used, but named; with ``--strict`` they are refused.

Legend: F frames, H, W rows and columns of a picture.
"""

import operator
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

CONTRAST: Final = 2
"""Difference of brightest and darkest value up to which a picture is blank."""
FROZEN_MOTION: Final = 0.05
"""Joint motion [rad] from the first to the last of equal pictures that makes them frozen."""
FROZEN_FRAMES: Final = 4
STEP_MOTION: Final = 5e-3
"""Joint motion [rad] in a step that changes a picture."""
REPEATED: Final = 0.3
"""Share of steps with motion whose picture is that of before, from which on pictures are said to repeat."""


class CameraWatch:
    """Looks at one camera's frames as they come, in order. joints: [T, 7] rad, of the episode.

    It runs beside the encoding of every frame, so it looks at what that has in hand: the encoded frames tell which are
    equal, and two rows of each, which are far apart, which may be blank.
    """

    def __init__(self, camera: str, joints: NDArray[Any]) -> None:
        self.camera, self.joints = camera, joints
        self._step = np.abs(np.diff(joints, axis=0)).max(axis=1, initial=0.0)
        self._last = b""
        self._seen = 0
        self._blank: list[tuple[int, int]] = []
        self._same = np.zeros(len(joints), bool)

    def add(self, frames: NDArray[np.uint8], encoded: Sequence[bytes]) -> None:
        """The next frames [F, H, W, 3], and each of them encoded: equal frames give equal bytes."""
        if not len(frames):
            return
        half = max(frames.shape[1] // 2, 1)
        few = frames[:, half // 2 :: half].reshape(len(frames), -1)  # of few is the whole looked at
        for at in np.flatnonzero(few.max(axis=1) - few.min(axis=1) <= CONTRAST):
            if int(frames[at].max()) - int(frames[at].min()) <= CONTRAST:
                self._blank.append((self._seen + int(at), int(frames[at].max())))
        stop = self._seen + len(frames)
        self._same[self._seen : stop] = list(map(operator.eq, encoded, (self._last, *encoded)))
        self._last, self._seen = encoded[-1], stop

    def findings(self) -> tuple[str, ...]:
        """In words, without the demonstration's name; empty where the camera is sound."""
        if self._blank:
            kind = "black" if max(top for _, top in self._blank) <= 8 * CONTRAST else "blank"
            return (f"camera {self.camera} is {kind} in {self._some(len(self._blank), self._blank[0][0])}",)
        frozen = [(a, b) for a, b in self._equal_runs() if self._frozen(a, b)]
        if frozen:
            count = sum(b - a + 1 for a, b in frozen)
            return (f"camera {self.camera} is frozen in {self._some(count, frozen[0][0])}",)
        moving = self._step >= STEP_MOTION
        again = int((self._same[1:] & moving).sum())
        if again >= 3 and again >= REPEATED * moving.sum():
            return (
                f"camera {self.camera} repeats pictures: {again} of {int(moving.sum())} steps with motion show none",
            )
        return ()

    def _some(self, count: int, first: int) -> str:
        return f"all {self._seen} frames" if count == self._seen else f"{count} of {self._seen} frames, from {first} on"

    def _equal_runs(self) -> list[tuple[int, int]]:
        edges = np.flatnonzero(np.diff(np.concatenate([[False], self._same[1:], [False]]).astype(int)))
        return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]

    def _frozen(self, first: int, last: int) -> bool:
        if last - first + 1 == self._seen and self._seen > 1:
            return True
        rows = self.joints[first : last + 1]
        return len(rows) >= FROZEN_FRAMES and float(np.abs(rows - rows[0]).max()) >= FROZEN_MOTION
