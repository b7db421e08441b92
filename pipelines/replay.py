"""Demonstrations as the simulator replays them: the state before the first action, and the actions.

Two sources of actions. An HDF5 file's own, all of them, prove that the simulator here is the one that recorded them.
A store's, which passed through ingest, prove in addition that the store's alignment of observations and actions is
right: an episode of an "after" file starts at its second action, hence at its second state.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.collect.writer import EXECUTED
from pipelines.sources import hdf5
from statevla.policies.controls import ReplayDemo, ReplayDemos
from statevla.sims.suites import find_suite
from stores.errors import SourceError, UsageError
from stores.reader import Store

DEMO_SUFFIX = "_demo.hdf5"


def replay_of_files(
    source: Path, suite: str, tasks: Sequence[int] | str | None = None, limit: int | None = None
) -> ReplayDemos:
    """Demonstrations of ``<source>/<task>_demo.hdf5`` with the files' own actions; ``limit`` for each task.

    Where noise was added to what an expert wanted, what was executed is replayed.

    Raises:
        UsageError: no file of any of the tasks.
        SourceError: a file cannot be read.
    """
    found: dict[str, tuple[ReplayDemo, ...]] = {}
    for task in find_suite(suite).tasks(tasks):
        path = source / f"{task.name}{DEMO_SUFFIX}"
        if not path.is_file():
            continue
        with hdf5.open_hdf5(path) as file:
            names = sorted(hdf5.group(file, "data"), key=_number)[:limit]
            demos = []
            for name in names:
                states = hdf5.read_rows(hdf5.dataset(file, f"data/{name}/states", "float", (None, None), _BYTES))
                executed = EXECUTED if f"data/{name}/{EXECUTED}" in file else "actions"
                actions = hdf5.read_rows(hdf5.dataset(file, f"data/{name}/{executed}", "float", (None, 7), _BYTES))
                demos.append(ReplayDemo(f"{path.name}/{name}", states[0], actions.astype(np.float64)))
        found[task.name] = tuple(demos)
    if not found:
        raise UsageError(f"{source}: no {suite} demonstrations (<task>{DEMO_SUFFIX}) of the tasks asked for")
    return ReplayDemos(found)


def replay_of_store(
    store: Store, source: Path, suite: str, tasks: Sequence[int] | str | None = None, limit: int | None = None
) -> ReplayDemos:
    """Episodes of a store with the *store's* actions; their states come from the source files it was ingested from.

    Demonstrations that were collected with noise are left out: a store has what the expert wanted, not what was done.

    Raises:
        UsageError: no episode of any of the tasks, or a source file is not in ``source``.
        SourceError: a source file cannot be read or does not match the store.
    """
    columns, frames = store.episode_columns, store.frames
    found: dict[str, tuple[ReplayDemo, ...]] = {}
    for task in find_suite(suite).tasks(tasks):
        demos = []
        for row in np.flatnonzero(columns["task"] == task.name)[:limit]:
            first, steps = int(columns["first_frame"][row]), int(columns["steps"][row])
            offset = 1 if columns["alignment"][row] == "after" else 0
            demo, path = str(columns["demo"][row]), source / str(columns["source"][row])
            if not path.is_file():
                raise UsageError(f"{path}: the store's source is not there; replay needs its simulator states")
            with hdf5.open_hdf5(path) as file:
                if f"data/{demo}/{EXECUTED}" in file:
                    continue
                states = hdf5.read_rows(hdf5.dataset(file, f"data/{demo}/states", "float", (None, None), _BYTES))
            if len(states) != steps + offset:
                raise SourceError(
                    f"{path.name}/{demo}: {len(states)} states, the store's episode needs {steps + offset}; "
                    "the store was made from another file"
                )
            actions = frames["action"][first : first + steps].astype(np.float64)
            demos.append(ReplayDemo(f"{store.root}: {columns['id'][row]}", states[offset], actions))
        if demos:
            found[task.name] = tuple(demos)
    if not found:
        raise UsageError(f"{store.root}: no episodes of the {suite} tasks asked for")
    return ReplayDemos(found)


_BYTES = 64 * 2**20
"""Most that one demonstration's states or actions may take."""


def _number(name: str) -> tuple[int, str]:
    digits = "".join(c for c in name if c.isdigit())
    return (int(digits) if digits else 0, name)
