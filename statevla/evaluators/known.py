"""Does a policy know what it is told? An instruction that it was not trained on is another question than its tasks."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from statevla.sims.libero import suites
from statevla.sims.world import Task
from stores.errors import StateVLAError, UsageError

OPTION: Final = "--unknown-instructions"
SHOWN: Final = 3


def in_trained_words(policy: Any, tasks: Sequence[Task]) -> list[Task]:
    """`tasks`, those of LIBERO by their ``language`` where `policy` was trained on that and not on the BDDL's text."""
    trained = getattr(policy, "trained", {})
    return [
        replace(task, instruction=task.language)
        if isinstance(task, suites.Task) and task.instruction not in trained and task.language in trained
        else task
        for task in tasks
    ]


def strangers(policy: Any, tasks: Sequence[Task]) -> list[Task]:
    """Tasks whose instruction `policy` was not trained on; none of a control, which was trained on nothing."""
    trained = getattr(policy, "trained", {})
    return [task for task in tasks if trained and task.instruction not in trained]


def require_trained(policy: Any, tasks: Sequence[Task], way_out: str) -> None:
    """Raises UsageError where the policy was not trained on a task's instruction. way_out: what to do then."""
    unknown = strangers(policy, tasks)
    if unknown:
        first, trained = unknown[0], sorted(policy.trained)
        shown = "; ".join(trained[:SHOWN]) + (f"; and {len(trained) - SHOWN} more" if len(trained) > SHOWN else "")
        raise UsageError(
            f"{len(unknown)} of {len(tasks)} tasks of {first.suite} have an instruction that the policy was not "
            f"trained on, such as task {first.index}, {first.instruction!r}; it knows: {shown}. {way_out}"
        )


def require_taken(policy: Any, tasks: Sequence[Task]) -> None:
    """Raises UsageError where the policy cannot even embed what it is told."""
    vector = getattr(policy, "vector", None)
    if vector is None:  # controls take no instruction
        return
    for task in tasks:
        try:
            vector(task.instruction)
        except StateVLAError as error:
            raise UsageError(
                f"task {task.index} of {task.suite}: {error}. Choose tasks it knows (--tasks), or train on "
                "a store that has this one"
            ) from error


def note_of_words(told: Sequence[Task], tasks: Sequence[Task]) -> str | None:
    """A sentence where `told` are `tasks` in other words (`in_trained_words`)."""
    other = [now.instruction for now, task in zip(told, tasks, strict=True) if now.instruction != task.instruction]
    if not other:
        return None
    return (
        f"{len(other)} of {len(tasks)} tasks are told by the benchmark's task.language, which the policy was trained "
        f"on, not by the BDDL's text: {other[0]!r}" + (", …" if len(other) > 1 else "")
    )


def note_of(policy: Any, tasks: Sequence[Task]) -> str | None:
    """A sentence where `tasks` tell the policy what it was not trained on."""
    texts = list(dict.fromkeys(task.instruction for task in strangers(policy, tasks)))
    if not texts:
        return None
    shown = ", ".join(map(repr, texts[:SHOWN])) + (", …" if len(texts) > SHOWN else "")
    return f"{len(texts)} instructions were not trained on: {shown}"
