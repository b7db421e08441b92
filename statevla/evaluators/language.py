"""Does a policy do what it is told? The same trials with other instructions, and how far its actions change.

Success alone does not tell: where a scene has one thing to do, a policy that ignores its instruction succeeds all the
same. So beside the trials, at every few calls, the policy is also asked what it would do under each other instruction,
with the same pictures and the same noise.

Legend: B batch, K chunk, A action dimensions, of them P continuous.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from statevla.evaluators import known
from statevla.evaluators.conditions import Conditions
from statevla.evaluators.evaluate import evaluate
from statevla.evaluators.paired import Paired, difference
from statevla.evaluators.results import Results
from statevla.evaluators.runner import ChunkPolicy, Policy
from statevla.observation import Observation, ObsSpec, require_simulated
from statevla.policies.noise import Draw
from statevla.policies.policy import Policy as TrainedPolicy
from statevla.reports.tables import markdown_table, percent
from statevla.sims.suites import find_suite
from statevla.sims.world import Task
from stores.disk import durable
from stores.errors import StateVLAError, UsageError
from stores.progress import Progress
from stores.spec import LIBERO

RIGHT: Final = "right"
KINDS: Final = {
    RIGHT: "the task's own",
    "paraphrased": "the same in other words",
    "swapped": "another task's of the suite",
    "wrong": "of nothing in the scene",
    "empty": "no word",
}
"""Kind of instruction -> what it is."""
WRONG: Final = "fold the blue towel on the shelf"
CHANGES: Final = "changes.jsonl"
EVERY: Final = 5
"""Calls of the policy in a trial between two at which it is asked under every instruction."""
IGNORES: Final = 0.05
"""Change of the actions, as a share of their size, below which an instruction is not heard."""
SYNONYMS: Final = (
    (r"\bpick up\b", "grab"),
    (r"\bpick\b", "grab"),
    (r"\bplace\b", "set"),
    (r"\bput\b", "set"),
    (r"\bturn on\b", "switch on"),
    (r"\bopen\b", "pull open"),
    (r"\bclose\b", "shut"),
    (r"\bpush\b", "shove"),
    (r"\bplaced?\b", "set"),
)


def paraphrase(instruction: str) -> str:
    """The instruction with other verbs and a request around it; always the same for the same text."""
    text = instruction
    for word, other in SYNONYMS:
        text = re.sub(word, other, text)
    return f"please {text}"


def instructions_of(kind: str, tasks: Sequence[Task], every: Sequence[Task]) -> dict[str, str]:
    """What is told instead, by task name. every: all tasks of the suite, in order, for ``swapped``.

    Raises UsageError where no other task of the suite has another instruction.
    """
    if kind == "paraphrased":
        return {task.name: paraphrase(task.instruction) for task in tasks}
    if kind == "swapped":
        return {task.name: _next_other(task, every) for task in tasks}
    return {task.name: {"wrong": WRONG, "empty": ""}[kind] for task in tasks} if kind != RIGHT else {}


def _next_other(task: Task, every: Sequence[Task]) -> str:
    texts = [other.instruction for other in every]
    place = [other.name for other in every].index(task.name)
    for text in texts[place + 1 :] + texts[:place]:
        if text != task.instruction:
            return text
    raise UsageError(
        f"{task.suite}: all tasks have the instruction {task.instruction!r}; there is none to swap it with"
    )


@dataclass(frozen=True)
class Listener:
    """Notes at some of a policy's decisions what it would have done under other instructions.

    Which ones is a function of the trial alone: not of other trials, workers or interruptions.

    others: instruction -> kind -> the other instruction. file: gets a line for each comparison.
    """

    policy: ChunkPolicy
    others: Mapping[str, Mapping[str, str]]
    file: Path

    def __call__(self, seen: Observation, draw: Draw, usual: NDArray[np.float32]) -> None:
        """usual: ``[K, A]``, what the policy did when it saw `seen`."""
        if draw.call % EVERY:
            return
        texts = self.others.get(seen.instruction, {})
        changes = {
            kind: change(usual, self._act(Observation(seen.images, seen.robot_state, text), draw))
            for kind, text in texts.items()
        }
        other_noise = Draw(draw.seed + 1, draw.trial, draw.call)
        changes["noise"] = change(usual, self._act(seen, other_noise))
        line = {"trial": draw.trial, "call": draw.call, "changes": changes}
        durable.append_line(self.file, json.dumps(line, sort_keys=True))

    def _act(self, seen: Observation, draw: Draw) -> NDArray[np.float32]:
        chunk: NDArray[np.float32] = self.policy.act([seen], [draw]).chunk[0].numpy()
        return chunk


def change(usual: NDArray[np.float32], other: NDArray[np.float32], spec: ObsSpec = LIBERO) -> float:
    """Root mean square of the difference of two chunks ``[K, A]``, as a share of the first one's; binary dimensions not
    counted. 0 where both are at rest."""
    moves = list(spec.continuous)
    size = float(np.sqrt(np.mean(np.square(usual[:, moves], dtype=np.float64))))
    apart = float(np.sqrt(np.mean(np.square(np.subtract(usual, other, dtype=np.float64)[:, moves]))))
    return apart / size if size > 0 else float(apart > 0)


@dataclass(frozen=True)
class Told:
    """One kind of instruction. change: median change of the actions, None where it was not compared. lost: success
    under the right instruction minus under this one, and its 95 % interval. error: why it could not be measured."""

    kind: str
    results: Results | None
    change: float | None
    lost: tuple[float, tuple[float, float]] | None
    error: str = ""


@dataclass(frozen=True)
class LanguageResults:
    """All kinds. noise: median change of the actions by another sample of the policy's noise."""

    suite: str
    policy: str
    rows: tuple[Told, ...]
    noise: float | None
    compared: int

    @property
    def verdict(self) -> str:
        """A sentence: whether the policy listens."""
        by_kind = {row.kind: row for row in self.rows}
        heard = [row.change for kind in ("swapped", "wrong") if (row := by_kind.get(kind)) and row.change is not None]
        if not heard:
            return "Not known whether the policy listens: it was asked under no other instruction"
        if max(heard) < IGNORES:
            return (
                f"The policy IGNORES its instruction: with another one its actions change by {percent(max(heard))} of "
                "their size. Look whether the instruction reaches it, or whether one task a scene made it needless"
            )
        swapped = by_kind.get("swapped")
        right = by_kind[RIGHT].results
        if swapped is None or swapped.lost is None or right is None or not right.successes:
            return (
                f"The policy hears its instruction: with another one its actions change by {percent(max(heard))} of "
                "their size; its success does not say more"
            )
        points, (low, _) = swapped.lost
        if low <= 0:
            return (
                f"The policy's success does NOT DEPEND on its instruction as far as these trials tell: with another "
                f"task's {_points(points)} points are lost, though its actions change by {percent(max(heard))} of "
                "their size"
            )
        return f"The policy listens: with another task's instruction {_points(points)} points are lost"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        rows = [
            {
                "kind": row.kind,
                "success": row.results.success if row.results else None,
                "successes": row.results.successes if row.results else None,
                "trials": row.results.trials if row.results else None,
                "interval": list(row.results.interval) if row.results else None,
                "change": row.change,
                "lost": None if row.lost is None else {"points": row.lost[0], "interval": list(row.lost[1])},
                "error": row.error,
            }
            for row in self.rows
        ]
        plain = {"suite": self.suite, "policy": self.policy, "verdict": self.verdict, "noise": self.noise}
        return {**plain, "compared": self.compared, "rows": rows}

    def to_markdown(self) -> str:
        """A table with a row a kind, and the verdict."""
        columns = (
            "instruction",
            "what it is",
            "success",
            "95 % interval",
            "successes / trials",
            "points lost",
            "change",
        )
        facts = [
            f"- {self.verdict}.",
            f"- Change: of the actions by the instruction alone, as a share of their size; median of {self.compared} "
            f"comparisons. Another sample of the policy's noise changes them by {_share(self.noise)}.",
        ]
        table = markdown_table(columns, [_cells(row) for row in self.rows])
        return "\n\n".join([f"# {self.suite}, told otherwise: {self.policy}", table, "\n".join(facts)])

    def save(self, out: Path) -> None:
        """Writes ``language.json`` and ``language.md``."""
        durable.write_json(out / "language.json", self.to_dict())
        durable.write_text(out / "language.md", self.to_markdown() + "\n")


def evaluate_language(
    policy: Policy,
    suite: str,
    *,
    out: Path,
    name: str,
    tasks: Sequence[int] | str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> LanguageResults:
    """The same trials under each kind of instruction; resumable. options: of `evaluate`, the same for all.

    A trial's success is that of its own task, whatever was told.

    Raises:
        UsageError: the policy takes no instruction, or what `evaluate` says of the right instructions. What cannot be
            measured of the others is said in the table.
    """
    if not isinstance(policy, ChunkPolicy):
        raise UsageError(f"{name} sees no instruction: language is measured of a checkpoint")
    row = find_suite(suite)
    require_simulated(policy.obs_spec, row.name)
    row.prepare()
    chosen, every = (known.in_trained_words(policy, row.tasks(which)) for which in (tasks, None))
    _give_no_words(policy)
    texts = {kind: instructions_of(kind, every, every) for kind in KINDS}  # so that tasks can be added to a folder
    others = {
        task.instruction: {kind: told[task.name] for kind, told in texts.items() if task.name in told}
        for task in chosen
    }
    right: Results | None = None
    rows = []
    noted = out / RIGHT / CHANGES  # beside the trials that they are of: what guards these guards them
    listener = Listener(policy, _those_it_takes(policy, others), noted)
    for kind, told in texts.items():
        try:
            results = evaluate(
                policy, suite, out=out / kind, name=f"{name}, {kind} instructions", tasks=tasks,
                conditions=Conditions(instructions=told), progress=progress, label=kind,
                listen=listener if kind == RIGHT else None, **options,
            )  # fmt: skip
        except StateVLAError as error:
            if kind == RIGHT:
                raise
            rows.append(Told(kind, None, None, None, str(error).splitlines()[0]))
            continue
        right = right or results
        rows.append(Told(kind, results, None, None if kind == RIGHT else points_lost(right, results)))
    finished = {r.number for r in right.records if r.outcome != "error"} if right is not None else set()
    changes = read_changes(noted, finished)
    medians = {key: float(np.median([line[key] for line in changes if key in line])) for key in _keys(changes)}
    rows = [Told(r.kind, r.results, medians.get(r.kind), r.lost, r.error) for r in rows]
    found = LanguageResults(suite, name, tuple(rows), medians.get("noise"), len(changes))
    found.save(out)
    return found


def points_lost(base: Results, other: Results) -> tuple[float, tuple[float, float]] | None:
    """Rate of ``base`` minus that of ``other`` over the trials that both finished; None without any."""
    won = {record.key: record.outcome == "success" for record in base.records if record.outcome != "error"}
    pairs = [(won[r.key], r.outcome == "success") for r in other.records if r.outcome != "error" and r.key in won]
    return difference(Paired.of(pairs))


def read_changes(file: Path, trials: Collection[int]) -> list[dict[str, float]]:
    """The comparisons in these trials, by their numbers: once each, where a trial was begun again. A torn last line is
    none."""
    if not file.exists():
        return []
    lines = [json.loads(line) for line in file.read_text().split("\n")[:-1]]
    found = {(line["trial"], line["call"]): line["changes"] for line in lines}
    return [changes for (trial, _), changes in sorted(found.items()) if trial in trials]


def _keys(changes: list[dict[str, float]]) -> list[str]:
    return sorted({key for line in changes for key in line})


def _those_it_takes(policy: ChunkPolicy, others: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Without the instructions that the policy refuses."""
    vector = getattr(policy, "vector", None)

    def taken(text: str) -> bool:
        try:
            if vector is not None:
                vector(text)
        except StateVLAError:
            return False
        return True

    return {text: {kind: other for kind, other in told.items() if taken(other)} for text, told in others.items()}


def _give_no_words(policy: ChunkPolicy) -> None:
    """An encoder of words may refuse a text without any; its vectors' origin stands for that."""
    if not isinstance(policy, TrainedPolicy) or policy.text_encoder is None or "" in policy.language:
        return
    try:
        policy.vector("")
    except StateVLAError:
        nothing = np.zeros(policy.obs_spec.language_width, np.float32)
        policy.language[""] = nothing
        policy.conditions[""] = policy.actor.condition(torch.from_numpy(nothing[None]))[0]


def _points(share: float) -> str:
    return f"{100 * share:.0f}"


def _share(value: float | None) -> str:
    return "-" if value is None else percent(value)


def _cells(row: Told) -> list[str]:
    head = [row.kind, KINDS[row.kind]]
    if row.results is None:
        return [*head, "-", "-", row.error, "-", _share(row.change)]
    low, high = row.results.interval
    lost = "-"
    if row.lost is not None:
        lost = f"{_points(row.lost[0])} ({_points(row.lost[1][0])} to {_points(row.lost[1][1])})"
    counts = f"{row.results.successes} / {row.results.trials}"
    interval = f"{percent(low)} to {percent(high)}"
    return [*head, percent(row.results.success), interval, counts, lost, _share(row.change)]
