"""What a file in LIBERO's layout (`pipelines.sources.libero`) says of itself, before its demonstrations are read."""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from pipelines.ingest.plan import DEMO_LIMIT, natural_key, require_fitting, task_of
from pipelines.sources import hdf5, pulse
from pipelines.sources.alignment import DETECT
from pipelines.sources.evidence import Evidence, Told, grips_of, look, looks_of, sample
from pipelines.sources.fingerprint import Seen
from pipelines.sources.gripper import Grip, see
from pipelines.sources.libero_demo import GRIPPER, image_dataset, image_datasets, read_hand, read_numbers_of
from pipelines.sources.masks import Split, demo_names, split_of
from pipelines.sources.orientation import Look
from pipelines.sources.ranges import astray
from pipelines.sources.source import EpisodeHead, SourceFile
from pipelines.sources.texts import clean_instruction
from statevla.observation import IMAGE_CONVENTIONS
from stores.errors import SourceError, SourceTrouble
from stores.spec import LIBERO

HAND: Final = "obs/ee_pos"
MASK_LIMIT: Final = 2**20
"""Bytes of a list of demonstrations' names."""


def inspect_file(
    path: Path, poison: Mapping[int, str] | None = None, told: Told | None = None, files: int = 1
) -> SourceFile:
    """Header of `path`, and what some demonstrations show. Raises SourceError when the file as a whole is of no use.

    poison: reasons by position (from 1) of demonstrations that must not be touched, see `pipelines.sources.sandbox`.
    files: of the source, see `pipelines.sources.source.Source.inspect`.
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
            except SourceError as error:
                refused.append((name, str(error)))
        refused += drop_astray(file, heads)
        places = {name: at for at, name in enumerate(names, 1)}
        seen, looks, unreadable = gather(file, heads, places, told, files if convention else 1)
        for name, _ in unreadable:
            del heads[name]
        refused += unreadable
        parts = {demo: split.parts[demo] for demo in heads if demo in split.parts}
        evidence = Evidence(own, convention, seen, looks).to_dict()
        return SourceFile(path.name, LIBERO, heads, evidence, parts, tuple(refused), notes)


def drop_astray(file: h5py.File, heads: dict[str, EpisodeHead]) -> list[tuple[str, str]]:
    """Take demonstrations whose addresses are damaged out of `heads`; returns them with the reason. Raises SourceError
    where those of a mask are: nobody knows whose names it has.
    """
    pulse.at(0)
    path = Path(file.filename)
    found = astray(file, path.stat().st_size)
    reason = "something of it lies where other data of the file do, or outside the file"
    for mask in sorted(found.get("mask", ())):
        raise SourceError(f"/mask/{mask}: {reason}")
    gone = sorted(found.get("data", set()) & heads.keys(), key=natural_key)
    for name in gone:
        del heads[name]
    return [(name, f"{path.name}/{name}: {reason}") for name in gone]


def require_header(file: h5py.File, instruction: str, convention: str | None) -> None:
    """Raise SourceTrouble unless the open file says what its header said when the ingest was planned."""
    name = hdf5.name_of(file)
    with hdf5.reporting(name):
        data = hdf5.group(file, "data")
        found = read_instruction(data, name)[0], hdf5.text(data, "macros_image_convention")
    if found != (instruction, convention):
        raise SourceTrouble(
            f"{name}: was replaced while it was read: the plan was made for {(instruction, convention)}, the file now "
            f"says {found}; run the same command again"
        )


def gather(
    file: h5py.File, heads: Mapping[str, EpisodeHead], positions: Mapping[str, int], told: Told, files: int
) -> tuple[tuple[Grip, ...], tuple[Look, ...], list[tuple[str, str]]]:
    """What sampled demonstrations show of gripper and pictures, and those (name, reason) that are refused for what
    nobody reads but to be shown something. Another that cannot be read shows nothing: reading it says why.

    positions: of the demonstrations in the file, for `pulse`. files: that show of the pictures what this one does.
    """

    where = hdf5.name_of(file)

    def grip(name: str) -> Grip | None:
        pulse.at(positions[name])
        with contextlib.suppress(SourceError), hdf5.reporting(f"{where}/{name}"):
            numbers = read_numbers_of(hdf5.group(file, f"data/{name}"), heads[name].rows, told.alignment, Seen())
            return see(numbers.action[:, GRIPPER], numbers.fingers)
        return None

    looks: list[Look] = []
    refused: list[tuple[str, str]] = []
    for name in sample(tuple(heads), looks_of(files)):
        pulse.at(positions[name])
        try:
            with hdf5.reporting(f"{where}/{name}"):
                demo = hdf5.group(file, f"data/{name}")
                hand = read_hand(demo, HAND, heads[name].rows)  # regenerated files may lack it
        except SourceError as error:
            refused.append((name, str(error)))
            continue
        with contextlib.suppress(SourceError), hdf5.reporting(f"{where}/{name}"):
            looks.append(_look(demo, heads[name].rows, hand))
    sound = [name for name in heads if name not in dict(refused)]
    return grips_of(sound, grip), tuple(looks), refused


def _look(demo: h5py.Group, rows: int, hand: NDArray[Any] | None) -> Look:
    images = image_dataset(demo, LIBERO.camera_names[0])
    buffer = np.empty((1, *images.shape[1:]), np.uint8)

    def read(row: int) -> NDArray[np.uint8]:
        pulse.beat()
        hdf5.read_rows(images, row, row + 1, into=buffer)
        frame: NDArray[np.uint8] = buffer[0]
        return frame

    return look(read, rows, hand)


def read_masks(file: h5py.File, demos: Sequence[str], told: str, where: str) -> tuple[Split, tuple[str, ...]]:
    """The split of ``/mask``, and notes about what else lies beside ``/data``. Raises UsageError, SourceError."""
    others = sorted(str(name) for name in file if name not in ("data", "mask"))
    notes = (f"{where}: {', '.join('/' + name for name in others)} beside /data is not used",) if others else ()
    if not file.id.links.exists(b"mask"):  # `in` takes what cannot be opened for absent
        return Split(), notes
    found: dict[str, list[str]] = {}
    group = hdf5.group(file, "mask")
    for name in hdf5.names_of(group, "/mask"):
        listed = hdf5.child(group, name)
        if not isinstance(listed, hdf5.Rows) or len(listed.shape) != 1 or listed.nbytes > MASK_LIMIT:
            raise SourceError(f"/mask/{name}: expected a list of demonstrations' names")
        hdf5.require_written(listed, f"mask/{name}")
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
    if isinstance(given, str) and given.strip() == instruction:
        return instruction, True, ()
    return instruction, True, (f"{file}: instruction {given!r:.200} is read as {instruction!r}",)
