"""``frames.zarr``: the numbers of all frames of all episodes, end to end, for random access.

Legend: N frames of the store, R numbers of a robot state, A of an action.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stores.arrays import (
    METADATA,
    ArraySpec,
    CheckedArray,
    ReadObject,
    create,
    create_group,
    open_checked,
    write_region,
)
from stores.cloud.storage import Storage
from stores.disk import durable
from stores.errors import StoreCorrupt, UsageError
from stores.layout import FRAMES
from stores.spec import ObsSpec

CHUNK_ROWS: Final = 4096
FIELDS: Final = ("robot_state", "action", "episode", "index")


def frame_specs(frames: int, spec: ObsSpec) -> dict[str, ArraySpec]:
    """The four arrays of a store with `frames` frames.

    robot_state float32 [N, R]; action float32 [N, A], NaN where a frame has no action; episode int64 [N], row of
    episodes.parquet; index int64 [N], of the frame in its episode.
    """
    return {
        "robot_state": ArraySpec((frames, spec.robot_state_dim), "float32", CHUNK_ROWS),
        "action": ArraySpec((frames, spec.action_dim), "float32", CHUNK_ROWS),
        "episode": ArraySpec((frames,), "int64", CHUNK_ROWS),
        "index": ArraySpec((frames,), "int64", CHUNK_ROWS),
    }


class FramesWriter:
    """Frames that come in pieces -> the chunks of ``frames.zarr``; holds one chunk of each array."""

    def __init__(self, root: Path, frames: int, spec: ObsSpec) -> None:
        self._root, self._specs = root, frame_specs(frames, spec)
        self._frames, self._done, self._held = frames, 0, 0
        self._rows = {name: np.empty((CHUNK_ROWS, *a.shape[1:]), a.dtype) for name, a in self._specs.items()}
        create_group(root)
        for name, array in self._specs.items():
            create(root, name, array.shape, array.dtype, array.chunk)

    def add(self, fields: Mapping[str, NDArray[Any]]) -> None:
        """Append n frames: robot_state float32 [n, R], action float32 [n, A], episode int64 [n], index int64 [n].

        Raises UsageError on other names, shapes or dtypes, and on more frames than were announced.
        """
        if set(fields) != set(FIELDS):
            raise UsageError(f"frames: expected {sorted(FIELDS)}, got {sorted(fields)}")
        count = len(fields["index"])
        for name, wanted in self._specs.items():
            shape = (count, *wanted.shape[1:])
            if fields[name].shape != shape or fields[name].dtype.name != wanted.dtype:
                raise UsageError(
                    f"frames, {name}: expected {wanted.dtype} {list(shape)}, "
                    f"got {fields[name].dtype} {list(fields[name].shape)}"
                )
        if self._done + self._held + count > self._frames:
            raise UsageError(f"frames: expected {self._frames}, got more")
        start = 0
        while start < count:
            taken = min(count - start, CHUNK_ROWS - self._held)
            for name, rows in self._rows.items():
                rows[self._held : self._held + taken] = fields[name][start : start + taken]
            start += taken
            self._held += taken
            if self._held == CHUNK_ROWS:
                self._write()

    def close(self) -> None:
        """Write what is left. Raises UsageError when there are fewer frames than were announced."""
        if self._held:
            self._write()
        if self._done != self._frames:
            raise UsageError(f"frames: expected {self._frames}, got {self._done}")

    def _write(self) -> None:
        for name, spec in self._specs.items():
            write_region(self._root, name, spec, self._done, self._rows[name][: self._held])
        self._done, self._held = self._done + self._held, 0


@contextlib.contextmanager
def frames_writer(root: Path | str, frames: int, spec: ObsSpec) -> Iterator[FramesWriter]:
    """``frames.zarr`` of `frames` frames below `root`, written as they come; replaces an older one whole at the end."""
    with durable.staging_dir(Path(root, FRAMES)) as staging:
        writer = FramesWriter(staging, frames, spec)
        yield writer
        writer.close()


def frame_objects(frames: int, spec: ObsSpec) -> list[str]:
    """Paths below the store of everything in ``frames.zarr``."""
    names = [f"{FRAMES}/zarr.json"]
    for name, array in frame_specs(frames, spec).items():
        names.append(f"{FRAMES}/{name}/zarr.json")
        names += [f"{FRAMES}/{name}/{array.chunk_name(m)}" for m in range(array.chunks)]
    return sorted(names)


def open_frames(storage: Storage, read: ReadObject, frames: int, spec: ObsSpec) -> dict[str, CheckedArray]:
    """The four arrays, to be read by row range. Raises StoreCorrupt when their metadata is not what `spec` says."""
    read(f"{FRAMES}/{METADATA}")  # nothing in it is needed, but it must be there and sound
    specs = frame_specs(frames, spec)
    return {name: open_checked(storage, f"{FRAMES}/{name}", specs[name], read) for name in FIELDS}


def is_frame_object(path: str) -> bool:
    """Whether `path`, below a store, is a name that `frame_objects` of some number of frames may give."""
    return _OBJECT.fullmatch(path) is not None


_OBJECT: Final = re.compile(
    rf"{re.escape(FRAMES)}/({re.escape(METADATA)}|({'|'.join(FIELDS)})/({re.escape(METADATA)}|c/[0-9]+(/0)*))"
)


def read_frames(
    storage: Storage, read: ReadObject, frames: NDArray[np.int64], steps: NDArray[np.int64], spec: ObsSpec
) -> dict[str, NDArray[Any]]:
    """All four arrays. `frames` and `steps` are the lengths of the episodes, which the content must fit.

    Raises StoreCorrupt naming what is missing, altered or contradicts the episodes.
    """
    found = {name: array.read() for name, array in open_frames(storage, read, int(frames.sum()), spec).items()}
    episode = np.repeat(np.arange(len(frames)), frames)
    index = np.arange(len(episode)) - np.repeat(np.cumsum(frames) - frames, frames)
    no_action = index >= np.repeat(steps, frames)
    agrees = {
        "episode": np.array_equal(found["episode"], episode),
        "index": np.array_equal(found["index"], index),
        "robot_state": bool(np.isfinite(found["robot_state"]).all()),
        "action": np.array_equal(np.isnan(found["action"]).all(axis=1), no_action)
        and bool(np.isfinite(found["action"][~no_action]).all()),
    }
    broken = [name for name, good in agrees.items() if not good]
    if broken:
        raise StoreCorrupt(f"{storage.root}: {FRAMES}: {broken} do not fit the lengths in episodes.parquet")
    return found


BLOCK_ROWS: Final = 16 * CHUNK_ROWS


def check_frames(
    arrays: Mapping[str, CheckedArray], frames: NDArray[np.int64], steps: NDArray[np.int64], where: str
) -> None:
    """What `read_frames` checks, holding `BLOCK_ROWS` rows at a time. Raises StoreCorrupt."""
    first, total = np.cumsum(frames) - frames, int(frames.sum())
    for start in range(0, total, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, total)
        found = {name: array.read(start, stop) for name, array in arrays.items()}
        rows = np.arange(start, stop)
        episode = np.searchsorted(first, rows, side="right") - 1
        index = rows - first[episode]
        no_action = index >= steps[episode]
        agrees = {
            "episode": np.array_equal(found["episode"], episode),
            "index": np.array_equal(found["index"], index),
            "robot_state": bool(np.isfinite(found["robot_state"]).all()),
            "action": np.array_equal(np.isnan(found["action"]).all(axis=1), no_action)
            and bool(np.isfinite(found["action"][~no_action]).all()),
        }
        if broken := [name for name, good in agrees.items() if not good]:
            raise StoreCorrupt(f"{where}: {FRAMES}: {broken} do not fit the lengths in episodes.parquet")
