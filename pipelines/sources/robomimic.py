"""robomimic's HDF5: demonstrations of any task with whatever observations were rendered into them.

Layout: ``/data/demo_N`` with ``actions [T, A]``, ``states [T, S]`` and ``obs/<key>``, one row a step; attributes
``num_samples`` and ``model_file`` on the demonstration, ``env_args`` (JSON: ``env_name``, ``env_kwargs.control_freq``)
on ``/data``; ``/mask/<name>`` lists demonstrations. ``obs[t]`` is before ``actions[t]``, and pictures are upright; both
are held against what the file shows, as is the gripper's sign.

Which keys are which: robosuite's names, or ``--spec`` (`pipelines.sources.fields`). Legend: T rows, A numbers of an
action, S of a simulator state, H, W rows and columns of a picture.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from pipelines.ingest.plan import DEMO_LIMIT, natural_key, require_fitting
from pipelines.sources import evidence, gripper, hdf5, orientation, pulse
from pipelines.sources.alignment import AFTER, BEFORE, DETECT
from pipelines.sources.evidence import UPRIGHT, Told, looks_of, sample, upside_down
from pipelines.sources.fields import told_fields
from pipelines.sources.fingerprint import FORMAT as FINGERPRINT_FORMAT
from pipelines.sources.fingerprint import Seen, Stored, fingerprint_demo
from pipelines.sources.gripper import Grip, Reading
from pipelines.sources.libero_demo import number_dataset, read_numbers, resolve_alignment
from pipelines.sources.libero_header import read_masks
from pipelines.sources.orientation import Look
from pipelines.sources.robomimic_keys import PICTURE, Keys, cameras_of, environment, instruction_of, keys_of
from pipelines.sources.source import Episode, EpisodeHead, SourceFile, Verdict
from pipelines.sources.texts import near_identical
from statevla.observation import upright
from stores.errors import SourceError

ATTRIBUTES: Final = ("num_samples", "model_file", "ep_meta")


class RobomimicSource:
    """The format; see the module."""

    name: Final = "robomimic"
    format: Final = 1000 * FINGERPRINT_FORMAT + 1
    suffixes: Final = (".hdf5", ".h5")
    takes_fields: Final = True

    def recognizes(self, path: Path) -> bool:
        """Whether ``/data`` says of which environment it is, and observations have robosuite's names (LIBERO's files
        say the first, too).
        """
        with hdf5.open_hdf5(path) as file, hdf5.reporting(path.name):
            data = hdf5.group(file, "data")
            if hdf5.text(data, "env_args") is None or not len(data):
                return False
            names = map(str, hdf5.group(data, f"{_first(data)}/obs"))
            return any(name.startswith("robot0_") or name.endswith(PICTURE) for name in names)

    def inspect(self, path: Path, told: Told, poison: Mapping[int, str], files: int = 1) -> SourceFile:
        """See `pipelines.sources.source.Source`."""
        with hdf5.open_hdf5(path) as file, hdf5.reporting(path.name):
            return _inspect(file, path.name, told, poison, files)

    def weigh(self, files: Mapping[str, SourceFile], told: Told) -> Verdict:
        """Alignment, gripper and orientation of each file, from what its sampled demonstrations show."""
        facts: dict[str, dict[str, Any]] = {}
        refused: dict[str, str] = {}
        notes: list[tuple[str, str]] = []
        grips = {
            name: gripper.pool(Grip(**row) for row in header.evidence["gripper"]) for name, header in files.items()
        }
        together = gripper.pool(grip for grip in grips.values() if grip is not None)
        for name, header in files.items():
            try:
                facts[name], said = _reading(header, grips[name], together, told)
                notes += [(name, note.removeprefix(f"{name}: ")) for note in said]
            except SourceError as error:
                refused[name] = str(error)
        texts = dict.fromkeys(head.instruction for header in files.values() for head in header.episodes.values())
        for group in near_identical(texts):
            notes.append(("", f"instructions that read alike, kept as they are: {', '.join(map(repr, group))}"))
        return Verdict(facts, refused, tuple(notes))

    @contextlib.contextmanager
    def open(self, path: Path, facts: Mapping[str, Any], told: Told) -> Iterator["OpenRobomimic"]:
        """See `pipelines.sources.source.Source`."""
        with hdf5.open_hdf5(path) as file, Stored(path) as stored:
            yield OpenRobomimic(file, stored, facts, told)


class OpenRobomimic:
    """An open file."""

    def __init__(self, file: h5py.File, stored: Stored, facts: Mapping[str, Any], told: Told) -> None:
        self._file, self._stored, self._facts = file, stored, facts
        with hdf5.reporting(Path(file.filename).name):
            data = hdf5.group(file, "data")
            self._keys = keys_of(data, _first(data), told_fields(told.fields, told.spec), environment(data))[0]

    def episode(self, name: str) -> Episode:
        """See `read_demo`."""
        read = self._facts["gripper"]
        reading = None if read is None else Reading(read["middle"], read["closes"])
        return read_demo(self._file, name, self._keys, self._facts, reading)

    def fingerprint(self, name: str) -> str:
        """See `pipelines.sources.fingerprint`."""
        keys = self._keys
        parts = ["actions", "states", *(f"obs/{key}" for key in (*keys.state, *keys.cameras.values()))]
        return fingerprint_demo(self._file, name, self._stored, None, ATTRIBUTES, parts)


def _reading(
    header: SourceFile, mine: Grip | None, together: Grip | None, told: Told
) -> tuple[dict[str, Any], list[str]]:
    """Facts of a file, and what was assumed or converted. Raises SourceError where it shows otherwise than told."""
    notes: list[str] = []
    shown = set(header.evidence["alignment"])
    if len(shown) > 1:
        raise SourceError(f"{header.name}: some demonstrations show 'before' and some 'after'; expected one of them")
    found = next(iter(shown), None)
    if told.alignment != DETECT and found not in (None, told.alignment):
        raise SourceError(f"{header.name}: alignment told {told.alignment!r}, but the joints in states show {found!r}")
    aligned = found or (BEFORE if told.alignment == DETECT else told.alignment)
    if found is None and told.alignment == DETECT:
        notes.append("observations taken as stored before their actions, as robomimic does; the file does not show it "
                     "(--alignment says otherwise)")  # fmt: skip
    convention = UPRIGHT if told.image_convention == DETECT else told.image_convention
    moves = orientation.from_motion([Look(**row) for row in header.evidence["looks"]])
    if moves is not None and (moves == "upside-down") != upside_down(convention) and told.image_convention == DETECT:
        raise SourceError(
            f"{header.name}: robomimic's pictures are upright, but motion, against the height of the hand, shows them "
            f"{moves}; pass --image-convention opengl or --image-convention upright"
        )
    if moves is None and told.image_convention == DETECT:
        notes.append("pictures taken as upright, as robomimic stores them; nothing in them shows it "
                     "(--image-convention says otherwise)")  # fmt: skip
    reading = None
    if mine is not None and together is not None:
        reading, note = gripper.decide(mine, together, told.gripper, header.name)
        notes += [] if note is None else [note]
    read = None if reading is None else {**asdict(reading), "text": reading.text}
    return {"alignment": aligned, "image_convention": convention, "gripper": read}, notes


def _inspect(file: h5py.File, where: str, told: Told, poison: Mapping[int, str], files: int) -> SourceFile:
    data = hdf5.group(file, "data")
    fields, env = told_fields(told.fields, told.spec), environment(data)
    names = sorted((name for name in data if isinstance(name, str)), key=natural_key)
    if not names:
        raise SourceError("/data holds no demonstrations")
    keys, notes = keys_of(data, names[0], fields, env)
    split, beside = read_masks(file, names, told.masks, where)
    notes = [*(f"{where}: {note}" for note in notes), *beside, *split.notes]
    refused = list(split.refused)
    unwanted = {*split.out, *(demo for demo, _ in split.refused)}
    heads: dict[str, EpisodeHead] = {}
    assumed: set[str] = set()
    for position, name in enumerate(names, 1):
        pulse.at(position)
        if name in unwanted:
            continue
        try:
            with hdf5.reporting(f"{where}/{name}"):
                require_fitting(name, DEMO_LIMIT)
                if position in poison:
                    raise SourceError(poison[position])
                demo = hdf5.group(data, name)
                pictures = cameras_of(demo, keys)
                sizes = tuple((int(item.shape[1]), int(item.shape[2])) for item in pictures.values())
                text, own = instruction_of(demo, fields, env)
                assumed |= set() if own else {text}
                rows = min(int(item.shape[0]) for item in pictures.values())
                heads[name] = EpisodeHead(rows, sizes, str(env.get("env_name") or text), text)
        except SourceError as error:
            refused.append((name, str(error)))
    notes += [f"{where}: instruction taken from env_name: {text!r} (--spec says otherwise)" for text in sorted(assumed)]
    places = {name: at for at, name in enumerate(names, 1)}
    found = _gather(file, list(heads), keys, places, files)
    parts = {demo: part for demo, part in split.parts.items() if demo in heads}
    return SourceFile(where, keys.spec, heads, found, parts, tuple(refused), tuple(notes))


def _gather(file: h5py.File, demos: list[str], keys: Keys, places: Mapping[str, int], files: int) -> dict[str, Any]:
    """What sampled demonstrations show of alignment, gripper and pictures, JSON-ready."""
    found: dict[str, list[Any]] = {"alignment": [], "gripper": [], "looks": []}
    for demo in sample(demos):
        pulse.at(places[demo])
        with contextlib.suppress(SourceError):
            episode = read_demo(file, demo, keys, {"alignment": BEFORE, "image_convention": UPRIGHT}, None, False)
            rows = hdf5.group(file, f"data/{demo}")
            aligned = shown_alignment(rows, len(episode.robot_state))
            found["alignment"] += [] if aligned is None else [aligned]
            if keys.fingers is not None:
                fingers = episode.robot_state[:, keys.spec.slice_of(_name(keys, keys.fingers))]
                action = episode.action[1:] if aligned == AFTER else episode.action
                found["gripper"].append(asdict(gripper.see(action[:, -1], fingers)))
            if len(found["looks"]) < looks_of(files):
                found["looks"].append(asdict(_look(rows, episode, keys)))
    return found


def _look(demo: h5py.Group, episode: Episode, keys: Keys) -> Look:
    """The first camera's pictures of some moments, with the hand's height where the file has it."""
    rows, camera = len(episode.robot_state), keys.spec.camera_names[0]
    hand = None
    with contextlib.suppress(SourceError):
        path = "obs/robot0_eef_pos"
        hand = read_numbers(number_dataset(demo, path, (rows, 3)), path, Seen())

    def read(row: int) -> NDArray[np.uint8]:
        pulse.beat()
        frame: NDArray[np.uint8] = episode.images(camera, row, row + 1, None)[0]
        return frame

    return evidence.look(read, rows, hand)


def _name(keys: Keys, key: str) -> str:
    return keys.spec.robot_state[keys.state.index(key)].name


def shown_alignment(demo: h5py.Group, rows: int) -> str | None:
    """``after`` or ``before``, as the arm's joints in ``states`` show; None where they are not there, or do not."""
    try:
        joints = read_numbers(number_dataset(demo, "obs/robot0_joint_pos", (rows, 7)), "obs/robot0_joint_pos", Seen())
        return resolve_alignment(demo, joints, DETECT, Seen())
    except SourceError:
        return None


def read_demo(
    file: h5py.File, name: str, keys: Keys, facts: Mapping[str, Any], reading: Reading | None, checked: bool = True
) -> Episode:
    """Demonstration `name` as a canonical episode. checked: whether it must show the file's alignment.

    Raises SourceError naming file, demonstration, key, what was expected and what came.
    """
    where = f"{Path(file.filename).name}/{name}"
    with hdf5.reporting(where):
        demo = hdf5.group(hdf5.group(file, "data"), name)
        pictures = cameras_of(demo, keys)
        lengths = {int(item.shape[0]) for item in pictures.values()}
        rows = hdf5.integer(demo, "num_samples") or max(lengths)
        if lengths != {rows} or rows < 2:
            raise SourceError(f"num_samples {rows}, pictures of {sorted(lengths)} rows; expected as many, at least 2")
        action = read_numbers(number_dataset(demo, "actions", (rows, keys.spec.action_dim)), "actions", Seen())
        parts = []
        for key, field in zip(keys.state, keys.spec.robot_state, strict=True):
            path = f"obs/{key}"
            parts.append(read_numbers(number_dataset(demo, path, (rows, field.width)), path, Seen()))
        if checked and shown_alignment(demo, rows) not in (None, facts["alignment"]):
            raise SourceError(f"alignment: this demonstration shows otherwise than the file's {facts['alignment']!r}")
        action = action[1:] if facts["alignment"] == AFTER else action
        state = np.concatenate(parts, axis=1).astype(np.float32)
        if reading is not None and keys.fingers is not None:
            fingers = state[:, keys.spec.slice_of(_name(keys, keys.fingers))]
            action = np.concatenate([action[:, :-1], gripper.convert(action[:, -1], reading)[:, None]], axis=1)
            gripper.require_agreement(action[:, -1], fingers)

    def images(camera: str, start: int, stop: int, into: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
        with hdf5.reporting(f"{where}, frames {start} to {stop}"):
            return upright(hdf5.read_rows(pictures[camera], start, stop, None, into), facts["image_convention"])

    sizes = tuple((int(item.shape[1]), int(item.shape[2])) for item in pictures.values())
    return Episode(name, state, action.astype(np.float32), facts["alignment"], sizes, images)


def _first(data: h5py.Group) -> str:
    return min((name for name in data if isinstance(name, str)), key=natural_key)


ROBOMIMIC_SOURCE: Final = RobomimicSource()
