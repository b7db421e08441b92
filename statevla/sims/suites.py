"""The table of suites: worlds to act in, with their tasks, initial states, experts and limits.

Another suite is another row: an object of `Suite`, in a file of its own below ``statevla/sims/``.
"""

import difflib
from collections.abc import Sequence
from typing import Final, Protocol, runtime_checkable

from statevla.sims.libero import pro, suites
from statevla.sims.libero.row import LiberoSuite
from statevla.sims.tabletop.suite import TabletopSuite
from statevla.sims.world import Task, World
from stores.errors import UsageError


@runtime_checkable
class Suite(Protocol):
    """One row.

    max_steps: a policy's, after settling. settle_steps: without motion, before a policy is asked. image_size: pictures'
    side for controls, which see none; a policy gets its own.
    """

    @property
    def name(self) -> str: ...

    @property
    def max_steps(self) -> int: ...

    @property
    def settle_steps(self) -> int: ...

    @property
    def image_size(self) -> int: ...

    def prepare(self) -> dict[str, str]:
        """Check that it can run here; versions of what simulates. Raises a StateVLAError that says what to do."""
        ...

    def tasks(self, chosen: Sequence[int] | str | None) -> Sequence[Task]:
        """Tasks by index or as ``"0-2,5"``, all for None. Raises UsageError for one that is not there."""
        ...

    def number(self, task: Task, repetition: int) -> int:
        """The initial state of a task's trial number `repetition`, from 0."""
        ...

    def available(self, task: Task) -> int | None:
        """How many numbered initial states a task has; None: endless."""
        ...

    def state_hashes(self, task: Task) -> Sequence[str]:
        """Of its numbered initial states, in order (`stores.init_states.init_state_hash`); empty where endless."""
        ...

    def check_expert(self, tasks: Sequence[Task]) -> None:
        """Raises UsageError for a task that has no scripted expert."""
        ...

    def open(self, task: Task, image_size: int, threads: int) -> World:
        """A world of a task. threads: for drawing."""
        ...

    def ready(self, worlds: Sequence[World], timeout: float | None) -> Sequence[World]:
        """Those whose answer is there; waits up to `timeout` seconds for one (None: as long as it takes)."""
        ...


SUITES: Final[dict[str, Suite]] = {
    "tabletop": TabletopSuite(),
    **{name: LiberoSuite(name) for name in suites.BASES},
}


def has_suite(name: str) -> bool:
    """Whether `find_suite` knows the name."""
    return name in SUITES or pro.split(name, suites.BASES) is not None


def find_suite(name: str) -> Suite:
    """The row of that name. LIBERO-PRO's suites, where they are on this machine, act as LIBERO's do.

    Raises UsageError that names the nearest.
    """
    if name not in SUITES and pro.split(name, suites.BASES) is not None:
        return LiberoSuite(suites.check_suite(name))
    if not has_suite(name):
        near = difflib.get_close_matches(name, SUITES, 1, 0.3)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"no suite {name!r}.{hint} Suites: {', '.join(SUITES)}")
    return SUITES[name]
