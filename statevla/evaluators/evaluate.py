"""Success rates in closed loop: check what is asked for, run the trials that are missing, write the results.

This one evaluator serves every suite. A world runs one trial at a time, in this process or in a worker process. When a
world fails, its trial ends as an ``error``, which is neither success nor failure, and another world takes its place.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from statevla.evaluators import known
from statevla.evaluators.conditions import USUAL, Conditions
from statevla.evaluators.results import Results, summarize
from statevla.evaluators.runner import Listen, Policy, Runner
from statevla.evaluators.start import first_start, overlap, untold
from statevla.evaluators.trials import (
    Record,
    RunDescription,
    Trial,
    describe_run,
    load_records,
    plan_trials,
    require_same_numbers,
    unfinished,
)
from statevla.observation import require_simulated, square_side
from statevla.policies.controls import ExpertControl, ReplayDemos
from statevla.policies.execution import Execution
from statevla.sims.libero import memory
from statevla.sims.libero.errors import SimulatorFailed
from statevla.sims.libero.row import LiberoSuite
from statevla.sims.suites import Suite, find_suite
from statevla.sims.world import Task
from stores.disk.lock import lock
from stores.errors import UsageError
from stores.progress import Progress

WAY_OUT: Final = (
    "Choose tasks it knows (--tasks), train on a store that has them, or say "
    f"{known.OPTION} to have them embedded by the policy's text encoder and told in the results"
)


def usual_execution(row: Suite, said: Execution | None = None) -> Execution:
    """How chunks are executed: as `said`, or as is usual in the suite if that names none of replan, ensemble, vote.

    Usual in LIBERO's suites is a new chunk at every step, averaged with the older ones (temporal ensembling, 0.01): it
    succeeded in more of the same trials than executing half of each chunk did (docs/results-libero.md). Half of each
    chunk is usual everywhere else.
    """
    told = said or Execution()
    if told.replan is not None or told.ensemble is not None or told.vote or not isinstance(row, LiberoSuite):
        return told
    return Execution(replan=1, ensemble=0.01, latency_steps=told.latency_steps)


def evaluate(
    policy: Policy,
    suite: str,
    *,
    out: Path | str,
    name: str,
    tasks: Sequence[int] | str | None = None,
    num_trials: int = 50,
    episodes: int | None = None,
    workers: int = 1,
    first_init: int | None = None,
    execution: Execution | None = None,
    conditions: Conditions = USUAL,
    max_steps: int | None = None,
    videos: int = 0,
    seed: int = 0,
    unknown_instructions: bool = False,
    progress: Progress | None = None,
    label: str = "trials",
    listen: Listen | None = None,
) -> Results:
    """Run the trials that ``out`` has no result for; write the results of all trials there, and return them.

    A trial's noise is a function of (seed, trial, call), and its actions are decided for it alone. So its actions and
    its outcome are the same for any number of workers, after any interruption, and beside any other trials.

    Args:
        suite: a row of `statevla.sims.suites.SUITES`.
        out: folder for ``trials.jsonl``, ``results.json``, ``results.md``, ``index.html`` and ``videos/``. What it
            holds must be of the same policy (its identity), execution, seed and protocol.
        name: what the policy is called in the results.
        tasks: indices of the suite's tasks, or as ``"0-2,5"``; None: all.
        num_trials: for each task; with :class:`ReplayDemos`, at most so many demonstrations a task.
        episodes: in all instead, tasks in turn.
        workers: worlds at a time; LIBERO's simulators must fit into free memory, with up to 2.4 GiB each.
        first_init: number of the first initial state; None: past those that the policy's demonstrations started from.
        execution: which actions of which chunk; where it says none: the suite's (`usual_execution`).
        conditions: what is not as usual in the suite.
        max_steps: after settling; None: the suite's usual limit.
        videos: trials of each task, the first ones, to film.
        seed: another sample of a policy's noise, and of layouts where the suite has endless ones.
        unknown_instructions: also try tasks whose instruction the policy was not trained on; the notes name them.
        label: what the progress calls the trials.
        listen: is told of every decision of a trial that is run.

    Raises:
        UsageError: no such suite or task, no expert where one is asked for, numbers out of range, an instruction that
            the policy was not trained on, or cannot embed, no memory for so many workers, or ``out`` holds another
            evaluation.
        ObsSpecMismatch: the policy was trained on other observations than the simulator gives.
        SimulatorMissing, SimulatorVersion: the simulator is not set up.
        SimulatorFailed: simulators do not even start, or no trial finished. Finished trials are kept.
        StateVLAError: the policy returned actions of another shape, or that are not finite.
    """
    out, row = Path(os.path.expanduser(out)), conditions.of(find_suite(suite))
    if not isinstance(policy, ExpertControl | ReplayDemos):
        require_simulated(policy.obs_spec, row.name)
    versions = row.prepare()
    _require_in_range(workers, videos, max_steps, seed)
    listed = row.tasks(tasks)
    own = known.in_trained_words(policy, listed)
    chosen = conditions.tell(own)
    standing = conditions.note_of_fixtures(chosen)
    if isinstance(policy, ExpertControl):
        row.check_expert(chosen)
    if first_init is None:
        first_init = first_start(policy, row, chosen, num_trials if episodes is None else -(-episodes // len(chosen)))
    trials = _trials(policy, row, chosen, num_trials, episodes, first_init)
    if isinstance(row, LiberoSuite):
        memory.require_room(min(workers, len(trials)))  # of what there are never more
    if not unknown_instructions:  # what conditions tell instead is what is tried
        known.require_trained(policy, own, WAY_OUT)
    known.require_taken(policy, chosen)
    told = (
        overlap(policy, row, trials), untold(policy, row, own), known.note_of_words(own, listed),
        known.note_of(policy, chosen), standing,
    )  # fmt: skip
    notes = tuple(note for note in told if note is not None)
    description = _description(policy, suite, row, execution, conditions, max_steps, seed, versions)
    filmed = {t.key for task in chosen for t in [t for t in trials if t.task == task][:videos]}
    with lock(out, f"evaluation of {name} in {suite}"):
        describe_run(out, description)
        require_same_numbers(out, chosen)
        unseen = _unfilmed(load_records(out), trials, filmed)
        started = time.perf_counter()
        with Runner(policy, row, description, trials, out, workers, filmed, progress, label, listen) as runner:
            runner.run()
        records = load_records(out)
        results = summarize(
            name,
            description,
            [records[trial.key] for trial in trials],
            {task.name: task.instruction for task in chosen},
            runner.milliseconds,
            seconds=time.perf_counter() - started,
            steps_run=runner.steps_run,
            trained_steps=getattr(policy, "step", None),
            made_by=getattr(policy, "made_by", None),
            notes=notes if unseen is None else (*notes, unseen),
        )
        results.save(out)
    if not results.trials:
        raise SimulatorFailed(
            f"no trial finished: {results.errors} ended in a simulator error, see {out}. The last one: "
            f"{results.records[-1].message}. Run: statevla doctor"
        )
    return results


def _unfilmed(records: dict[tuple[str, int], Record], trials: list[Trial], filmed: set[tuple[str, int]]) -> str | None:
    """Which of the trials to film were run before, without a film: trials are not run anew for one."""
    again = {trial.key for trial in unfinished(trials, records)}
    count = sum(key not in again and not records[key].video for key in filmed)
    if count == 0:
        return None
    were = "trial was run without a film and is" if count == 1 else "trials were run without films and are"
    return f"{count} {were} not run anew; the same command with --videos and another --out films what it runs"


def _require_in_range(workers: int, videos: int, max_steps: int | None, seed: int) -> None:
    if workers < 1 or videos < 0 or (max_steps is not None and max_steps < 1):
        raise UsageError(
            f"expected workers and max_steps of at least 1 and videos of at least 0, "
            f"got {workers}, {max_steps} and {videos}"
        )
    if not 0 <= seed < 2**20:
        raise UsageError(f"seed: expected 0 to {2**20 - 1}, got {seed}")


def _description(
    policy: Policy, suite: str, row: Suite, execution: Execution | None, conditions: Conditions,
    max_steps: int | None, seed: int, versions: dict[str, str],
) -> RunDescription:  # fmt: skip
    """What must be the same for results to belong together. A control executes its own actions, not chunks."""
    resolved = Execution()
    if not isinstance(policy, ExpertControl | ReplayDemos):
        resolved = usual_execution(row, execution).resolve(policy.chunk)
    return RunDescription(
        suite=suite,
        policy=policy.identity,
        replan=resolved.replan,
        ensemble=resolved.ensemble,
        vote=resolved.vote,
        latency_steps=resolved.latency_steps,
        max_steps=max_steps or row.max_steps,
        settle_steps=row.settle_steps,
        image_size=_image_size(policy, row),
        seed=seed,
        versions=versions,
        conditions=conditions.told(),
        control=getattr(policy, "control", None),
    )


def _trials(
    policy: Policy, row: Suite, chosen: Sequence[Task], num_trials: int, episodes: int | None, first: int
) -> list[Trial]:
    if episodes is not None and episodes < 1:
        raise UsageError(f"episodes: expected at least 1, got {episodes}")
    if isinstance(policy, ReplayDemos):
        most = num_trials if episodes is None else episodes
        trials = [
            Trial(task, i)
            for task in chosen
            for i in range(first, min(first + most, len(policy.demos.get(task.name, ()))))
        ]
        if not trials:
            raise UsageError(
                f"no demonstration to replay for {[t.name for t in chosen]}; there are some for {sorted(policy.demos)}"
            )
    else:
        trials = plan_trials(row, chosen, num_trials if episodes is None else -(-episodes // len(chosen)), first)
    if episodes is None:
        return trials
    return sorted(trials, key=lambda trial: (trial.start, trial.task.index))[:episodes]


def _image_size(policy: Policy, row: Suite) -> int:
    if isinstance(policy, ExpertControl | ReplayDemos):
        return row.image_size
    return square_side(policy.obs_spec, f"{row.name}'s")
