"""Demonstrations as the simulator replays them: the state before the first action, and the actions.

An HDF5 file's own actions, all of them, prove that the simulator here is the one that recorded them.
"""

from collections.abc import Sequence
from pathlib import Path

from pipelines.sources.reading import read_replay
from pipelines.sources.sandbox import end_thread_reader
from statevla.policies.controls import ReplayDemo, ReplayDemos
from statevla.sims.suites import find_suite
from stores.errors import UsageError

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
    try:
        for task in find_suite(suite).tasks(tasks):
            path = source / f"{task.name}{DEMO_SUFFIX}"
            if path.is_file():
                rows = read_replay(path, limit)
                found[task.name] = tuple(ReplayDemo(f"{path.name}/{name}", state, acts) for name, state, acts in rows)
    finally:
        end_thread_reader()
    if not found:
        raise UsageError(f"{source}: no {suite} demonstrations (<task>{DEMO_SUFFIX}) of the tasks asked for")
    return ReplayDemos(found)
