"""LIBERO's suites, tasks, instructions and benchmark initial states, read from the package's files.

Neither the simulator nor torch is imported: the task lists are Python literals, the instructions are in BDDL text and
the initial states are arrays in a zip, which are read without running the pickle that wraps them.

Legend: I initial states of a task, S numbers of a simulator state (time, qpos, qvel).
"""

import ast
import difflib
import pickletools
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from operator import attrgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from statevla.sims.libero import paths, pro
from statevla.sims.libero.errors import SimulatorMissing, UnknownTask

MAX_STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
"""Suite -> steps that a policy gets after settling; the convention of published LIBERO evaluations."""

SETTLE_STEPS = 10
"""Steps without motion after an initial state is set: objects come to rest, the gripper opens."""

SETTLE_ACTION = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)


@dataclass(frozen=True)
class Task:
    """One task of a suite."""

    suite: str
    index: int
    name: str
    """Stem of its BDDL file; a demonstration file is ``<name>_demo.hdf5``."""
    instruction: str
    """Text of the BDDL's ``:language``, lower case: what demonstration files have as ``language_instruction``."""
    bddl: Path
    init_file: Path

    @property
    def language(self) -> str:
        """The benchmark's ``task.language``, words of the file's name: the instruction in other formats of the data."""
        return re.sub(r"^[A-Z_]+_SCENE\d+_", "", self.name).replace("_", " ").lower()


BASES = tuple(MAX_STEPS)
"""LIBERO's own suites, in the order of their paper's tables."""


def suite_names() -> tuple[str, ...]:
    """LIBERO's suites, then those of LIBERO-PRO that are on this machine."""
    return (*BASES, *pro.suite_names(BASES))


def base_of(suite: str) -> str:
    """The suite of LIBERO that a suite is, or is a variant of: ``libero_10_swap`` -> ``libero_10``."""
    found = pro.split(suite, BASES)
    return found[0] if found else suite


def max_steps(suite: str) -> int:
    """Steps that a policy gets after settling; a variant has those of its base."""
    return MAX_STEPS[base_of(suite)]


def check_suite(suite: str) -> str:
    """The suite's name.

    Raises:
        UnknownTask: no such suite; names the nearest.
    """
    if suite in BASES or suite in pro.suite_names(BASES):
        return suite
    if pro.split(suite, BASES) is not None and pro.folder() is None:
        raise UnknownTask(f"{suite} is a suite of LIBERO-PRO, which is not on this machine. Run: {pro.INSTALL}")
    names = suite_names()
    near = difflib.get_close_matches(suite, names, 1, 0.3)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    variants = f"; of LIBERO-PRO {', '.join(names[len(BASES) :])}" if len(names) > len(BASES) else ""
    raise UnknownTask(f"no LIBERO suite {suite!r}.{hint} Suites: {', '.join(BASES)}{variants}")


@cache
def tasks(suite: str) -> tuple[Task, ...]:
    """All tasks of a suite in the benchmark's default order.

    Raises:
        UnknownTask: no such suite.
        SimulatorMissing: the package is not installed, or a file of it is not there.
    """
    check_suite(suite)
    root = paths.package_root()
    if suite not in BASES:
        return _variant_tasks(suite, root)
    return tuple(
        _task(suite, index, name, root, f"{name}.pruned_init") for index, name in enumerate(_names_of(suite, root))
    )


def _variant_tasks(suite: str, root: Path) -> tuple[Task, ...]:
    """Tasks of a LIBERO-PRO suite in the order of the base's, so that a number means the same task in both: those of
    the same name, of the same instruction, or of the same name but for the scene; what else there is comes last, by
    name."""
    place = pro.folder()
    if place is None:
        raise SimulatorMissing(f"LIBERO-PRO is not on this machine. Run: {pro.INSTALL}")
    present = sorted(file.stem for file in (place / "bddl_files" / suite).glob("*.bddl"))
    base = tasks(base_of(suite))
    found = [_task(suite, 0, name, place, f"{name}.pruned_init.npz", pro.INSTALL) for name in present]
    found.sort(key=lambda task: (_place_in(base, task), task.name))
    return tuple(replace(task, index=index) for index, task in enumerate(found))


def _place_in(base: Sequence[Task], variant: Task) -> int:
    """Number of the task that one is a variant of; past the last where it is of none."""
    ways = (attrgetter("name"), attrgetter("instruction"), attrgetter("language"))
    return next((t.index for way in ways for t in base if way(t) == way(variant)), len(base))


def _task(suite: str, index: int, name: str, root: Path, init_file: str, install: str = paths.INSTALL) -> Task:
    bddl = root / "bddl_files" / suite / f"{name}.bddl"
    return Task(suite, index, name, read_instruction(bddl, install), bddl, root / "init_files" / suite / init_file)


def _names_of(suite: str, root: Path) -> list[str]:
    return _task_names(root / "benchmark" / "libero_suite_task_map.py")[suite]


def parse_indices(text: str) -> list[int]:
    """``"0-2,5"`` -> ``[0, 1, 2, 5]``.

    Raises:
        UnknownTask: the text is something else.
    """
    found: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if ends is None or int(ends[2] or ends[1]) < int(ends[1]):
            raise UnknownTask(f"tasks: expected numbers and ranges such as 0-2,5; got {text!r}")
        found += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    return found


def select(suite: str, chosen: Sequence[int] | str | None) -> list[Task]:
    """Tasks of a suite by index or as ``"0-2,5"``, all for None, in the order given, each once.

    Raises:
        UnknownTask: an index outside the suite, one named twice, or none.
    """
    every = tasks(suite)
    if chosen is None:
        return list(every)
    indices = parse_indices(chosen) if isinstance(chosen, str) else list(chosen)
    wrong = [i for i in indices if not 0 <= i < len(every)]
    if wrong or not indices or len(set(indices)) != len(indices):
        raise UnknownTask(f"{suite} has tasks 0-{len(every) - 1}, each to be named once; got {indices}")
    return [every[i] for i in indices]


def read_instruction(bddl: Path, install: str = paths.INSTALL) -> str:
    """The instruction of a BDDL file, as the simulator reads it: words in lower case, single spaces.

    install: the command that brings the package of which the file is.

    Raises:
        SimulatorMissing: the file is not there, or says none.
    """
    try:
        text = bddl.read_text()
    except FileNotFoundError as error:
        raise SimulatorMissing(f"{bddl} is not there; its package is damaged. Run: {install}") from error
    found = re.search(r"\(:language\s+([^)]*)\)", text)
    if found is None:
        raise SimulatorMissing(f"{bddl} has no (:language ...) entry; its package is damaged. Run: {install}")
    return " ".join(found.group(1).lower().split())


def fixtures(task: Task) -> tuple[str, ...]:
    """What stands in a task's scene beside what can be moved: cabinets, stoves, racks; neither table nor floor is one.

    Raises:
        SimulatorMissing: the BDDL file is not there.
    """
    try:
        found = re.search(r"\(:fixtures\s+([^)]*)\)", task.bddl.read_text())
    except FileNotFoundError as error:
        raise SimulatorMissing(f"{task.bddl} is not there. Run: {paths.INSTALL}") from error
    # `name name - kind`, as PDDL types things; a kind is no name
    names = re.sub(r"-\s+\S+", " ", found.group(1)).split() if found else []
    return tuple(name for name in names if not is_ground(name))


def is_ground(name: str) -> bool:
    """Whether a fixture's name is of what all else stands on."""
    return "table" in name or name == "floor"


def init_states(task: Task) -> NDArray[np.float64]:
    """The benchmark's initial states of a task, ``[I, S]`` float64."""
    return (pro.read_init_states if task.init_file.suffix == ".npz" else read_init_states)(task.init_file)


def read_init_states(file: Path) -> NDArray[np.float64]:
    """An array that ``torch.save`` wrote, without unpickling it: no code runs from a file.

    The pickle in the zip is disassembled; it must consist of what one little-endian float64 array in C order needs
    (shape, dtype, bytes written as latin-1 text) and nothing else.

    Raises:
        SimulatorMissing: the file is not there or holds something else.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            (name,) = [n for n in archive.namelist() if n.endswith("/data.pkl")]
            return _array_of_pickle(archive.read(name))
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise SimulatorMissing(f"{file}: no LIBERO initial states in it ({error}). Run: {paths.INSTALL}") from error


def _array_of_pickle(content: bytes) -> NDArray[np.float64]:
    shape: list[int] = []
    texts: list[str] = []
    names: list[str] = []
    counting = False
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "GLOBAL":
            names.append(str(argument))
        elif opcode.name == "MARK" and not shape:
            counting = True
            numbers: list[int] = []
        elif opcode.name in ("BININT1", "BININT2", "BININT") and counting:
            numbers.append(int(argument or 0))
        elif opcode.name in ("TUPLE2", "TUPLE1") and counting:
            shape, counting = numbers[1:], False  # the first number is the pickle's version of the array state
        elif opcode.name == "BINUNICODE":
            texts.append(str(argument))
    allowed = {"numpy.core.multiarray _reconstruct", "numpy ndarray", "_codecs encode", "numpy dtype"}
    if set(names) != allowed or "f8" not in texts or "<" not in texts or len(shape) != 2:
        raise ValueError(f"expected one float64 matrix, found {sorted(set(names))}, shape {shape}")
    data = max(texts, key=len).encode("latin-1")
    if len(data) != 8 * shape[0] * shape[1]:
        raise ValueError(f"expected {shape[0]} x {shape[1]} float64, found {len(data)} bytes")
    return np.frombuffer(data, dtype="<f8").reshape(shape).astype(np.float64)


def _task_names(file: Path) -> dict[str, list[str]]:
    """The literal dictionary ``libero_task_map`` of the package's source file."""
    try:
        tree = ast.parse(file.read_text())
    except FileNotFoundError as error:
        raise SimulatorMissing(f"{file} is not there; the LIBERO package is damaged. Run: {paths.INSTALL}") from error
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["libero_task_map"]:
            found: dict[str, list[str]] = ast.literal_eval(node.value)
            return found
    raise SimulatorMissing(f"{file} defines no libero_task_map; install hf-libero=={paths.PACKAGES['hf-libero']}")
