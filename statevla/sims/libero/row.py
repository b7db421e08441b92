"""LIBERO's rows in the table of suites: simulators in worker processes, seen as worlds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from statevla.sims.libero import paths, suites, worker
from statevla.sims.libero.experts import check_expert
from statevla.sims.libero.perturb import NONE, Perturbation
from statevla.sims.libero.protocol import Reply, Reset, Run, RunExpert
from statevla.sims.world import Start, Task, World
from stores.errors import UsageError
from stores.init_states import init_state_hash

IMAGE_SIZE = 128
TRIALS_A_SEED = 2**20
"""Seeds of two perturbations do not meet in one trial."""


@dataclass(frozen=True)
class LiberoSuite:
    """One of LIBERO's suites.

    perturbation: of what the cameras see; each trial has directions of its own. drawn_fixtures: cabinets, stoves and
    racks stand elsewhere in every trial.
    """

    name: str
    timeouts: worker.Timeouts | None = None
    perturbation: Perturbation = NONE
    drawn_fixtures: bool = False

    @property
    def max_steps(self) -> int:
        """The convention of published evaluations."""
        return suites.max_steps(self.name)

    @property
    def settle_steps(self) -> int:
        return suites.SETTLE_STEPS

    @property
    def image_size(self) -> int:
        return IMAGE_SIZE

    def prepare(self) -> dict[str, str]:
        """Raises SimulatorMissing or SimulatorVersion."""
        paths.prepare()
        return {package: paths.installed_version(package) or "none" for package in paths.PACKAGES}

    def tasks(self, chosen: Sequence[int] | str | None) -> list[suites.Task]:
        return suites.select(self.name, chosen)

    def number(self, task: Task, repetition: int) -> int:
        return repetition

    def available(self, task: Task) -> int:
        return len(suites.init_states(_own(task)))

    def state_hashes(self, task: Task) -> tuple[str, ...]:
        return _hashes(_own(task))

    def check_expert(self, tasks: Sequence[Task]) -> None:
        """Raises UsageError for a suite or a task without."""
        check_expert(self.name, [task.index for task in tasks])

    def open(self, task: Task, image_size: int, threads: int) -> "LiberoWorld":
        return LiberoWorld(_own(task), image_size, threads, self)

    def ready(self, worlds: Sequence[World], timeout: float | None) -> list[World]:
        held = {id(world.simulator): world for world in worlds if isinstance(world, LiberoWorld)}
        return [held[id(simulator)] for simulator in worker.ready([w.simulator for w in held.values()], timeout)]


class LiberoWorld:
    """A `Simulator` that is asked as a `World`."""

    def __init__(self, task: suites.Task, image_size: int, threads: int, row: LiberoSuite) -> None:
        self.task = task
        self._row = row
        self.simulator = worker.Simulator(task, image_size=image_size, timeouts=row.timeouts, render_threads=threads)

    @property
    def starting(self) -> bool:
        return self.simulator.starting

    def come_up(self) -> None:
        _ = self.simulator.scenery

    def begin(self, start: Start) -> None:
        """A recorded state is restored again after settling: what moved in it must go on from there."""
        fixtures = 1 + start.number if self._row.drawn_fixtures else 0  # 0 is where the demonstrations' stand
        eyes = self._row.perturbation
        if eyes != NONE:
            eyes = replace(eyes, seed=eyes.seed * TRIALS_A_SEED + start.number)
        if start.state is not None:
            self.simulator.send(Reset(start.state, suites.SETTLE_STEPS, True, fixtures=fixtures, perturbation=eyes))
            return
        again = (start.attempt,) if start.attempt else ()
        expert = (start.seed, self.task.index, start.number, *again) if start.expert else None
        state = suites.init_states(self.task)[start.number]
        self.simulator.send(Reset(state, suites.SETTLE_STEPS, expert_seed=expert, fixtures=fixtures, perturbation=eyes))

    def run(self, actions: NDArray[np.float64], *, look: bool, film: int) -> None:
        self.simulator.send(Run(actions, look, film))

    def run_expert(self, steps: int, *, look: bool, film: int) -> None:
        self.simulator.send(RunExpert(steps, look, film))

    def receive(self) -> Reply:
        return self.simulator.receive()

    def close(self) -> None:
        self.simulator.close()

    def kill(self) -> None:
        self.simulator.kill()


def _own(task: Task) -> suites.Task:
    if not isinstance(task, suites.Task):
        raise UsageError(f"LIBERO acts in its own tasks, got {task!r}")
    return task


def _hashes(task: suites.Task) -> tuple[str, ...]:
    return tuple(init_state_hash(state) for state in suites.init_states(task))
