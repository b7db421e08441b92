"""Drawing some steps more often: those whose chunk closes or opens the gripper, for those few decide whether an object
is held; and, beside steps whose actions are hidden, those whose actions may be seen.

A segment is given more steps than it has; those beyond are its steps again, by a table. The order itself knows nothing
of it: it stays a pure function, the same on any number of ranks and after any resume.

Legend: S segments of a split, K chunk.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stores.reader import Store

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Repeated:
    """counts: int64 [S], steps to draw of each segment. real: which step each of them is, segments end to end.

    start: int64 [all segments of the store], where in `real` a segment begins.
    """

    counts: Ints
    real: Ints
    start: Ints

    def steps(self, segment: Ints, drawn: Ints) -> Ints:
        """The step of each drawn one."""
        return np.asarray(self.real[self.start[segment] + drawn], np.int64)


def repeat_changes(
    store: Store, segments: Ints, first_step: Ints, episode: Ints, counts: Ints, chunk: int, times: int
) -> Repeated:
    """Steps whose next `chunk` actions change a binary dimension stand `times` times in their segment.

    segments, counts: int64 [S], those of a split and the steps to take of each. first_step, episode: of all segments.
    """
    changes = changing_steps(store, chunk)
    parts = []
    for segment, count in zip(segments.tolist(), counts.tolist(), strict=True):
        first = int(first_step[segment])
        own = np.flatnonzero(changes[int(episode[segment])][first : first + count])
        parts.append(np.concatenate([np.arange(count), np.tile(own, times - 1)]))
    return _end_to_end(parts, segments, len(episode))


def repeat_segments(segments: Ints, counts: Ints, wanted: NDArray[np.bool_], times: int, every: int) -> Repeated:
    """All steps of those of `segments` that are `wanted`, bool [S], stand `times` times in them. counts: int64 [S],
    steps to take of each. every: segments of the store.
    """
    tiled = np.where(wanted, times, 1).tolist()
    parts = [np.tile(np.arange(count), often) for count, often in zip(counts.tolist(), tiled, strict=True)]
    return _end_to_end(parts, segments, every)


def _end_to_end(parts: list[Ints], segments: Ints, every: int) -> Repeated:
    total = np.array([part.size for part in parts], np.int64)
    start = np.zeros(every, dtype=np.int64)
    start[segments] = np.cumsum(total) - total
    return Repeated(total, np.concatenate(parts).astype(np.int64), start)


def changing_steps(store: Store, chunk: int) -> list[NDArray[np.bool_]]:
    """Of every episode, for each step t: whether actions t … t+K-1 differ in a binary dimension, or t from t-1."""
    action, found, start = store.frames["action"], [], 0
    columns = store.episode_columns
    for frames, steps in zip(columns["frames"].tolist(), columns["steps"].tolist(), strict=True):
        binary = action[start : start + steps][:, list(store.spec.binary)] > 0
        start += frames
        changed = np.zeros(steps, dtype=np.bool_)
        changed[1:] = (binary[1:] != binary[:-1]).any(axis=1)
        ahead = np.concatenate([changed, np.zeros(chunk, dtype=np.bool_)])
        windows = np.lib.stride_tricks.sliding_window_view(ahead, chunk)[:steps]
        found.append(np.asarray(windows.any(axis=1), np.bool_))
    return found
