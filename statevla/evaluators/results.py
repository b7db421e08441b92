"""Success in closed loop with intervals, in any suite: as JSON for scripts, Markdown for text, a page for people."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from statevla.evaluators.intervals import wilson
from statevla.evaluators.trials import Record, RunDescription
from statevla.policies.checkpoint_controls import CONTROLS
from statevla.reports.results_page import Film, Rate, ResultsPage, results_page
from statevla.reports.tables import markdown_table, percent
from stores.disk import durable
from stores.made_by import told

JSON: Final = "results.json"
MARKDOWN: Final = "results.md"
PAGE: Final = "index.html"
COLUMNS: Final = ("task", "success", "95 % interval", "successes / trials", "errors")


@dataclass(frozen=True)
class TaskResult:
    """Closed-loop outcomes of one task. ``success`` is ``successes / trials``; errors are no trials."""

    success: float | None
    successes: int
    trials: int
    errors: int
    interval: tuple[float, float]


@dataclass(frozen=True)
class Latency:
    """Wall-clock milliseconds of one policy call, which plans for one world."""

    p50_ms: float
    p95_ms: float
    calls: int


@dataclass(frozen=True)
class Results:
    """Outcomes of an evaluation.

    policy: what it is called. identity: its hash. success: share of ``trials``, None without any. trials: episodes that
    ended in success or failure. errors: episodes that the simulator did not survive: no fault of the policy, counted
    nowhere else, run again on resume. interval: Wilson's, 95 %. success_over_tasks: mean of the tasks' rates, which
    papers report. steps: mean length of the successful episodes. per_task, instructions: by task name. seconds and
    steps_run: of this run, which may have resumed an earlier one; steps_per_second: both divided, all workers together.
    trained_steps: optimizer steps behind the policy; None of a control. made_by: how the demonstrations of its store
    were made, and how many so (`stores.made_by`). notes: what must be known to read the numbers. control: which one
    stands in the checkpoint's place (`statevla.policies.checkpoint_controls`), if one does.
    """

    suite: str
    policy: str
    identity: str
    success: float | None
    success_over_tasks: float | None
    successes: int
    trials: int
    interval: tuple[float, float]
    errors: int
    steps: float | None
    per_task: dict[str, TaskResult]
    instructions: dict[str, str]
    latency: Latency | None
    seconds: float
    steps_run: int
    steps_per_second: float | None
    settings: dict[str, Any]
    records: tuple[Record, ...]
    trained_steps: int | None = None
    made_by: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    control: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        plain: dict[str, Any] = asdict(self)
        plain["interval"] = list(self.interval)
        plain["records"] = list(plain["records"])
        plain["notes"] = list(plain["notes"])
        for task in plain["per_task"].values():
            task["interval"] = list(task["interval"])
        return plain

    def to_markdown(self) -> str:
        """Title, table by task, and what was run."""
        facts = "\n".join(f"- {line}" for line in self.facts())
        return "\n\n".join([f"# {self.suite}: {self.policy}", markdown_table(COLUMNS, self.rows()), facts])

    def rows(self) -> list[list[str]]:
        """Cells of the table: a row a task, then all."""
        rows = [[self.instructions[name], *_cells(result)] for name, result in self.per_task.items()]
        whole = TaskResult(self.success, self.successes, self.trials, self.errors, self.interval)
        return [*rows, ["all", *_cells(whole)]]

    def facts(self) -> list[str]:
        """What was run and how long it took, a sentence each."""
        settings = self.settings
        starts = sorted({record.start for record in self.records})
        facts = [
            *([] if self.control is None else [f"A control: {CONTROLS[self.control]}."]),
            *(f"{note}." for note in self.notes),
            f"Policy {self.identity[:12]}, seed {settings['seed']}. Executed: {_executed(settings)}; at most "
            f"{settings['max_steps']} steps after {settings['settle_steps']} of settling.",
            f"Initial states (or demonstrations) {_ranges(starts)}.",
            *([] if (made := told(self.made_by)) is None else [f"The store it was trained on has {made}."]),
            *([f"Not as usual: {json.dumps(settings['conditions'])}."] if settings.get("conditions") else []),
            "Versions: " + ", ".join(f"{package} {version}" for package, version in settings["versions"].items()) + ".",
        ]
        if self.steps_per_second is not None:
            facts.append(
                f"This run: {self.steps_run} steps, {self.seconds:.0f} s, {self.steps_per_second:.1f} steps/s."
            )
        if self.latency is not None:
            facts.append(
                f"Policy call: p50 {self.latency.p50_ms:.1f} ms, p95 {self.latency.p95_ms:.1f} ms, "
                f"{self.latency.calls} calls."
            )
        if self.errors:
            facts.append(f"{self.errors} episodes ended in a simulator error; the same command runs them again.")
        return facts

    def page(self) -> str:
        """As one HTML page; videos are linked by relative path."""
        rates: list[Rate | None] = [Rate(r.success, r.interval) for r in self.per_task.values()]
        return results_page(
            ResultsPage(
                title=f"{self.suite}: {self.policy}",
                headline=percent(self.success),
                about=f"of {self.trials} trials (95 % interval {percent(self.interval[0])} to "
                f"{percent(self.interval[1])}; {self.errors} errors)",
                columns=COLUMNS,
                rows=self.rows(),
                rates=[*rates, None],
                facts=self.facts(),
                films=[Film(r.video, f"{r.instruction}, start {r.start}", r.outcome) for r in self.records if r.video],
                failed=[
                    (r.instruction, str(r.start), r.outcome, str(r.steps), r.message)
                    for r in self.records
                    if r.outcome != "success"
                ],
            )
        )

    def save(self, out: Path) -> None:
        """Writes ``results.json``, ``results.md`` and ``index.html`` below ``out``."""
        durable.write_json(out / JSON, self.to_dict())
        durable.write_text(out / MARKDOWN, self.to_markdown() + "\n")
        durable.write_text(out / PAGE, self.page())


def summarize(
    name: str,
    description: RunDescription,
    records: Sequence[Record],
    instructions: dict[str, str],
    milliseconds: Sequence[float],
    *,
    seconds: float,
    steps_run: int,
    trained_steps: int | None = None,
    made_by: Mapping[str, int] | None = None,
    notes: tuple[str, ...] = (),
) -> Results:
    """Results of ``records``; tasks in the order of ``instructions`` (task name -> text). name: the policy's."""
    per_task = {task: _count([r for r in records if r.task == task]) for task in instructions}
    per_task = {task: result for task, result in per_task.items() if result.trials + result.errors}
    whole = _count(records)
    rates = [result.success for result in per_task.values() if result.success is not None]
    lengths = [record.steps for record in records if record.outcome == "success"]
    latency = None
    if milliseconds:
        p50, p95 = np.percentile(np.asarray(milliseconds), [50, 95])
        latency = Latency(float(p50), float(p95), len(milliseconds))
    settings = asdict(description)
    return Results(
        suite=settings.pop("suite"),
        policy=name,
        identity=settings.pop("policy"),
        success=whole.success,
        success_over_tasks=float(np.mean(rates)) if rates else None,
        successes=whole.successes,
        trials=whole.trials,
        interval=whole.interval,
        errors=whole.errors,
        steps=float(np.mean(lengths)) if lengths else None,
        per_task=per_task,
        instructions=dict(instructions),
        latency=latency,
        seconds=round(seconds, 3),
        steps_run=steps_run,
        steps_per_second=steps_run / seconds if steps_run else None,
        settings=settings,
        records=tuple(records),
        trained_steps=trained_steps,
        made_by=dict(made_by or {}),
        notes=notes,
        control=settings.pop("control"),
    )


def _count(records: Sequence[Record]) -> TaskResult:
    outcomes = Counter(record.outcome for record in records)
    trials = outcomes["success"] + outcomes["failure"]
    return TaskResult(
        success=outcomes["success"] / trials if trials else None,
        successes=outcomes["success"],
        trials=trials,
        errors=outcomes["error"],
        interval=wilson(outcomes["success"], trials),
    )


def _cells(result: TaskResult) -> list[str]:
    low, high = result.interval
    return [
        percent(result.success),
        f"{percent(low)} to {percent(high)}",
        f"{result.successes} / {result.trials}",
        str(result.errors),
    ]


def _executed(settings: dict[str, Any]) -> str:
    text = "its own actions" if settings["replan"] is None else f"{settings['replan']} actions of each chunk"
    if settings["ensemble"] is not None:
        text += f", temporal ensembling {settings['ensemble']}"
    if settings["vote"]:
        text += ", by vote"
    return text + (f", {settings['latency_steps']} steps late" if settings["latency_steps"] else "")


def _ranges(numbers: list[int]) -> str:
    """``[0, 1, 2, 5]`` -> ``0-2, 5``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts) or "none"
