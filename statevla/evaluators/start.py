"""Where an evaluation starts: past the initial states that the policy's demonstrations started from.

Success from a state that was trained on measures memory. A policy carries the states of its store
(`Policy.init_states`).
"""

from collections.abc import Sequence
from typing import Any

from statevla.evaluators.trials import Trial
from statevla.sims.suites import Suite
from statevla.sims.world import Task
from stores.errors import UsageError
from stores.init_states import first_free


def trained_states(policy: Any, task: Task) -> list[str]:
    """Initial states of `task` that `policy` was trained on (`stores.init_states`); none of a control."""
    return list(getattr(policy, "init_states", {}).get(task.name, ()))


def first_start(policy: Any, suite: Suite, tasks: Sequence[Task], needed: int) -> int:
    """The first initial state past all that the policy was trained on, the same for all tasks.

    needed: trials of each task. Raises UsageError when the benchmark has not so many left.
    """
    first = max((first_free(trained_states(policy, task)) for task in tasks), default=0)
    left = [available - first for task in tasks if (available := suite.available(task)) is not None]
    if first and left and min(left) < needed:
        raise UsageError(
            f"the policy was trained on initial states up to {first - 1}; {max(min(left), 0)} are left, {needed} are "
            f"asked for. Pass --num-trials {max(min(left), 1)}, or --first-init 0 to start from trained ones too"
        )
    return first


def overlap(policy: Any, trials: Sequence[Trial]) -> str | None:
    """A sentence about the trials that start from a state that was trained on; None where none does."""
    trained = [trial for trial in trials if str(trial.start) in trained_states(policy, trial.task)]
    if not trained:
        return None
    starts = sorted({trial.start for trial in trained})
    shown = ", ".join(map(str, starts[:10])) + (", …" if len(starts) > 10 else "")
    return (
        f"{len(trained)} of {len(trials)} trials start from initial states that the policy was trained on ({shown}): "
        "their success says nothing about new ones"
    )
