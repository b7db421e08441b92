"""Which episodes an evaluation consists of, and a log of the finished ones that survives anything.

A trial is a task and a numbered initial state (paired: every policy meets the same ones), or a demonstration to
replay. A finished trial is one line of ``trials.jsonl``. Resuming runs what has no line, and what has only an error.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from statevla.sims.libero import suites
from stores.disk import durable
from stores.errors import StoreCorrupt, UsageError

Outcome = Literal["success", "failure", "error"]
LOG = "trials.jsonl"
RUN = "run.json"


@dataclass(frozen=True)
class Trial:
    """One episode to run. start: index of the benchmark's initial state, or of the demonstration to replay."""

    task: suites.Task
    start: int

    @property
    def key(self) -> tuple[str, int]:
        """What makes a trial the same in another run."""
        return self.task.name, self.start


@dataclass(frozen=True)
class Record:
    """One finished trial.

    steps: executed after settling. seconds: from reset to end, waiting for the policy included. message: what the
    simulator said, for an error. video: file below the output folder, or empty.
    """

    task: str
    task_index: int
    start: int
    outcome: Outcome
    steps: int
    seconds: float
    message: str = ""
    video: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """See :attr:`Trial.key`."""
        return self.task, self.start


@dataclass(frozen=True)
class RunDescription:
    """What must be the same for two trials to belong to one evaluation; kept as ``run.json``."""

    suite: str
    policy: str
    replan: int | None
    ensemble: float | None
    max_steps: int
    settle_steps: int
    image_size: int
    seed: int
    versions: dict[str, str]


def plan_trials(tasks: list[suites.Task], num_trials: int, first_init: int) -> list[Trial]:
    """``num_trials`` trials of each task, from initial state ``first_init`` on.

    Raises:
        UsageError: counts that are not positive, or more trials than the benchmark has initial states left.
    """
    if num_trials < 1 or first_init < 0:
        raise UsageError(
            f"expected num_trials of at least 1 and first_init of at least 0, got {num_trials} and {first_init}"
        )
    for task in tasks:
        available = len(suites.init_states(task))
        if first_init + num_trials > available:
            raise UsageError(
                f"task {task.name!r} has {available} initial states; {num_trials} trials from number {first_init} on "
                f"need {first_init + num_trials}. Ask for at most {max(0, available - first_init)}"
            )
    return [Trial(task, first_init + i) for task in tasks for i in range(num_trials)]


def describe_run(out: Path, description: RunDescription) -> None:
    """Writes ``run.json``, or checks that the one there says the same.

    Raises:
        UsageError: the folder holds trials of another evaluation; names the first difference.
        StoreCorrupt: the folder's ``run.json`` cannot be read.
    """
    file = out / RUN
    wanted: dict[str, Any] = asdict(description)
    if not file.exists():
        durable.write_json(file, wanted)
        return
    try:
        present = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise StoreCorrupt(f"{file}: not JSON ({error}); remove {out} to evaluate anew") from error
    for key in sorted({*wanted, *present}):
        if wanted.get(key) != present.get(key):
            raise UsageError(
                f"{out} holds an evaluation with {key} = {present.get(key)!r}, this one has {wanted.get(key)!r}. "
                "Choose another output folder, or remove that one"
            )


def load_records(out: Path) -> dict[tuple[str, int], Record]:
    """Finished trials by key; a later line wins. A torn last line (the process died while writing) is not a trial.

    Raises:
        StoreCorrupt: a line other than the last is no record.
    """
    file = out / LOG
    if not file.exists():
        return {}
    lines = file.read_text().split("\n")
    found: dict[tuple[str, int], Record] = {}
    for number, line in enumerate(lines[:-1]):  # the last piece has no newline: empty, or torn
        try:
            record = Record(**json.loads(line))
        except (json.JSONDecodeError, TypeError) as error:
            raise StoreCorrupt(f"{file}, line {number + 1}: not a finished trial ({error}); remove the line") from error
        found[record.key] = record
    return found


def unfinished(trials: list[Trial], records: dict[tuple[str, int], Record]) -> list[Trial]:
    """Trials without a success or failure, in order."""
    return [t for t in trials if t.key not in records or records[t.key].outcome == "error"]


def record_line(record: Record) -> str:
    """One line of the log."""
    return json.dumps(asdict(record), sort_keys=True)
