"""One demonstration of a file in LIBERO's layout (`pipelines.sources.libero`) as a canonical episode.

Legend: T rows of the file, A actions of the episode, H, W rows and columns of an image.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import h5py
import numpy as np
from numpy.typing import NDArray

from pipelines.sources import hdf5
from pipelines.sources.alignment import (
    AFTER,
    ARM_JOINTS,
    BEFORE,
    DETECT,
    Fit,
    arm_positions,
    detect_alignment,
    fit_columns,
    fit_joints,
    joint_layout,
)
from pipelines.sources.fingerprint import INIT_STATE, INIT_STATE_INDEX, Seen
from pipelines.sources.gripper import Reading, convert, require_agreement
from pipelines.sources.ranges import base_of, header_range, overlapping, stored_ranges
from pipelines.sources.source import Episode
from statevla.observation import FINGERS, HDF5_IMAGE_KEYS, JOINTS, robot_state, upright
from stores.errors import SourceError
from stores.init_states import init_state_hash
from stores.made_by import MADE_BY
from stores.printable import plain
from stores.spec import LIBERO

IMAGE_SIDE: Final = (8, 2048)
"""Smallest and largest image side [pixel] that is believed."""
MAX_ROWS: Final = 100_000
"""Rows of a demonstration; at 20 Hz, 83 minutes."""
MAX_STATE: Final = 10_000
ACTION_TOLERANCE: Final = 1e-6
"""Rounding that an action may exceed [-1, 1] by; the controller would clip more, so more is another convention."""
LIMITS: Final = {"obs/joint_states": 100.0, "obs/gripper_states": 10.0}
"""Joint positions [rad] and finger positions [m] beyond which numbers are damage, whatever the robot."""
GRIPPER: Final = 6
"""Column of the gripper command."""


def image_key(camera: str) -> str:
    """Path of a camera's images below its demonstration."""
    return f"obs/{HDF5_IMAGE_KEYS[camera]}"


def image_dataset(demo: h5py.Group, camera: str) -> hdf5.Rows:
    """A camera's checked dataset uint8 [T, H, W, 3]."""
    limit = MAX_ROWS * IMAGE_SIDE[1] ** 2 * 3
    images = hdf5.dataset(demo, image_key(camera), "uint8", (None, None, None, 3), limit)
    low, high = IMAGE_SIDE
    if not all(low <= side <= high for side in images.shape[1:3]) or images.shape[0] > MAX_ROWS:
        raise SourceError(
            f"key {image_key(camera)!r}: expected at most {MAX_ROWS} images with sides of {low} to {high}, "
            f"got {list(images.shape)}"
        )
    return images


def image_datasets(demo: h5py.Group) -> dict[str, hdf5.Rows]:
    """Camera name -> checked dataset uint8 [T, H, W, 3]; all the same shape."""
    found = {camera: image_dataset(demo, camera) for camera in HDF5_IMAGE_KEYS}
    shapes = {camera: images.shape for camera, images in found.items()}
    if len(set(shapes.values())) != 1:
        raise SourceError(f"cameras differ in shape: {shapes}")
    return found


def read_demo(
    file: h5py.File,
    name: str,
    convention: str,
    alignment: str = DETECT,
    seen: Seen | None = None,
    reading: Reading | None = None,
) -> Episode:
    """Demonstration `name` of an open file -> canonical episode.

    alignment: "detect", or what the user knows ("after", "before") for files that do not tell. A file that tells
    otherwise than the user is refused. seen: notes what is read, for the fingerprint. reading: how gripper
    commands are read; None: they stay as they are.

    Raises SourceError naming file, demonstration, key, what was expected and what came.
    """
    where = f"{hdf5.name_of(file)}/{name}"
    seen = seen or Seen()
    hooks = {camera: seen.hook(image_key(camera)) for camera in LIBERO.camera_names}
    with hdf5.reporting(where):
        demo = seen.group = hdf5.group(file, f"data/{name}")
        cameras = image_datasets(demo)
        parts = {image_key(camera): data for camera, data in cameras.items()}
        seen.rows |= parts
        rows, height, width = (int(size) for size in next(iter(cameras.values())).shape[:3])
        if rows < 2:
            raise SourceError(f"expected at least 2 frames, got {rows}")
        declared = hdf5.integer(demo, "num_samples", seen.attribute)
        if declared is not None and declared != rows:
            raise SourceError(f"num_samples declares {declared} rows, images have {rows}")
        numbers = read_numbers_of(demo, rows, alignment, seen)
        parts |= numbers.parts
        require_apart(file, parts)
        action = numbers.action
        if reading is not None:
            action = action.copy()
            action[:, GRIPPER] = convert(action[:, GRIPPER], reading)
            require_agreement(action[:, GRIPPER], numbers.fingers)
        start_state = init_state(demo, seen)
        made_by = plain(hdf5.text(demo, MADE_BY, seen.attribute) or "")

    def images(camera: str, start: int, stop: int, into: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
        with hdf5.reporting(f"{where}, frames {start} to {stop}"):
            return upright(hdf5.read_rows(cameras[camera], start, stop, hooks[camera], into), convention)

    return Episode(
        demo=name,
        robot_state=robot_state(numbers.joints, numbers.fingers),
        action=action.astype(np.float32),
        alignment=numbers.alignment,
        sizes=((height, width),) * len(cameras),
        images=images,
        init_state=start_state,
        made_by=made_by,
    )


@dataclass(frozen=True)
class Numbers:
    """A demonstration without its pictures: action [A, 7] and alignment of the canonical episode; joints [T, 7] rad and
    fingers [T, 2] m as stored; parts: the datasets by key.
    """

    action: NDArray[np.float64]
    joints: NDArray[np.float64]
    fingers: NDArray[np.float64]
    alignment: str
    parts: dict[str, hdf5.Rows]


def read_numbers_of(demo: h5py.Group, rows: int, alignment: str, seen: Seen) -> Numbers:
    """Of an open demonstration of `rows` frames. alignment, seen: as for `read_demo`. Raises SourceError."""
    shapes = {
        "actions": (rows, LIBERO.action_dim),
        "obs/joint_states": (rows, JOINTS),
        "obs/gripper_states": (rows, FINGERS),
    }
    parts = {key: number_dataset(demo, key, shape) for key, shape in shapes.items()}
    seen.rows |= parts
    actions = check_actions(read_numbers(parts["actions"], "actions", seen))
    joints = read_numbers(parts["obs/joint_states"], "obs/joint_states", seen)
    fingers = read_numbers(parts["obs/gripper_states"], "obs/gripper_states", seen)
    found = resolve_alignment(demo, joints, alignment, seen)
    return Numbers(actions[1:] if found == AFTER else actions, joints, fingers, found, parts)


def require_apart(file: h5py.File, parts: Mapping[str, hdf5.Rows]) -> None:
    """Raise SourceError where datasets (by key) lie on one another, or outside the file."""
    base = base_of(file)
    ranges = {key: stored_ranges(data) for key, data in parts.items()}
    ranges |= {f"header of {key}": header_range(data, base) for key, data in parts.items()}
    astray = overlapping(ranges, os.path.getsize(file.filename))
    if astray:
        raise SourceError(f"keys {sorted(astray)} lie on one another, or outside the file: addresses are damaged")


def read_hand(demo: h5py.Group, key: str, rows: int) -> NDArray[np.float64] | None:
    """Positions of the hand [rows, 3] m; None where the file has none. Raises SourceError where it has, unreadable."""
    try:
        return read_numbers(number_dataset(demo, key, (rows, 3)), key, Seen())
    except hdf5.Missing:
        return None


def init_state(demo: h5py.Group, seen: Seen) -> str:
    """Where the demonstration starts: see `Episode.init_state`."""
    number = hdf5.integer(demo, INIT_STATE_INDEX, seen.attribute)
    if number is not None:
        return str(number)
    state = seen.attribute(demo, INIT_STATE)
    if state is None:
        return ""
    if not isinstance(state, np.ndarray) or state.dtype.kind != "f" or state.size > MAX_STATE:
        got = f"{state.dtype} {list(state.shape)}" if isinstance(state, np.ndarray) else type(state).__name__
        raise SourceError(f"attribute {INIT_STATE!r}: expected at most {MAX_STATE} floats, got {got}")
    return init_state_hash(state)


def number_dataset(demo: h5py.Group, key: str, shape: tuple[int, int | None]) -> hdf5.Rows:
    """The checked dataset of a small float table. Raises SourceError naming the key."""
    data = hdf5.dataset(demo, key, "float", shape, MAX_ROWS * MAX_STATE * 8)
    if data.shape[1] > MAX_STATE:
        raise SourceError(f"key {key!r}: {data.shape[1]} columns, more than {MAX_STATE}")
    return data


def read_numbers(data: hdf5.Rows, key: str, seen: Seen) -> NDArray[np.float64]:
    """A small float table, all finite, as float64. Raises SourceError naming key and row."""
    values = hdf5.read_rows(data, 0, None, seen.hook(key)).astype(np.float64, copy=False)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise SourceError(f"key {key!r}: expected finite numbers, got NaN or infinity in row {int(bad.argmax())}")
    limit = LIMITS.get(key, math.inf)
    far = np.abs(values) > limit
    if far.any():
        raise SourceError(f"key {key!r}: expected at most {limit:g}, got {values[far][0]:g}")
    return values


def check_actions(actions: NDArray[np.float64]) -> NDArray[np.float64]:
    """The actions [T, 7] in controller units. Raises SourceError on values outside [-1, 1]."""
    outside = np.abs(actions) > 1.0 + ACTION_TOLERANCE
    if outside.any():
        row, column = (int(i) for i in np.argwhere(outside)[0])
        raise SourceError(
            f"key 'actions': expected values in [-1, 1] (controller units), got {actions[row, column]:g} at row {row}, "
            f"column {column}"
        )
    return actions


def resolve_alignment(demo: h5py.Group, joints: NDArray[np.float64], told: str, seen: Seen) -> str:
    """``after`` or ``before``: what the file shows, or what the user told where it does not show.

    The joints are in ``states`` where ``model_file`` says; without it, in the columns that follow ``obs/joint_states``.
    Raises SourceError where nothing shows it, and where the file shows otherwise than told.
    """
    if told not in (DETECT, AFTER, BEFORE):
        raise SourceError(f"alignment: expected {DETECT}, {AFTER} or {BEFORE}, got {told!r}")
    try:
        fit = fit_of(demo, joints, seen)
    except hdf5.Missing:  # what is there and cannot be read is no absence
        if told == DETECT:
            raise
        return told
    try:
        found = detect_alignment(fit)
    except SourceError:
        if told == DETECT:
            raise
        return told
    if told not in (DETECT, found):
        raise SourceError(f"alignment: told {told!r}, but this file shows {found!r}: {fit.text}")
    return found


def fit_of(demo: h5py.Group, joints: NDArray[np.float64], seen: Seen) -> Fit:
    """How the observed `joints` [T, 7] fit those in ``states``, see `resolve_alignment`. Raises SourceError."""
    rows = seen.rows["states"] = number_dataset(demo, "states", (len(joints), None))
    states = read_numbers(rows, "states", seen)
    model = hdf5.text(demo, "model_file", seen.attribute)
    layout = None if model is None else joint_layout(model)
    if layout is None or not set(ARM_JOINTS) <= set(layout.address):  # another robot's names
        return fit_columns(states, joints)
    return fit_joints(arm_positions(states, layout), joints)
