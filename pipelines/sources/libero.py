"""Reads demonstrations in LIBERO's HDF5 layout and turns each into a canonical episode.

Layout: ``/data/demo_N`` with ``actions [T,7]``, ``states [T,S]``, ``obs/agentview_rgb`` and ``obs/eye_in_hand_rgb``
``[T,H,W,3]``, ``obs/joint_states [T,7]``, ``obs/gripper_states [T,2]``; attributes ``num_samples`` (official files;
regenerated ones lack it) and ``model_file`` (MuJoCo XML) on the demonstration, ``problem_info`` (JSON with
``language_instruction``) and ``macros_image_convention`` on ``/data``.

A canonical episode has ``obs[t]`` before ``action[t]`` (see `pipelines/sources/alignment.py`). Of T rows:

- *before*: T observations, T actions; the last observation has no successor.
- *after*: ``obs[t]`` shows the effect of ``actions[t]``, so the action executed from it is ``actions[t + 1]``:
  T observations, T - 1 actions; ``actions[0]`` has no observation before it and is dropped.

Legend: T rows of the file, A actions of the episode, H, W rows and columns of an image.
"""

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from pipelines.ingest.plan import DEMO_LIMIT, natural_key, require_fitting, task_of
from pipelines.sources import hdf5, pulse
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
from pipelines.sources.evidence import SAMPLE_LOOKS, UPRIGHT, Evidence, Facts, Told, look, sample, weigh
from pipelines.sources.fingerprint import FORMAT as FINGERPRINT_FORMAT
from pipelines.sources.fingerprint import INIT_STATE, INIT_STATE_INDEX, Seen, Stored, fingerprint_demo
from pipelines.sources.gripper import Grip, Reading, convert, require_agreement, see
from pipelines.sources.masks import Split, demo_names, split_of
from pipelines.sources.orientation import Look
from pipelines.sources.source import Episode, EpisodeHead, SourceFile, Verdict
from pipelines.sources.texts import clean_instruction
from statevla.observation import FINGERS, HDF5_IMAGE_KEYS, IMAGE_CONVENTIONS, JOINTS, robot_state, upright
from stores.errors import SourceError, SourceTrouble
from stores.init_states import init_state_hash
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
MASK_LIMIT: Final = 2**20
"""Bytes of a list of demonstrations' names."""


class LiberoSource:
    """LIBERO's layout, as a row of `pipelines.sources.table.SOURCES`."""

    name: Final = "libero"
    format: Final = 1000 * FINGERPRINT_FORMAT + 1
    suffixes: Final = (".hdf5", ".h5")

    def recognizes(self, path: Path) -> bool:
        """Whether the first demonstration has LIBERO's cameras."""
        with hdf5.open_hdf5(path) as file, hdf5.reporting(path.name):
            data = hdf5.group(file, "data")
            first = next((name for name in data if isinstance(name, str)), None)
            return first is not None and all(f"{first}/{image_key(camera)}" in data for camera in LIBERO.camera_names)

    def inspect(self, path: Path, told: Told, poison: Mapping[int, str]) -> SourceFile:
        """See `inspect_file`."""
        return inspect_file(path, poison, told)

    def weigh(self, files: Mapping[str, SourceFile], told: Told) -> Verdict:
        """See `pipelines.sources.evidence.weigh`."""
        evidence = {name: Evidence.from_dict(header.evidence) for name, header in files.items()}
        texts = dict.fromkeys(head.instruction for header in files.values() for head in header.episodes.values())
        verdict = weigh(evidence, texts, told)
        facts = {name: found.to_dict() for name, found in verdict.facts.items()}
        for name, found in facts.items():  # what `open` finds again, or the file is another one by then
            for head in list(files[name].episodes.values())[:1]:
                found["header"] = [head.instruction, evidence[name].convention]
        return Verdict(facts, verdict.refused, verdict.notes)

    @contextlib.contextmanager
    def open(self, path: Path, facts: Mapping[str, Any], told: Told) -> Iterator["OpenLibero"]:
        """See `pipelines.sources.source.Source`."""
        with hdf5.open_hdf5(path) as file, Stored(path) as stored:
            if "header" in facts:
                require_header(file, *facts["header"])
            yield OpenLibero(file, stored, Facts.from_dict(facts), told)


class OpenLibero:
    """An open file; what `episode` has read is not read again for its `fingerprint`."""

    def __init__(self, file: h5py.File, stored: Stored, facts: Facts, told: Told) -> None:
        self._file, self._stored, self._facts, self._told = file, stored, facts, told
        self._seen: tuple[str, Seen] | None = None

    def episode(self, name: str) -> Episode:
        """See `read_demo`."""
        seen = Seen()
        self._seen = (name, seen)
        facts = self._facts
        return read_demo(self._file, name, facts.convention, self._told.alignment, seen, facts.gripper)

    def fingerprint(self, name: str) -> str:
        """See `pipelines.sources.fingerprint`."""
        seen = self._seen[1] if self._seen is not None and self._seen[0] == name else None
        return fingerprint_demo(self._file, name, self._stored, seen)


LIBERO_SOURCE: Final = LiberoSource()


def inspect_file(path: Path, poison: Mapping[int, str] | None = None, told: Told | None = None) -> SourceFile:
    """Header of `path`, and what some demonstrations show. Raises SourceError when the file as a whole is of no use.

    poison: reasons by position (from 1) of demonstrations that must not be touched, see `pipelines.sources.sandbox`.
    """
    with hdf5.open_hdf5(path) as file, hdf5.reporting(path.name):
        told = told or Told()
        data = hdf5.group(file, "data")
        instruction, own, notes = read_instruction(data, path.name)
        convention = hdf5.text(data, "macros_image_convention")
        if told.image_convention == DETECT and convention not in (None, *IMAGE_CONVENTIONS):
            raise SourceError(f"macros_image_convention: expected one of {IMAGE_CONVENTIONS}, got {convention!r}")
        found = list(data)
        if not found:
            raise SourceError("/data holds no demonstrations")
        refused: list[tuple[str, str]] = []
        declared = hdf5.integer(data, "num_demos")
        if declared is not None and declared != len(found):
            notes = (*notes, f"{path.name}: num_demos declares {declared}, the file holds {len(found)}")
        names = sorted((name for name in found if isinstance(name, str)), key=natural_key)
        for odd in (name.decode(errors="backslashreplace") for name in found if isinstance(name, bytes)):
            refused.append((odd, f"{path.name}/{odd}: expected a name in UTF-8"))
        split, beside = read_masks(file, names, told.masks, path.name)
        notes, refused = (*notes, *beside, *split.notes), [*refused, *split.refused]
        unwanted = {*split.out, *(demo for demo, _ in split.refused)}
        task = task_of(path.name)
        heads: dict[str, EpisodeHead] = {}
        ranges: dict[str, list[tuple[int, int]]] = {}
        for position, name in enumerate(names, 1):
            pulse.at(position)
            if name in unwanted:
                continue
            try:
                with hdf5.reporting(f"{path.name}/{name}"):
                    require_fitting(name, DEMO_LIMIT)
                    if poison and position in poison:
                        raise SourceError(poison[position])
                    cameras = image_datasets(hdf5.group(data, name))
                    rows, height, width = (int(size) for size in next(iter(cameras.values())).shape[:3])
                    heads[name] = EpisodeHead(rows, ((height, width),) * len(cameras), task, instruction)
                    ranges[name] = [part for data in cameras.values() for part in hdf5.stored_ranges(data)]
            except SourceError as error:
                refused.append((name, str(error)))
        size = path.stat().st_size
        astray = hdf5.overlapping(ranges, size)  # two names of one dataset, too
        astray |= {name.split("/")[1] for name in hdf5.overlapping(hdf5.claimed(file), size) if "/" in name}
        for name in sorted(astray & heads.keys(), key=natural_key):
            reason = "something of it lies where other data of the file do, or outside the file"
            refused.append((name, f"{path.name}/{name}: {reason}"))
            del heads[name]
        demos = tuple(heads)
        seen, looks = gather(file, demos, {name: at for at, name in enumerate(names, 1)}, told)
        parts = {demo: split.parts[demo] for demo in demos if demo in split.parts}
        evidence = Evidence(own, convention, seen, looks).to_dict()
        return SourceFile(path.name, LIBERO, heads, evidence, parts, tuple(refused), notes)


def require_header(file: h5py.File, instruction: str, convention: str | None) -> None:
    """Raise SourceTrouble unless the open file says what its header said when the ingest was planned."""
    name = Path(file.filename).name
    with hdf5.reporting(name):
        data = hdf5.group(file, "data")
        found = read_instruction(data, name)[0], hdf5.text(data, "macros_image_convention")
    if found != (instruction, convention):
        raise SourceTrouble(
            f"{name}: was replaced while it was read: the plan was made for {(instruction, convention)}, the file now "
            f"says {found}; run the same command again"
        )


def gather(
    file: h5py.File, demos: Sequence[str], positions: Mapping[str, int], told: Told
) -> tuple[tuple[Grip, ...], tuple[Look, ...]]:
    """What sampled demonstrations show of gripper and pictures; one that cannot be read shows nothing.

    positions: of the demonstrations in the file, for `pulse`.
    """
    grips: list[Grip] = []
    looks: list[Look] = []
    for demo in sample(demos):
        pulse.at(positions[demo])
        with contextlib.suppress(SourceError):
            episode = read_demo(file, demo, UPRIGHT, told.alignment)
            grips.append(see(episode.action[:, GRIPPER], episode.robot_state[:, JOINTS:]))
            if len(looks) < SAMPLE_LOOKS:
                looks.append(_look(file, episode))
    return tuple(grips), tuple(looks)


def _look(file: h5py.File, episode: Episode) -> Look:
    def read(start: int, stop: int) -> NDArray[np.uint8]:
        pulse.beat()
        return episode.images(LIBERO.camera_names[0], start, stop, None)

    rows = len(episode.robot_state)
    hand = None
    with contextlib.suppress(SourceError):  # regenerated files may lack it
        data = hdf5.dataset(file, f"data/{episode.demo}/obs/ee_pos", "float", (rows, 3), MAX_ROWS * 3 * 8)
        hand = hdf5.read_rows(data)
    return look(read, rows, hand)


def read_masks(file: h5py.File, demos: Sequence[str], told: str, where: str) -> tuple[Split, tuple[str, ...]]:
    """The split of ``/mask``, and notes about what else lies beside ``/data``. Raises UsageError, SourceError."""
    others = sorted(str(name) for name in file if name not in ("data", "mask"))
    notes = (f"{where}: {', '.join('/' + name for name in others)} beside /data is not used",) if others else ()
    if "mask" not in file:
        return Split(), notes
    found: dict[str, list[str]] = {}
    group = hdf5.group(file, "mask")
    for name in sorted(map(str, group)):
        listed = hdf5.child(group, name)
        if not isinstance(listed, hdf5.Rows) or len(listed.shape) != 1 or listed.nbytes > MASK_LIMIT:
            raise SourceError(f"/mask/{name}: expected a list of demonstrations' names")
        found[name] = demo_names(list(h5py.Dataset(listed.id)[()]), f"/mask/{name}")
    return split_of(found, demos, told, where), notes


def read_instruction(data: h5py.Group, file: str) -> tuple[str, bool, tuple[str, ...]]:
    """The task's text, whether it is the file's own, and notes: from ``problem_info``, else from the file's name, and
    then a note says so.
    """
    info = hdf5.text(data, "problem_info")
    if info is None:
        words = re.sub(r"^[A-Z_]+_SCENE\d+_", "", task_of(file)).replace("_", " ").strip()
        return words, False, (f"{file}: no problem_info; instruction taken from the file's name: {words!r}",)
    try:
        fields = json.loads(info)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"problem_info: expected JSON, got {error}") from error
    if not isinstance(fields, dict) or "language_instruction" not in fields:
        raise SourceError("problem_info: expected an object with language_instruction")
    given = fields["language_instruction"]
    instruction = clean_instruction(given)
    hdf5.require_unicode(instruction, "problem_info.language_instruction")
    if not instruction.isprintable():
        raise SourceError(f"problem_info.language_instruction: expected printable text, got {instruction!r:.80}")
    if isinstance(given, str) and given.strip() == instruction:
        return instruction, True, ()
    return instruction, True, (f"{file}: instruction {given!r:.200} is read as {instruction!r}",)


def image_key(camera: str) -> str:
    """Path of a camera's images below its demonstration."""
    return f"obs/{HDF5_IMAGE_KEYS[camera]}"


def image_datasets(demo: h5py.Group) -> dict[str, hdf5.Rows]:
    """Camera name -> checked dataset uint8 [T, H, W, 3]; all the same shape."""
    found: dict[str, hdf5.Rows] = {}
    limit = MAX_ROWS * IMAGE_SIDE[1] ** 2 * 3
    for camera, key in HDF5_IMAGE_KEYS.items():
        images = hdf5.dataset(demo, image_key(camera), "uint8", (None, None, None, 3), limit)
        low, high = IMAGE_SIDE
        if not all(low <= side <= high for side in images.shape[1:3]) or images.shape[0] > MAX_ROWS:
            raise SourceError(
                f"key 'obs/{key}': expected at most {MAX_ROWS} images with sides of {low} to {high}, "
                f"got {list(images.shape)}"
            )
        found[camera] = images
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
    where = f"{Path(file.filename).name}/{name}"
    seen = seen or Seen()
    hooks = {camera: seen.hook(image_key(camera)) for camera in LIBERO.camera_names}
    with hdf5.reporting(where):
        demo = hdf5.group(hdf5.group(file, "data"), name)
        cameras = image_datasets(demo)
        parts = {image_key(camera): data for camera, data in cameras.items()}
        rows, height, width = (int(size) for size in next(iter(cameras.values())).shape[:3])
        if rows < 2:
            raise SourceError(f"expected at least 2 frames, got {rows}")
        declared = hdf5.integer(demo, "num_samples")
        if declared is not None and declared != rows:
            raise SourceError(f"num_samples declares {declared} rows, images have {rows}")
        shapes = {
            "actions": (rows, LIBERO.action_dim),
            "obs/joint_states": (rows, JOINTS),
            "obs/gripper_states": (rows, FINGERS),
        }
        parts |= {key: number_dataset(demo, key, shape) for key, shape in shapes.items()}
        actions = check_actions(read_numbers(parts["actions"], "actions", seen))
        joints = read_numbers(parts["obs/joint_states"], "obs/joint_states", seen)
        fingers = read_numbers(parts["obs/gripper_states"], "obs/gripper_states", seen)
        state = robot_state(joints, fingers)
        found = resolve_alignment(demo, joints, alignment, seen)
        ranges = {key: hdf5.stored_ranges(data) for key, data in parts.items()}
        ranges |= {f"header of {key}": hdf5.header_range(data) for key, data in parts.items()}
        astray = hdf5.overlapping(ranges, Path(file.filename).stat().st_size)
        if astray:
            raise SourceError(f"keys {sorted(astray)} lie on one another, or outside the file: addresses are damaged")

        action = actions[1:] if found == AFTER else actions
        if reading is not None:
            action = action.copy()
            action[:, GRIPPER] = convert(action[:, GRIPPER], reading)
            require_agreement(action[:, GRIPPER], fingers)
        start_state = init_state(demo)

    def images(camera: str, start: int, stop: int, into: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
        with hdf5.reporting(f"{where}, frames {start} to {stop}"):
            return upright(hdf5.read_rows(cameras[camera], start, stop, hooks[camera], into), convention)

    return Episode(
        demo=name,
        robot_state=state,
        action=action.astype(np.float32),
        alignment=found,
        sizes=((height, width),) * len(cameras),
        images=images,
        init_state=start_state,
    )


def init_state(demo: h5py.Group) -> str:
    """Where the demonstration starts: see `Episode.init_state`."""
    number = hdf5.integer(demo, INIT_STATE_INDEX)
    if number is not None:
        return str(number)
    state = hdf5.attribute(demo, INIT_STATE)
    if not isinstance(state, np.ndarray) or state.dtype.kind != "f" or state.size > MAX_STATE:
        return ""
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
        fit = _fit(demo, joints, seen)
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


def _fit(demo: h5py.Group, joints: NDArray[np.float64], seen: Seen) -> Fit:
    states = read_numbers(number_dataset(demo, "states", (len(joints), None)), "states", seen)
    model = hdf5.text(demo, "model_file")
    layout = None if model is None else joint_layout(model)
    if layout is None or not set(ARM_JOINTS) <= set(layout.address):  # another robot's names
        return fit_columns(states, joints)
    return fit_joints(arm_positions(states, layout), joints)
