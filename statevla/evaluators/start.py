"""Where an evaluation starts: past the initial states that the policy's demonstrations started from.

Success from a state that was trained on measures memory. A policy carries the states of its store
(`Policy.init_states`): numbers of the benchmark's, or hashes, which are looked up among the suite's.
"""

from collections.abc import Sequence
from typing import Any

from statevla.evaluators.trials import Trial
from statevla.sims.suites import Suite
from statevla.sims.world import Task
from stores.errors import UsageError
from stores.init_states import HASH, first_free, numbers_of


def trained_states(policy: Any, task: Task) -> list[str]:
    """Initial states of `task` that `policy` was trained on (`stores.init_states`); none of a control."""
    return list(getattr(policy, "init_states", {}).get(task.name, ()))


def first_start(policy: Any, suite: Suite, tasks: Sequence[Task], needed: int) -> int:
    """The first initial state past all that the policy was trained on, the same for all tasks.

    needed: trials of each task. Raises UsageError when the benchmark has not so many left.
    """
    first = max((first_free(trained_states(policy, t), _hashes(policy, suite, t)) for t in tasks), default=0)
    left = [available - first for task in tasks if (available := suite.available(task)) is not None]
    if first and left and min(left) < needed:
        fewer = f"Pass --num-trials {min(left)}, or" if min(left) > 0 else "Pass"
        raise UsageError(
            f"the policy was trained on initial states up to {first - 1}; {max(min(left), 0)} are left, {needed} are "
            f"asked for. {fewer} --first-init 0 to start from trained ones too"
        )
    return first


def overlap(policy: Any, suite: Suite, trials: Sequence[Trial]) -> str | None:
    """A sentence about the trials that start from a state that was trained on; None where none does."""
    tasks = {trial.task.name: trial.task for trial in trials}
    used = {name: numbers_of(trained_states(policy, t), _hashes(policy, suite, t)) for name, t in tasks.items()}
    trained = [trial for trial in trials if trial.start in used[trial.task.name]]
    if not trained:
        return None
    starts = sorted({trial.start for trial in trained})
    shown = ", ".join(map(str, starts[:10])) + (", …" if len(starts) > 10 else "")
    return (
        f"{len(trained)} of {len(trials)} trials start from initial states that the policy was trained on ({shown}): "
        "their success says nothing about new ones"
    )


def untold(policy: Any, suite: Suite, tasks: Sequence[Task]) -> str | None:
    """A sentence where nobody can say whether trials start from trained states: demonstrations of a task recorded none,
    or hashes that the suite's states do not have. None where all is known, and for suites without numbered states.
    """
    known = getattr(policy, "trained", {})
    numbered = [task for task in tasks if suite.available(task) is not None]
    silent = [task for task in numbered if task.instruction in known and not trained_states(policy, task)]
    strange = [task for task in numbered if _strangers(policy, suite, task)]
    told = []
    if silent:
        told.append(
            f"of {len(silent)} of {len(tasks)} tasks the store does not say from where its demonstrations start"
        )
    if strange:
        count = sum(_strangers(policy, suite, task) for task in strange)
        told.append(
            f"{count} initial states of demonstrations of {len(strange)} of {len(tasks)} tasks are known by a hash "
            f"that none of {suite.name}'s states has"
        )
    return f"{' and '.join(told)}: whether trials start from trained ones is not known" if told else None


def _hashes(policy: Any, suite: Suite, task: Task) -> Sequence[str]:
    """Of the suite's states, where the policy's are hashes."""
    return suite.state_hashes(task) if any(s.startswith(HASH) for s in trained_states(policy, task)) else ()


def _strangers(policy: Any, suite: Suite, task: Task) -> int:
    hashed = {state for state in trained_states(policy, task) if state.startswith(HASH)}
    return len(hashed.difference(_hashes(policy, suite, task)))
