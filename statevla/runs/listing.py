"""Every training run below a folder: what it trains, on what, how far it is, and how it stands."""

import contextlib
import fcntl
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from statevla.runs import layout
from statevla.runs.state import CheckpointState, read_state
from stores.disk.lock import LOCK_NAME
from stores.errors import StateVLAError, UsageError
from stores.printable import plain

DEPTH: Final = ("*", "*/*")
"""Where runs are looked for: right below the folder, then one folder deeper."""
TRAINING: Final = "training"
TAIL: Final = 65536
"""Bytes of the metrics in which their last line is looked for."""


@dataclass(frozen=True)
class RunRow:
    """One system of one run.

    state: ``training`` (a live process holds it), ``finished``, ``stopped`` (can be resumed), ``held on HOST`` (another
    machine left a lock; whether its process lives cannot be seen from here), ``no checkpoint`` (it ended before its
    first one: train anew) or ``damaged``. store: as it was trained. step: of the last checkpoint; of a run that is
    training or has none, the last one that it has logged. best: of validation. bytes: of its checkpoints.
    """

    run: str
    system: str
    store: str | None
    step: int | None
    steps: int | None
    best: float | None
    state: str
    bytes: int

    @property
    def progress(self) -> str:
        """How far it is, for people. How long it was to be is known from its first checkpoint on."""
        if self.step is None:
            return "-"
        return f"{self.step:,}" if self.steps in (None, self.step) else f"{self.step:,} of {self.steps:,}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def list_runs(root: Path = layout.RUNS) -> list[RunRow]:
    """Rows of all runs below `root`, or of the run that it is, by folder; a damaged checkpoint is a row too.

    Raises UsageError where `root` is no folder.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; `statevla train` makes runs below {layout.RUNS}/, or name another")
    if (root / layout.CHECKPOINTS).is_dir():
        return rows_of(root)
    runs = sorted({path.parent for depth in DEPTH for path in root.glob(f"{depth}/{layout.CHECKPOINTS}")})
    return [row for run in runs for row in rows_of(run)]


def rows_of(run: Path) -> list[RunRow]:
    """A row for each system that a run has checkpoints of, or is training, or began to."""
    folders = sorted(path for path in (run / layout.CHECKPOINTS).iterdir() if path.is_dir())
    return [row for folder in folders if (row := _row(run, folder)) is not None]


def _row(run: Path, folder: Path) -> RunRow | None:
    latest = folder / layout.LATEST
    held = holder_of(folder)
    size = _bytes_of(folder)
    if not layout.is_checkpoint(latest):
        begun = layout.starts(run, folder.name).is_file()
        step = _logged_step(run, folder.name) if held == TRAINING or begun else None
        standing = held or "no checkpoint"
        return RunRow(str(run), folder.name, None, step, None, None, standing, size) if held or begun else None
    try:
        state = read_state(latest)
    except StateVLAError:
        return RunRow(str(run), folder.name, None, None, None, None, "damaged", size)
    best = None if state.best is None else float(state.best["val_loss"])
    standing = held if held == TRAINING else "finished" if state.finished else held or "stopped"
    step = max(state.step, _logged_step(run, folder.name) or 0) if held == TRAINING else state.step
    return RunRow(str(run), state.system, _store(state), step, state.total_steps, best, standing, size)


def _bytes_of(folder: Path) -> int:
    """Of all files in it. What a training that goes on takes away meanwhile counts as nothing."""
    size = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += Path(where, name).stat().st_size
    return size


def _logged_step(run: Path, folder: str) -> int | None:
    """The last step in the metrics, which is ahead of the last checkpoint; None where there is none to read."""
    try:
        with layout.metrics(run, folder).open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - TAIL, 0))
            lines = file.read().splitlines()
        return int(json.loads(lines[-1])["step"])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _store(state: CheckpointState) -> str | None:
    found = state.config["data"]["store"]
    return None if found is None else str(found)


def holder_of(folder: Path) -> str:
    """Who holds the lock of `folder`: ``training``, ``held on HOST``, or empty for nobody.

    The kernel frees a lock when its holder dies, so a file that a killed process left is no holder, whoever has its
    number now. Between machines the kernels may not tell each other: another's file counts as held.
    """
    path = folder / LOCK_NAME
    try:
        who = json.loads(path.read_bytes())
        pid, host = int(who["pid"]), str(who["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    here = host == socket.gethostname()
    if here and not _lives(pid):
        return ""
    if _is_locked(path):
        return TRAINING
    return "" if here else f"held on {plain(host)}"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True  # as another user's
    except (OSError, OverflowError):
        return False
    return True


def _is_locked(path: Path) -> bool:
    """Asked only where a file names a holder: for the moment of asking, nobody else could take the lock."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
