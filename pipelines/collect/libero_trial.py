"""How good is a scripted expert? Runs it from given initial states; draws nothing, writes nothing."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipelines.collect.libero_parts import HOLD, holds, with_expert
from statevla.evaluators.intervals import wilson
from statevla.sims.libero import memory, paths, suites
from statevla.sims.libero.errors import SimulatorFailed
from statevla.sims.libero.protocol import Demonstrate, Reset
from statevla.sims.libero.scatter import check_scatter, seed_of_places
from statevla.sims.libero.worker import Simulator, Timeouts, ready
from stores.errors import UsageError
from stores.progress import Progress, ProgressEvent

WORD_OF = {True: "held", False: "failed"}


@dataclass(frozen=True)
class ExpertTrial:
    """One attempt.

    held: the task was achieved for ten steps, the last ones. first_success: step of the first success, None without.
    steps: executed. stage: what the expert was doing at the end. error: what the simulator said, for neither.
    """

    task: int
    init_state: int
    held: bool
    first_success: int | None = None
    steps: int = 0
    stage: str = ""
    error: str = ""


@dataclass(frozen=True)
class ExpertTrials:
    """All attempts, in the order of tasks and initial states."""

    suite: str
    trials: tuple[ExpertTrial, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that ``statevla collect --dry-run --json`` prints."""
        return {"suite": self.suite, "held": self.held(), "trials": [asdict(trial) for trial in self.trials]}

    def held(self, task: int | None = None) -> int:
        """Successes that held, of a task or of all."""
        return sum(trial.held for trial in self.trials if task in (None, trial.task))

    def to_markdown(self) -> str:
        """A table with a row a task."""
        rows = ["| task | held | first success, steps | failed from initial state |", "|---|---|---|---|"]
        for task in dict.fromkeys(trial.task for trial in self.trials):
            mine = [trial for trial in self.trials if trial.task == task]
            firsts = [trial.first_success for trial in mine if trial.held and trial.first_success is not None]
            span = f"{min(firsts)}-{max(firsts)}" if firsts else "-"
            lost = ", ".join(f"{t.init_state} ({t.error or t.stage})" for t in mine if not t.held)
            rows.append(f"| {task} | {self.held(task)} / {len(mine)} | {span} | {lost} |")
        low, high = wilson(self.held(), len(self.trials))
        rows += ["", f"{self.held()} of {len(self.trials)} held; 95 % interval {100 * low:.0f} % to {100 * high:.0f} %"]
        return "\n".join(rows)


def try_expert(
    suite: str,
    *,
    tasks: Sequence[int] | str | None = None,
    episodes: int = 10,
    workers: int | None = 1,
    seed: int = 0,
    first_init: int = 0,
    noise: float = 0.0,
    scatter: float = 0.0,
    timeouts: Timeouts | None = None,
    progress: Progress | None = None,
) -> ExpertTrials:
    """One attempt at each task from each of ``episodes`` initial states, as a collection would make it.

    Raises:
        UnknownTask, UsageError: no such suite or task, no expert for it, a number out of range, or no memory for so
            many workers.
        SimulatorMissing, SimulatorVersion: the simulator is not set up.
    """
    suites.check_suite(suite)
    paths.prepare()
    chosen = with_expert(suite, suites.select(suite, tasks), tasks is None)
    last = min(len(suites.init_states(task)) for task in chosen)
    workers = memory.workers_that_fit() if workers is None else workers
    if episodes < 1 or workers < 1 or first_init < 0 or first_init + episodes > last or not 0 <= noise <= 1:
        raise UsageError(
            f"expected episodes and workers of at least 1, noise from 0 to 1 and initial states within 0-{last - 1}, "
            f"got episodes {episodes}, workers {workers}, noise {noise}, first_init {first_init}"
        )
    check_scatter(suite, scatter)
    memory.require_room(min(workers, len(chosen)))  # one a task at most
    waiting = list(chosen)
    running: dict[Simulator, int] = {}
    found: list[ExpertTrial] = []
    with ExitStack() as stack:
        while waiting or running:
            while waiting and len(running) < workers:
                simulator = Simulator(waiting.pop(0), timeouts=timeouts)
                stack.callback(simulator.close)
                running[simulator] = first_init
            for simulator in ready(list(running)):
                init, task = running[simulator], simulator.task
                try:
                    trial = _advance(simulator, init, seed, noise, scatter)
                except SimulatorFailed as error:
                    rest = range(init, first_init + episodes)
                    found += [ExpertTrial(task.index, i, False, error=str(error).splitlines()[0]) for i in rest]
                    del running[simulator]
                    continue
                if trial is None:
                    continue
                found.append(trial)
                running[simulator] += 1
                if running[simulator] == first_init + episodes:
                    simulator.close()
                    del running[simulator]
                else:
                    simulator.send(_reset(simulator, running[simulator], seed, scatter))
                if progress is not None:
                    message = f"task {trial.task}, initial state {trial.init_state}: {WORD_OF[trial.held]}"
                    progress(ProgressEvent("expert", len(found), len(chosen) * episodes, "trials", message))
    return ExpertTrials(suite, tuple(sorted(found, key=lambda trial: (trial.task, trial.init_state))))


def _reset(simulator: Simulator, init: int, seed: int, scatter: float) -> Reset:
    state = suites.init_states(simulator.task)[init]
    expert = (seed, simulator.task.index, init, 0)
    return Reset(state, suites.SETTLE_STEPS, expert_seed=expert, scatter=seed_of_places(expert, scatter))


def _advance(simulator: Simulator, init: int, seed: int, noise: float, scatter: float) -> ExpertTrial | None:
    """Takes a worker's answer; the finished trial, or None when it has been told to go on."""
    if simulator.starting:
        _ = simulator.scenery
        simulator.send(_reset(simulator, init, seed, scatter))
        return None
    task = simulator.task
    reply = simulator.receive()
    if reply.track is None:
        limit = suites.max_steps(task.suite)
        simulator.send(Demonstrate(limit, HOLD, noise, (seed, task.index, init, 0, 1)))
        return None
    succeeded = reply.track.succeeded
    first = int(np.argmax(succeeded)) + 1 if succeeded.any() else None
    return ExpertTrial(task.index, init, holds(reply.track), first, len(succeeded), reply.stage)
