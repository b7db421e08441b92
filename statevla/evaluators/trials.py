"""Which episodes an evaluation consists of, and a log of the finished ones that survives anything.

A trial is a task and a numbered initial state (paired: every policy meets the same ones), or a demonstration to
replay. A finished trial is one line of ``trials.jsonl``. Resuming runs what has no line, and what has only an error.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from statevla.sims.suites import Suite
from statevla.sims.world import Task
from stores.disk import durable
from stores.errors import StoreCorrupt, UsageError

Outcome = Literal["success", "failure", "error"]
LOG: Final = "trials.jsonl"
RUN: Final = "run.json"
NUMBERS: Final = 2**32


@dataclass(frozen=True)
class Trial:
    """One episode to run. start: number of the initial state, or of the demonstration to replay."""

    task: Task
    start: int

    @property
    def key(self) -> tuple[str, int]:
        """What makes a trial the same in another run."""
        return self.task.name, self.start

    @property
    def number(self) -> int:
        """Of its noise: the same for every policy, whatever else is tried."""
        return self.task.index * NUMBERS + self.start


@dataclass(frozen=True)
class Record:
    """One finished trial.

    start: initial state or demonstration. seed: of the evaluation. outcome: ``success``, ``failure`` (out of steps) or
    ``error`` (the simulator raised). steps: executed after settling. seconds: from reset to end, waiting for the policy
    included. policy: its identity. actions: sha256 of all executed actions, float64, in order. message: what the
    simulator said, for an error. video: file below the output folder, or empty.
    """

    suite: str
    task: str
    task_index: int
    start: int
    seed: int
    instruction: str
    outcome: Outcome
    steps: int
    seconds: float
    policy: str
    actions: str
    message: str = ""
    video: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """See :attr:`Trial.key`."""
        return self.task, self.start

    @property
    def number(self) -> int:
        """See :attr:`Trial.number`."""
        return self.task_index * NUMBERS + self.start


@dataclass(frozen=True)
class RunDescription:
    """What must be the same for two trials to belong to one evaluation; kept as ``run.json``.

    policy: its identity. The execution is flat: ``replan``, ``ensemble``, ``vote``, ``latency_steps``. conditions: what
    is not as usual in the suite (`Conditions.told`). control: which one stands in the checkpoint's place, if one does.
    """

    suite: str
    policy: str
    replan: int | None
    ensemble: float | None
    vote: bool
    latency_steps: int
    max_steps: int
    settle_steps: int
    image_size: int
    seed: int
    versions: dict[str, str]
    conditions: dict[str, Any] = field(default_factory=dict)
    control: str | None = None


def plan_trials(suite: Suite, tasks: Sequence[Task], repetitions: int, first: int) -> list[Trial]:
    """``repetitions`` trials of each task, from repetition ``first`` on.

    Raises:
        UsageError: counts that are not positive, or more trials than a task has initial states left.
    """
    if repetitions < 1 or first < 0:
        raise UsageError(f"expected num_trials of at least 1 and first_init of at least 0, got {repetitions}, {first}")
    for task in tasks:
        available = suite.available(task)
        if available is not None and first + repetitions > available:
            raise UsageError(
                f"task {task.name!r} has {available} initial states; {repetitions} trials from number {first} on "
                f"need {first + repetitions}. Ask for at most {max(0, available - first)}"
            )
    return [Trial(task, suite.number(task, first + i)) for task in tasks for i in range(repetitions)]


def describe_run(out: Path, description: RunDescription) -> None:
    """Writes ``run.json``, or checks that the one there says the same.

    Raises:
        UsageError: the folder holds trials of another evaluation; names every difference.
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
    if not isinstance(present, dict):
        raise StoreCorrupt(f"{file}: expected an object, got {type(present).__name__}; remove {out} to evaluate anew")
    present.setdefault("conditions", {})  # an evaluation from before there were any
    different = [
        f"{_told(key)} = {_short(present.get(key))}, this one has {_short(wanted.get(key))}"
        for key in sorted({*wanted, *present})
        if wanted.get(key) != present.get(key)
    ]
    if different:
        raise UsageError(
            f"{out} holds an evaluation with {'; '.join(different)}. Name another folder with --out, or remove that one"
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


def require_same_numbers(out: Path, tasks: Sequence[Task]) -> None:
    """Of the tasks and the finished trials in `out`, the same number is to mean the same task: `--tasks` goes by it,
    and a trial's noise. LIBERO-PRO's ``*_with_*`` were numbered by their files' names once.

    Raises:
        UsageError: a trial's task has another number now, or its number another task.
    """
    names, numbers = ({t.index: t.name for t in tasks}, {t.name: t.index for t in tasks})
    for record in load_records(out).values():
        name = names.get(record.task_index, record.task)
        number = numbers.get(record.task, record.task_index)
        if (number, name) != (record.task_index, record.task):
            now = f"that number is now {name!r}" if name != record.task else f"which is now number {number}"
            raise UsageError(
                f"{out} holds trials of task {record.task_index} as {record.task!r}, and {now}: its tasks were "
                "numbered otherwise. Name another folder with --out, or remove that one"
            )


def unfinished(trials: list[Trial], records: dict[tuple[str, int], Record]) -> list[Trial]:
    """Trials without a success or failure, in order."""
    return [t for t in trials if t.key not in records or records[t.key].outcome == "error"]


def record_line(record: Record) -> str:
    """One line of the log."""
    return json.dumps(asdict(record), sort_keys=True)


def _told(key: str) -> str:
    return "policy (weights, options, precision, sampling steps, ObsSpec)" if key == "policy" else key


def _short(value: object) -> str:
    """A hash by its beginning."""
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else repr(value)
