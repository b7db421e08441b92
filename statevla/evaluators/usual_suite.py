"""In which suite a policy is tried when nobody says: the one whose tasks it was trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from statevla.runs.state import read_state
from statevla.sims.libero.errors import SimulatorMissing
from statevla.sims.libero.suites import BASES
from statevla.sims.libero.suites import Task as LiberoTask
from statevla.sims.suites import SUITES
from statevla.sims.world import Task
from statevla.systems.find import find_policy
from stores.errors import UsageError

LIBERO: Final = tuple(BASES)
ALL: Final = tuple(SUITES)
ELSE: Final = "libero_object"
"""For controls, and for a policy that knows no suite's tasks, or none's that is on this machine."""


def usual_suite(kind: str, checkpoint: Path | None, among: Sequence[str] = LIBERO) -> str:
    """The suite of which a checkpoint was trained on the most tasks.

    kind: of policy, as `choose_policy`. checkpoint: as there. among: names to choose from.

    Raises UsageError where it was trained on as many tasks of two, and what finding a checkpoint raises.
    """
    if kind != "checkpoint":
        return ELSE
    path = find_policy(checkpoint)
    known = set(read_state(path).instructions)
    counts = {name: sum(not known.isdisjoint(_words(task)) for task in _tasks(name)) for name in among}
    most = max(counts.values())
    found = [name for name, count in counts.items() if count == most > 0]
    if len(found) > 1:
        raise UsageError(
            f"{path} was trained on {most} tasks of each of {', '.join(found)}; say one of them with --suite"
        )
    return found[0] if found else ELSE


def _tasks(name: str) -> Sequence[Task]:
    try:
        return SUITES[name].tasks(None)
    except SimulatorMissing:
        return ()


def _words(task: Task) -> set[str]:
    return {task.instruction, task.language} if isinstance(task, LiberoTask) else {task.instruction}
