"""Cameras that show nothing: blank pictures, and pictures that stand still while the arm moves.

A renderer that failed leaves black frames, or the last one again and again. Nothing else in the file is wrong, so they
are used, but named; with ``--strict`` they are refused.

Legend: F frames, H, W rows and columns of a picture.
"""

import operator
from collections.abc import Callable, Sequence
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

    It runs beside the encoding of every frame, which empties the processor's caches, so it does one thing there, to put
    two rows of each frame by, far apart. They tell which may be blank, and the encoded frames which are equal.
    """

    def __init__(self, camera: str, joints: NDArray[Any]) -> None:
        self.camera, self.joints = camera, joints
        self._step = np.abs(np.diff(joints, axis=0)).max(axis=1, initial=0.0)
        self._seen = 0
        self._rows = np.empty((0,), np.uint8)
        self._same = np.zeros(len(joints), bool)

    def see(self, frames: NDArray[np.uint8]) -> None:
        """The next frames [F, H, W, 3]."""
        half = max(frames.shape[1] // 2, 1)
        rows = frames[:, half // 2 :: half]
        if not self._seen:
            self._rows = np.empty((len(self.joints), *rows.shape[1:]), np.uint8)
        self._rows[self._seen : self._seen + len(rows)] = rows
        self._seen += len(rows)

    def findings(self, encoded: Sequence[bytes], frame: Callable[[int], NDArray[np.uint8]]) -> tuple[str, ...]:
        """In words, without the demonstration's name; empty where the camera is sound.

        encoded: every frame; equal frames give equal bytes. frame: gives one [H, W, 3] once more, if need be.
        """
        blank = self._blank(frame)
        self._same[1:] = list(map(operator.eq, encoded[1:], encoded))
        if blank:
            kind = "black" if max(top for _, top in blank) <= 8 * CONTRAST else "blank"
            return (f"camera {self.camera} is {kind} in {self._some(len(blank), blank[0][0])}",)
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

    def _blank(self, frame: Callable[[int], NDArray[np.uint8]]) -> list[tuple[int, int]]:
        """(frame, its largest value) of all that are; of few is the whole looked at."""
        few = self._rows.reshape(self._seen, -1)
        found = []
        for at in np.flatnonzero(few.max(axis=1) - few.min(axis=1) <= CONTRAST):
            whole = frame(int(at))
            if int(whole.max()) - int(whole.min()) <= CONTRAST:
                found.append((int(at), int(whole.max())))
        return found

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
