"""Success in LIBERO with intervals, as JSON for scripts, Markdown for text and a page for people."""

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from statevla.evaluators.intervals import wilson
from statevla.evaluators.libero.trials import Record, RunDescription
from statevla.evaluators.results import Latency, TaskResult, markdown_table, percent
from stores.disk import durable

_FAILED_HEAD = "<tr><th>task</th><th>start</th><th>outcome</th><th>steps</th><th>message</th></tr>"
JSON, MARKDOWN, PAGE = "results.json", "results.md", "index.html"


@dataclass(frozen=True)
class LiberoResults:
    """Outcomes of an evaluation.

    success: share of ``trials``, None without any. trials: episodes that ended in success or failure. errors: episodes
    that the simulator did not survive: no fault of the policy, counted nowhere else, run again on resume.
    interval: Wilson's, 95 %. success_over_tasks: mean of the tasks' rates, which papers report. seconds and steps_run:
    of this run, which may have resumed an earlier one; steps_per_second: both divided, all workers together.
    """

    suite: str
    policy: str
    success: float | None
    success_over_tasks: float | None
    successes: int
    trials: int
    interval: tuple[float, float]
    errors: int
    per_task: dict[str, TaskResult]
    instructions: dict[str, str]
    latency: Latency | None
    seconds: float
    steps_run: int
    steps_per_second: float | None
    settings: dict[str, Any]
    records: tuple[Record, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        plain: dict[str, Any] = asdict(self)
        plain["interval"] = list(self.interval)
        plain["records"] = list(plain["records"])
        for task in plain["per_task"].values():
            task["interval"] = list(task["interval"])
        return plain

    def to_markdown(self) -> str:
        """Title, table by task, and what was run."""
        return "\n\n".join(
            [
                f"# {self.suite}: {self.policy}",
                markdown_table(("task", "success", "95 % interval", "successes / trials", "errors"), self.rows()),
                "\n".join(f"- {line}" for line in self.facts()),
            ]
        )

    def rows(self) -> list[list[str]]:
        """Cells of the table: a row a task, then all."""
        rows = [[self.instructions[name], *_cells(result)] for name, result in self.per_task.items()]
        whole = TaskResult(self.success, self.successes, self.trials, self.errors, self.interval)
        return [*rows, ["all", *_cells(whole)]]

    def facts(self) -> list[str]:
        """What was run and how long it took, a sentence each."""
        settings = self.settings
        horizon = "whole chunks" if settings["replan"] is None else f"{settings['replan']} actions of a chunk"
        smoothing = "" if settings["ensemble"] is None else f", temporal ensembling {settings['ensemble']}"
        starts = sorted({record.start for record in self.records})
        facts = [
            f"Executed: {horizon}{smoothing}; at most {settings['max_steps']} steps "
            f"after {settings['settle_steps']} of settling.",
            f"Initial states (or demonstrations) {_ranges(starts)}.",
            "Versions: " + ", ".join(f"{package} {version}" for package, version in settings["versions"].items()) + ".",
        ]
        if self.steps_per_second is not None:
            facts.append(
                f"This run: {self.steps_run} steps, {self.seconds:.0f} s, {self.steps_per_second:.1f} steps/s."
            )
        if self.latency is not None:
            facts.append(
                f"Policy call: p50 {self.latency.p50_ms:.1f} ms, p95 {self.latency.p95_ms:.1f} ms, "
                f"{self.latency.calls} calls, up to {self.latency.batch} trials a call."
            )
        if self.errors:
            facts.append(f"{self.errors} episodes ended in a simulator error; the same command runs them again.")
        return facts


def summarize(
    description: RunDescription,
    records: Sequence[Record],
    instructions: dict[str, str],
    milliseconds: Sequence[float],
    *,
    batch: int,
    seconds: float,
    steps_run: int,
) -> LiberoResults:
    """Results of ``records``; tasks in the order of ``instructions`` (task name -> text)."""
    per_task = {name: _count([r for r in records if r.task == name]) for name in instructions}
    per_task = {name: result for name, result in per_task.items() if result.trials + result.errors}
    whole = _count(records)
    rates = [result.success for result in per_task.values() if result.success is not None]
    latency = None
    if milliseconds:
        p50, p95 = np.percentile(np.asarray(milliseconds), [50, 95])
        latency = Latency(float(p50), float(p95), len(milliseconds), batch)
    return LiberoResults(
        suite=description.suite,
        policy=description.policy,
        success=whole.success,
        success_over_tasks=float(np.mean(rates)) if rates else None,
        successes=whole.successes,
        trials=whole.trials,
        interval=whole.interval,
        errors=whole.errors,
        per_task=per_task,
        instructions=dict(instructions),
        latency=latency,
        seconds=round(seconds, 3),
        steps_run=steps_run,
        steps_per_second=steps_run / seconds if steps_run else None,
        settings=asdict(description),
        records=tuple(records),
    )


def save(results: LiberoResults, out: Path) -> None:
    """Writes ``results.json``, ``results.md`` and ``index.html`` below ``out``."""
    durable.write_json(out / JSON, results.to_dict())
    durable.write_text(out / MARKDOWN, results.to_markdown() + "\n")
    durable.write_text(out / PAGE, page(results))


def page(results: LiberoResults) -> str:
    """The results as one HTML page; videos are linked by relative path."""
    head = "".join(f"<th>{cell}</th>" for cell in ("task", "success", "95 % interval", "successes / trials", "errors"))
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + f"<td>{_bar(result)}</td></tr>"
        for row, result in zip(results.rows(), [*results.per_task.values(), None], strict=True)
    )
    facts = "".join(f"<li>{html.escape(fact)}</li>" for fact in results.facts())
    clips = "".join(
        f'<figure><img loading="lazy" src="{html.escape(r.video)}" alt="{r.outcome}"><figcaption>'
        f"{html.escape(results.instructions[r.task])}, start {r.start}: {r.outcome} after {r.steps} steps"
        "</figcaption></figure>"
        for r in results.records
        if r.video
    )
    failed = "".join(
        f"<tr><td>{html.escape(results.instructions[r.task])}</td><td>{r.start}</td><td>{r.outcome}</td>"
        f"<td>{r.steps}</td><td><pre>{html.escape(r.message)}</pre></td></tr>"
        for r in results.records
        if r.outcome != "success"
    )
    outcomes = Counter(r.outcome for r in results.records)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(results.suite)}: {html.escape(results.policy)}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1c2430 }}
h1 {{ font-size: 1.5rem }} h2 {{ font-size: 1.1rem; margin-top: 2rem }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #dde2e8 }}
.big {{ font-size: 2.4rem; font-weight: 600 }} pre {{ margin: 0; white-space: pre-wrap; font-size: .75rem }}
figure {{ display: inline-block; margin: .5rem; width: 28rem; max-width: 100% }} figure img {{ width: 100% }}
figcaption {{ font-size: .85rem; color: #55606e }} svg {{ width: 9rem; height: .9rem }}
</style></head><body>
<h1>{html.escape(results.suite)}: {html.escape(results.policy)}</h1>
<p><span class="big">{percent(results.success)}</span> of {results.trials} trials
(95 % interval {percent(results.interval[0])} to {percent(results.interval[1])}; {outcomes["error"]} errors)</p>
<table><tr>{head}<th></th></tr>{body}</table>
<ul>{facts}</ul>
{"<h2>Videos</h2>" + clips if clips else ""}
{f"<h2>Without success</h2><table>{_FAILED_HEAD}{failed}</table>" if failed else ""}
</body></html>
"""


def _bar(result: TaskResult | None) -> str:
    """Rate and interval as a small picture."""
    if result is None or result.success is None:
        return ""
    low, high = (100 * bound for bound in result.interval)
    return (
        '<svg viewBox="0 0 100 10" preserveAspectRatio="none"><rect width="100" height="10" fill="#eef1f5"/>'
        f'<rect width="{100 * result.success:.1f}" height="10" fill="#3a7bd5"/>'
        f'<rect x="{low:.1f}" y="4" width="{high - low:.1f}" height="2" fill="#1c2430"/></svg>'
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


def _ranges(numbers: list[int]) -> str:
    """``[0, 1, 2, 5]`` -> ``0-2, 5``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts) or "none"
