"""Every training run below a folder: what it trains, on what, how far it is, and how it stands."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from statevla.runs import layout
from statevla.runs.files import CheckpointState, read_state
from stores.disk.lock import LOCK_NAME
from stores.errors import StateVLAError

DEPTH: Final = ("*", "*/*")
"""Where runs are looked for: right below the folder, then one folder deeper."""


@dataclass(frozen=True)
class RunRow:
    """One system of one run.

    state: ``training`` (a live process holds it), ``finished``, ``stopped`` (can be resumed) or ``damaged``. store: as
    it was trained. best: of validation. bytes: of its checkpoints.
    """

    run: str
    system: str
    store: str | None
    step: int | None
    steps: int | None
    best: float | None
    state: str
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def list_runs(root: Path = layout.RUNS) -> list[RunRow]:
    """Rows of all runs below `root`, by folder; a damaged checkpoint is a row too."""
    runs = sorted({path.parent for depth in DEPTH for path in root.glob(f"{depth}/{layout.CHECKPOINTS}")})
    return [row for run in runs for row in rows_of(run)]


def rows_of(run: Path) -> list[RunRow]:
    """A row for each system that a run has checkpoints of, or is training."""
    folders = sorted(path for path in (run / layout.CHECKPOINTS).iterdir() if path.is_dir())
    return [row for folder in folders if (row := _row(run, folder)) is not None]


def _row(run: Path, folder: Path) -> RunRow | None:
    latest = folder / layout.LATEST
    living = is_held(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if not layout.is_checkpoint(latest):
        return RunRow(str(run), folder.name, None, None, None, None, "training", size) if living else None
    try:
        state = read_state(latest)
    except StateVLAError:
        return RunRow(str(run), folder.name, None, None, None, None, "damaged", size)
    best = None if state.best is None else float(state.best["val_loss"])
    standing = "training" if living else "finished" if state.finished else "stopped"
    return RunRow(str(run), state.system, _store(state), state.step, state.total_steps, best, standing, size)


def _store(state: CheckpointState) -> str | None:
    found = state.config["data"]["store"]
    return None if found is None else str(found)


def is_held(folder: Path) -> bool:
    """Whether a process of this machine that still lives holds the lock of `folder`."""
    try:
        pid = int(json.loads((folder / LOCK_NAME).read_bytes())["pid"])
        os.kill(pid, 0)
    except PermissionError:
        return True  # it lives, as another user's
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True
