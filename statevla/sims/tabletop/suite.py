"""The tabletop's row in the table of suites: worlds in this process.

Legend: S numbers of a simulator state.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from statevla.sims.libero.errors import SimulatorFailed
from statevla.sims.libero.suites import parse_indices
from statevla.sims.tabletop.environment import TASKS, Obs, TabletopEnv, task_name
from statevla.sims.tabletop.expert import TabletopExpert
from statevla.sims.world import Seen, Start, Task, World
from stores.errors import UsageError
from stores.spec import LIBERO

EVALUATION_SEEDS: Final = 2**63
"""Layout seeds of evaluations start here; demonstrations are collected from seeds below."""
SEEDS_A_RUN: Final = 2**20


@dataclass(frozen=True)
class TabletopTask:
    """One of the four instructions."""

    index: int
    suite: str = "tabletop"

    @property
    def name(self) -> str:
        return task_name(self.index)

    @property
    def instruction(self) -> str:
        return TASKS[self.index]


@dataclass(frozen=True)
class TabletopSuite:
    """The row. make_env: a world of pictures of that side."""

    make_env: Callable[[int], TabletopEnv] = TabletopEnv
    name: str = "tabletop"
    max_steps: int = TabletopEnv.max_steps
    settle_steps: int = 0
    image_size: int = 64

    def prepare(self) -> dict[str, str]:
        """It needs NumPy alone."""
        return {"numpy": np.__version__}

    def tasks(self, chosen: Sequence[int] | str | None) -> list[TabletopTask]:
        indices = range(len(TASKS)) if chosen is None else parse_indices(chosen) if isinstance(chosen, str) else chosen
        if not indices or not set(indices) <= set(range(len(TASKS))) or len(set(indices)) != len(indices):
            raise UsageError(f"tabletop has tasks 0-{len(TASKS) - 1}, each to be named once; got {list(indices)}")
        return [TabletopTask(index) for index in indices]

    def number(self, task: Task, repetition: int) -> int:
        """Every trial has a layout of its own."""
        return repetition * len(TASKS) + task.index

    def available(self, task: Task) -> None:
        return None

    def state_hashes(self, task: Task) -> tuple[str, ...]:
        """None are needed: no demonstration has an evaluation's layout."""
        return ()

    def check_expert(self, tasks: Sequence[Task]) -> None:
        """Every task has one."""

    def open(self, task: Task, image_size: int, threads: int) -> "TabletopWorld":
        return TabletopWorld(TabletopTask(task.index), self.make_env(image_size))

    def ready(self, worlds: Sequence[World], timeout: float | None) -> Sequence[World]:
        return worlds


@dataclass
class TabletopWorld:
    """An environment that is asked as a `World`; it works when `receive` is called."""

    task: TabletopTask
    env: TabletopEnv
    starting: bool = False
    _work: Callable[[], Seen] | None = None
    _start: Start = field(default_factory=lambda: Start(0))
    _steps: int = 0

    def come_up(self) -> None:
        """It always is."""

    def begin(self, start: Start) -> None:
        self._start, self._work = start, self._begin

    def run(self, actions: NDArray[np.float64], *, look: bool, film: int) -> None:
        self._work = lambda: self._run(iter(actions), film)

    def run_expert(self, steps: int, *, look: bool, film: int) -> None:
        self._work = lambda: self._run(self._expert(steps), film)

    def receive(self) -> Seen:
        if self._work is None:
            raise SimulatorFailed(f"tabletop, {self.task.name}: nothing was asked")
        with _its_errors(self.task.name):
            return self._work()

    def close(self) -> None:
        """Nothing is held."""

    kill = close

    def _begin(self) -> Seen:
        start, self._steps = self._start, 0
        frame = self.env.reset(task=self.task.index, seed=evaluation_seed(start.seed, start.number))
        if start.state is not None:
            frame = self.env.set_state(start.state)
        return Seen(frame, np.zeros((0, LIBERO.action_dim)))

    def _expert(self, steps: int) -> Iterator[NDArray[np.float64]]:
        again = (self._start.attempt,) if self._start.attempt else ()
        for _ in range(steps):
            rng = np.random.default_rng([self._start.seed, self._start.number, self.env.steps, *again])
            yield TabletopExpert(self.env, rng).act({})

    def _run(self, actions: Iterator[NDArray[np.float64]], film: int) -> Seen:
        done: list[NDArray[np.float64]] = []
        shown: list[Obs] = []
        frame, success = None, None
        for action in actions:
            frame, _, succeeded, _ = self.env.step(action)
            done.append(np.asarray(action, np.float64))
            self._steps += 1
            if film and self._steps % film == 0:
                shown.append(frame)
            if succeeded:
                success = len(done) - 1
                break
        return Seen(self.env.observe() if frame is None else frame, np.array(done).reshape(-1, 7), success, shown)


def evaluation_seed(seed: int, number: int) -> int:
    """The layout seed of an evaluation's trial; no demonstration is collected from it."""
    if not (0 <= seed < SEEDS_A_RUN and 0 <= number < SEEDS_A_RUN):
        raise UsageError(f"tabletop: expected a seed and trials from 0 to {SEEDS_A_RUN - 1}, got {seed} and {number}")
    return EVALUATION_SEEDS + seed * SEEDS_A_RUN + number


@contextmanager
def _its_errors(task: str) -> Iterator[None]:
    """Whatever a world raises ends its episode as an error; wrong usage is the caller's."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise SimulatorFailed(f"tabletop, {task}: {type(error).__name__}: {error}") from error
