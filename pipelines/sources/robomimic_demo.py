"""One demonstration of a robomimic file (`pipelines.sources.robomimic`) as a canonical episode.

Legend: T rows of a demonstration, H, W rows and columns of a picture.
"""

from collections.abc import Mapping
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from pipelines.sources import gripper, hdf5
from pipelines.sources.alignment import AFTER
from pipelines.sources.fingerprint import Seen
from pipelines.sources.gripper import Reading
from pipelines.sources.libero_demo import fit_of, number_dataset, read_numbers, require_apart
from pipelines.sources.robomimic_keys import JOINTS, STATES, Keys, cameras_of
from pipelines.sources.source import Episode
from statevla.observation import JOINTS as ARM
from statevla.observation import upright
from stores.errors import SourceError

ATTRIBUTES: Final = ("num_samples", "model_file", "ep_meta")


def shown_alignment(demo: h5py.Group, rows: int, keys: Keys) -> str | None:
    """``after`` or ``before``, as the arm's joints in ``states`` show; None where a file has none, or they do not tell.

    Raises SourceError where they are there and cannot be read, or are missing here and not elsewhere in the file.
    """
    try:
        data = number_dataset(demo, JOINTS, (rows, None))
        if data.shape[1] != ARM:
            return None  # another arm's
        return fit_of(demo, read_numbers(data, JOINTS, Seen()), Seen()).alignment
    except hdf5.Missing:
        if keys.shows:
            raise
        return None


def read_demo(
    file: h5py.File, name: str, keys: Keys, facts: Mapping[str, Any], reading: Reading | None, checked: bool = True
) -> Episode:
    """Demonstration `name` as a canonical episode. checked: whether it must show the file's alignment.

    Raises SourceError naming file, demonstration, key, what was expected and what came.
    """
    where = f"{hdf5.name_of(file)}/{name}"
    with hdf5.reporting(where):
        demo = hdf5.group(hdf5.group(file, "data"), name)
        pictures = cameras_of(demo, keys)
        lengths = {int(item.shape[0]) for item in pictures.values()}
        declared = hdf5.integer(demo, "num_samples")
        rows = max(lengths) if declared is None else declared
        if lengths != {rows} or rows < 2:
            raise SourceError(f"num_samples {rows}, pictures of {sorted(lengths)} rows; expected as many, at least 2")
        parts = {"actions": number_dataset(demo, "actions", (rows, keys.spec.action_dim))}
        for key, field in zip(keys.state, keys.spec.robot_state, strict=True):
            parts[f"obs/{key}"] = number_dataset(demo, f"obs/{key}", (rows, field.width))
        require_apart(file, {**parts, **{f"obs/{keys.cameras[name]}": data for name, data in pictures.items()}})
        action = read_numbers(parts["actions"], "actions", Seen())
        state = np.concatenate(
            [read_numbers(parts[path], path, Seen()) for path in (f"obs/{key}" for key in keys.state)], axis=1
        ).astype(np.float32)
        if checked and shown_alignment(demo, rows, keys) not in (None, facts["alignment"]):
            raise SourceError(f"alignment: this demonstration shows otherwise than the file's {facts['alignment']!r}")
        action = action[1:] if facts["alignment"] == AFTER else action
        if reading is not None:
            action = np.concatenate([action[:, :-1], gripper.convert(action[:, -1], reading)[:, None]], axis=1)
            gripper.require_agreement(action[:, -1], fingers_of(state, keys))

    def images(camera: str, start: int, stop: int, into: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
        with hdf5.reporting(f"{where}, frames {start} to {stop}"):
            return upright(hdf5.read_rows(pictures[camera], start, stop, None, into), facts["image_convention"])

    sizes = tuple((int(item.shape[1]), int(item.shape[2])) for item in pictures.values())
    return Episode(name, state, action.astype(np.float32), facts["alignment"], sizes, images)


def fingers_of(state: NDArray[np.float32], keys: Keys) -> NDArray[np.float32]:
    """Positions [T, fingers] of the one gripper's, of a robot state [T, *]; where it has none, such as never move."""
    if keys.fingers is None:
        return np.zeros((len(state), 1), np.float32)
    return state[:, keys.spec.state_slice_of(keys.name_of(keys.fingers))]


def parts_of(keys: Keys) -> list[str]:
    """All that is read of a demonstration."""
    read = (*keys.state, *keys.cameras.values())
    return list(dict.fromkeys(["actions", STATES, *(f"obs/{key}" for key in read), JOINTS]))
