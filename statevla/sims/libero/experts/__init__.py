"""Scripted experts: a file a suite, a program a task. See ``program.py`` for what a program is.

program.py    waypoints, and the expert that follows them
grasps.py     where to put the fingers (pure NumPy)
skills.py     pick, place
fixtures.py   drawers, knobs, doors
libero_*.py   the programs of a suite's tasks, in the benchmark's order
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from statevla.sims.libero import pro
from statevla.sims.libero.experts import libero_10, libero_90, libero_goal, libero_object, libero_spatial
from statevla.sims.libero.experts.program import DONE, Expert, Follower, Pose, Program
from statevla.sims.libero.scene import Scene
from stores.errors import UsageError

EXPERTS: Final[Mapping[str, Sequence[Program | None]]] = {
    "libero_spatial": libero_spatial.PROGRAMS,
    "libero_object": libero_object.PROGRAMS,
    "libero_goal": libero_goal.PROGRAMS,
    "libero_10": libero_10.PROGRAMS,
    "libero_90": libero_90.PROGRAMS,
}
"""Suite -> the program of each task; None where there is none yet."""

__all__ = ["DONE", "EXPERTS", "Expert", "Follower", "Program", "check_expert", "make_expert", "program_of"]


SAME_GOAL: Final = ("swap", "lan", "temp_")
"""Kinds of LIBERO-PRO whose tasks an expert does like the originals: it looks where things are, and reads no words."""


def programs_of(suite: str) -> Sequence[Program | None] | None:
    """The programs of a suite's tasks; None for a suite without."""
    variant = pro.split(suite, tuple(EXPERTS))
    if variant is not None and variant[1].startswith(SAME_GOAL):
        return EXPERTS[variant[0]]
    return EXPERTS.get(suite)


def program_of(suite: str, task: int) -> Program | None:
    """The program of a task, None without one."""
    programs = programs_of(suite) or ()
    return programs[task] if task < len(programs) else None


def check_expert(suite: str, tasks: Sequence[int]) -> None:
    """Raises UsageError when the suite, or one of these of its tasks, has no expert."""
    programs = programs_of(suite)
    if programs is None:
        raise UsageError(f"{suite} has no scripted expert; there is one for {', '.join(EXPERTS)}")
    missing = [task for task in tasks if program_of(suite, task) is None]
    if missing:
        there = [task for task in range(len(programs)) if program_of(suite, task) is not None]
        raise UsageError(f"{suite}: no scripted expert for task {missing}; there is one for tasks {there}")


def make_expert(suite: str, task: int, scene: Scene, pose: Pose, rng: np.random.Generator) -> Expert:
    """The expert of a task, at the start of an episode, after things have settled. Everything random is from ``rng``.

    Raises:
        UsageError: the task has none.
    """
    program = program_of(suite, task)
    if program is None:
        check_expert(suite, [task])
        raise UsageError(f"{suite}: task {task} has no scripted expert")
    return Follower(scene, pose, program, rng)
