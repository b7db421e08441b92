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

from pipelines.sources import gripper, hdf5, orientation
from pipelines.sources.alignment import BEFORE, DETECT
from pipelines.sources.evidence import UPRIGHT, Told, upside_down
from pipelines.sources.fields import told_fields
from pipelines.sources.fingerprint import FORMAT as FINGERPRINT_FORMAT
from pipelines.sources.fingerprint import Stored, fingerprint_demo
from pipelines.sources.gripper import Grip, Reading
from pipelines.sources.libero_demo import image_key
from pipelines.sources.orientation import Look
from pipelines.sources.robomimic_demo import ATTRIBUTES, parts_of, read_demo
from pipelines.sources.robomimic_header import inspect
from pipelines.sources.robomimic_keys import PICTURE, ends_with_gripper, environment, keys_of, shapes_of
from pipelines.sources.source import Episode, SourceFile, Verdict
from pipelines.sources.texts import near_identical
from stores.errors import SourceError
from stores.spec import LIBERO

LIBERO_OBS: Final = {image_key(camera).removeprefix("obs/").encode() for camera in LIBERO.camera_names}


class RobomimicSource:
    """The format; see the module."""

    name: Final = "robomimic"
    format: Final = 1000 * FINGERPRINT_FORMAT + 2
    suffixes: Final = (".hdf5", ".h5")
    takes_fields: Final = True

    def recognizes(self, path: Path) -> bool:
        """Whether ``/data`` says of which environment it is, and observations have robosuite's names, or names of its
        own. LIBERO's files say the environment, too: one that lacks a camera is still LIBERO's.
        """
        with hdf5.open_hdf5(path) as file, hdf5.reporting(path.name):
            data = hdf5.group(file, "data")
            if hdf5.text(data, "env_args") is None or not len(data):
                return False
            names = {name for shape in shapes_of(data) for name in shape[1]}
            usual = any(name.startswith(b"robot0_") or name.endswith(PICTURE.encode()) for name in names)
            liberos = "problem_info" in data.attrs or not names.isdisjoint(LIBERO_OBS)
            return usual or not liberos

    def inspect(self, path: Path, told: Told, poison: Mapping[int, str], files: int = 1) -> SourceFile:
        """See `pipelines.sources.source.Source`."""
        with hdf5.open_hdf5(path) as file, hdf5.reporting(path.name):
            return inspect(file, path.name, told, poison, files)

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
                facts[name]["keys_from"] = header.evidence["keys_from"]
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
        with hdf5.reporting(hdf5.name_of(file)):
            data, fields = hdf5.group(file, "data"), told_fields(told.fields, told.spec)
            self._keys = keys_of(data, facts["keys_from"], fields, environment(data))[0]

    def episode(self, name: str) -> Episode:
        """See `read_demo`."""
        read = self._facts["gripper"]
        reading = None if read is None else Reading(read["middle"], read["closes"])
        return read_demo(self._file, name, self._keys, self._facts, reading)

    def fingerprint(self, name: str) -> str:
        """See `pipelines.sources.fingerprint`."""
        return fingerprint_demo(self._file, name, self._stored, None, ATTRIBUTES, parts_of(self._keys))


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
    elif header.spec.binary and not ends_with_gripper(header.spec):
        named = ", ".join(header.spec.action_names[column] for column in header.spec.binary)
        if told.gripper == gripper.HIGH_OPENS:
            raise SourceError(
                f"{header.name}: --gripper {told.gripper} is of one gripper whose command is the last number of an "
                f"action, got the binary numbers {named}, which stay as they are; turn them round in the file"
            )
        notes.append(f"{named} taken as -1 opens, +1 closes; nothing shows it")
    read = None if reading is None else {**asdict(reading), "text": reading.text}
    return {"alignment": aligned, "image_convention": convention, "gripper": read}, notes


ROBOMIMIC_SOURCE: Final = RobomimicSource()
