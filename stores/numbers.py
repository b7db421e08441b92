"""``frames.zarr``: the numbers of all frames of all episodes, end to end, for random access.

Legend: N frames of the store.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stores.arrays import METADATA, ArraySpec, ReadObject, create, create_group, open_checked, write_region
from stores.cloud.storage import Storage
from stores.disk import durable
from stores.errors import StoreCorrupt, UsageError
from stores.schema import ACTION_DIM, ROBOT_STATE_DIM

FRAMES: Final = "frames.zarr"
CHUNK_ROWS: Final = 4096
FIELDS: Final[Mapping[str, tuple[tuple[int, ...], str]]] = {
    "robot_state": ((ROBOT_STATE_DIM,), "float32"),
    "action": ((ACTION_DIM,), "float32"),  # NaN where a frame has no action
    "episode": ((), "int64"),  # row of episodes.parquet
    "index": ((), "int64"),  # of the frame in its episode
}


def frame_specs(frames: int) -> dict[str, ArraySpec]:
    """The four arrays of a store with `frames` frames."""
    return {name: ArraySpec((frames, *row), dtype, CHUNK_ROWS) for name, (row, dtype) in FIELDS.items()}


class FramesWriter:
    """Frames that come in pieces -> the chunks of ``frames.zarr``; holds one chunk of each array."""

    def __init__(self, root: Path, frames: int) -> None:
        self._root, self._specs = root, frame_specs(frames)
        self._frames, self._done, self._held = frames, 0, 0
        self._rows = {name: np.empty((CHUNK_ROWS, *row), dtype) for name, (row, dtype) in FIELDS.items()}
        create_group(root)
        for name, spec in self._specs.items():
            create(root, name, spec.shape, spec.dtype, spec.chunk)

    def add(self, fields: Mapping[str, NDArray[Any]]) -> None:
        """Append n frames: robot_state float32 [n, 9], action float32 [n, 7], episode int64 [n], index int64 [n].

        Raises UsageError on other names, shapes or dtypes, and on more frames than were announced.
        """
        if set(fields) != set(FIELDS):
            raise UsageError(f"frames: expected {sorted(FIELDS)}, got {sorted(fields)}")
        count = len(fields["index"])
        for name, (row, dtype) in FIELDS.items():
            if fields[name].shape != (count, *row) or fields[name].dtype.name != dtype:
                raise UsageError(
                    f"frames, {name}: expected {dtype} {[count, *row]}, "
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
def frames_writer(root: Path | str, frames: int) -> Iterator[FramesWriter]:
    """``frames.zarr`` of `frames` frames below `root`, written as they come; replaces an older one whole at the end."""
    with durable.staging_dir(Path(root, FRAMES)) as staging:
        writer = FramesWriter(staging, frames)
        yield writer
        writer.close()


def write_frames(root: Path | str, fields: Mapping[str, NDArray[Any]]) -> list[str]:
    """Write all frames (`FramesWriter.add`) at once; returns the paths below `root` of the objects written."""
    if "index" not in fields:
        raise UsageError(f"frames: expected {sorted(FIELDS)}, got {sorted(fields)}")
    with frames_writer(root, len(fields["index"])) as writer:
        writer.add(fields)
    return frame_objects(len(fields["index"]))


def frame_objects(frames: int) -> list[str]:
    """Paths below the store of everything in ``frames.zarr``."""
    names = [f"{FRAMES}/zarr.json"]
    for name, spec in frame_specs(frames).items():
        names.append(f"{FRAMES}/{name}/zarr.json")
        names += [f"{FRAMES}/{name}/{spec.chunk_name(m)}" for m in range(spec.chunks)]
    return sorted(names)


def is_frame_object(path: str) -> bool:
    """Whether `path`, below a store, is a name that `frame_objects` of some number of frames may give."""
    return _OBJECT.fullmatch(path) is not None


_OBJECT: Final = re.compile(
    rf"{re.escape(FRAMES)}/({re.escape(METADATA)}|({'|'.join(FIELDS)})/({re.escape(METADATA)}|c/[0-9]+(/0)*))"
)


def read_frames(
    storage: Storage, read: ReadObject, frames: NDArray[np.int64], steps: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """All four arrays. `frames` and `steps` are the lengths of the episodes, which the content must fit.

    Raises StoreCorrupt naming what is missing, altered or contradicts the episodes.
    """
    read(f"{FRAMES}/{METADATA}")  # nothing in it is needed, but it must be there and sound
    specs = frame_specs(int(frames.sum()))
    found = {name: open_checked(storage, f"{FRAMES}/{name}", specs[name], read).read() for name in FIELDS}
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
