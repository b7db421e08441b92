"""Success rates in the LIBERO simulator: checks what is asked, runs what is missing, writes the results.

Each worker process holds one task's environment and runs one trial at a time. Workers run on their own until they need
a decision; all trials that wait for one are put to the policy in one batch. A worker that fails costs its trial an
``error``, which is neither success nor failure, and is replaced.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from statevla.evaluators.libero.results import LiberoResults, save, summarize
from statevla.evaluators.libero.runner import Policy, Runner
from statevla.evaluators.libero.trials import RunDescription, Trial, describe_run, load_records, plan_trials
from statevla.observation import square_side
from statevla.policies.controls import ExpertControl, ReplayDemos
from statevla.sims.libero import paths, suites
from statevla.sims.libero.worker import Timeouts
from stores.disk import durable
from stores.errors import UsageError
from stores.progress import Progress

CONTROL_IMAGE_SIZE = 128


def evaluate_libero(
    policy: Policy,
    suite: str,
    *,
    out: Path,
    name: str,
    tasks: Sequence[int] | str | None = None,
    num_trials: int = 50,
    workers: int = 1,
    first_init: int = 0,
    replan: int | None = None,
    ensemble: float | None = None,
    max_steps: int | None = None,
    videos: int = 0,
    seed: int = 0,
    timeouts: Timeouts | None = None,
    progress: Progress | None = None,
) -> LiberoResults:
    """Runs the trials that ``out`` has no result for, and returns (and writes there) the results of all.

    Args:
        out: folder for ``trials.jsonl``, ``results.json``, ``results.md``, ``index.html`` and ``videos/``.
        name: says which policy this is; another one does not resume into the same folder.
        tasks: indices of the suite's tasks, or as ``"0-2,5"``; None: all.
        num_trials: for each task; with :class:`ReplayDemos`, at most so many demonstrations a task.
        workers: simulator processes, 1.8 GiB of memory each.
        first_init: number of the first initial state; choose it past those that the training demonstrations used.
        replan: actions executed of each chunk; None: all of them.
        ensemble: see :class:`~statevla.policies.execution.ChunkBuffer`; None: off.
        max_steps: after settling; None: the suite's usual limit.
        videos: trials of each task, the first ones, to film.

    Raises:
        UnknownTask: no such suite or task.
        UsageError: numbers out of range, an instruction that the policy does not know, or ``out`` holds another
            evaluation.
        ObsSpecMismatch: the policy was trained on other observations than the simulator gives.
        SimulatorMissing, SimulatorVersion: the simulator is not set up.
        SimulatorFailed: simulators do not even start. Finished trials are kept.
        StateVLAError: the policy returned actions of another shape, or that are not finite.
    """
    suites.check_suite(suite)
    paths.prepare()
    if workers < 1 or videos < 0 or (max_steps is not None and max_steps < 1) or (replan is not None and replan < 1):
        raise UsageError(
            f"expected workers, max_steps and replan of at least 1 and videos of at least 0, "
            f"got {workers}, {max_steps}, {replan} and {videos}"
        )
    chosen = suites.select(suite, tasks)
    trials = _trials(policy, chosen, num_trials, first_init)
    _check_instructions(policy, chosen)
    description = RunDescription(
        suite=suite,
        policy=name,
        replan=replan,
        ensemble=ensemble,
        max_steps=max_steps or suites.MAX_STEPS[suite],
        settle_steps=suites.SETTLE_STEPS,
        image_size=_image_size(policy),
        seed=seed,
        versions={package: paths.installed_version(package) or "none" for package in paths.PACKAGES},
    )
    filmed = {t.key for task in chosen for t in [t for t in trials if t.task == task][:videos]}
    with durable.lock(out, f"evaluation of {name} in {suite}"):
        describe_run(out, description)
        started = time.perf_counter()
        with Runner(policy, description, trials, out, workers, filmed, timeouts, progress) as runner:
            runner.run()
        records = load_records(out)
        results = summarize(
            description,
            [records[trial.key] for trial in trials],
            {task.name: task.instruction for task in chosen},
            runner.milliseconds,
            batch=workers,
            seconds=time.perf_counter() - started,
            steps_run=runner.steps_run,
        )
        save(results, out)
    return results


def _trials(policy: Policy, chosen: list[suites.Task], num_trials: int, first_init: int) -> list[Trial]:
    if not isinstance(policy, ReplayDemos):
        return plan_trials(chosen, num_trials, first_init)
    trials = [
        Trial(task, i)
        for task in chosen
        for i in range(first_init, min(first_init + num_trials, len(policy.demos.get(task.name, ()))))
    ]
    if not trials:
        raise UsageError(
            f"no demonstration to replay for {[t.name for t in chosen]}; there are some for {sorted(policy.demos)}"
        )
    return trials


def _check_instructions(policy: Policy, chosen: list[suites.Task]) -> None:
    known = getattr(policy, "language", None)
    if not isinstance(known, Mapping):
        return
    for task in chosen:
        if task.instruction not in known:
            raise UsageError(
                f"task {task.index} of {task.suite} says {task.instruction!r}; the policy was trained on "
                f"{sorted(known)}. Choose tasks it knows (--tasks), or train on a store that has this one"
            )


def _image_size(policy: Policy) -> int:
    if isinstance(policy, ExpertControl | ReplayDemos):
        return CONTROL_IMAGE_SIZE
    return square_side(policy.obs_spec, "LIBERO's")
