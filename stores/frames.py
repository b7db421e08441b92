"""``frames.zarr``: the numbers of all frames of all episodes, end to end, for random access.

Legend: N frames of the store.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stores import durable
from stores.arrays import METADATA, ArraySpec, ReadObject, create_group, open_checked, write_array
from stores.errors import StoreCorrupt, UsageError
from stores.schema import ACTION_DIM, ROBOT_STATE_DIM
from stores.storage import Storage

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


def write_frames(root: Path | str, fields: Mapping[str, NDArray[Any]]) -> list[str]:
    """Write ``frames.zarr`` below `root`, replacing an older one whole; returns its objects' paths below `root`.

    fields: robot_state float32 [N, 9], action float32 [N, 7], episode int64 [N], index int64 [N].
    Raises UsageError on other names, shapes or dtypes.
    """
    if set(fields) != set(FIELDS):
        raise UsageError(f"frames: expected {sorted(FIELDS)}, got {sorted(fields)}")
    for name, spec in frame_specs(len(fields["index"])).items():
        if fields[name].shape != spec.shape or fields[name].dtype.name != spec.dtype:
            raise UsageError(
                f"frames, {name}: expected {spec.dtype} {list(spec.shape)}, "
                f"got {fields[name].dtype} {list(fields[name].shape)}"
            )
    with durable.staging_dir(Path(root, FRAMES)) as staging:
        create_group(staging)
        for name in FIELDS:
            write_array(staging, name, fields[name], CHUNK_ROWS)
    return frame_objects(len(fields["index"]))


def frame_objects(frames: int) -> list[str]:
    """Paths below the store of everything in ``frames.zarr``."""
    names = [f"{FRAMES}/zarr.json"]
    for name, spec in frame_specs(frames).items():
        names.append(f"{FRAMES}/{name}/zarr.json")
        names += [f"{FRAMES}/{name}/{spec.chunk_name(m)}" for m in range(spec.chunks)]
    return sorted(names)


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
