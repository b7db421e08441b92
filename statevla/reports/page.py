"""One self-contained HTML page of a run: no script, no link, pictures inside, light and dark.

Plain rows and pictures in; everything is escaped (`statevla.reports.templates`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statevla.reports.charts import Bar, Series, line_chart, rate_chart
from statevla.reports.render import markup, render
from statevla.reports.tables import percent
from stores.disk import durable


@dataclass(frozen=True)
class ReportStep:
    """What was done, how long it took, and what came out."""

    name: str
    seconds: float
    detail: str


@dataclass(frozen=True)
class Picture:
    """A PNG and what it shows."""

    png: bytes
    caption: str


@dataclass(frozen=True)
class Video:
    """An animated GIF of a rollout. outcome: ``success``, ``failure`` or ``error``."""

    gif: bytes
    caption: str
    outcome: str


@dataclass(frozen=True)
class Curves:
    """Lines over training steps, all in one chart."""

    title: str
    series: tuple[Series, ...]
    note: str


@dataclass(frozen=True)
class PolicyRow:
    """A policy or control in closed loop, and what it is.

    steps: mean of the successful episodes. latency: p50 and p95 of a call, ms. tasks: (successes, trials) by
    instruction.
    """

    name: str
    what: str
    success: float | None
    interval: tuple[float, float]
    successes: int
    trials: int
    errors: int
    steps: float | None
    latency: tuple[float, float] | None
    tasks: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class OfflineRows:
    """Predicted against demonstrated chunks. lead: what was compared. horizon: lines over the steps of a chunk."""

    lead: str
    summary: tuple[tuple[str, str], ...]
    dimensions: tuple[tuple[str, str, str], ...]
    horizon: tuple[Series, ...]


@dataclass(frozen=True)
class Report:
    """Everything on the page, in its order. Rows of facts are (name, value)."""

    title: str
    about: str
    ok: bool
    verdict: str
    steps: tuple[ReportStep, ...]
    pictures: tuple[Picture, ...]
    store: tuple[tuple[str, str], ...]
    curves: tuple[Curves, ...]
    offline: OfflineRows
    policies: tuple[PolicyRow, ...]
    videos: tuple[Video, ...]
    configuration: str
    machine: tuple[tuple[str, str], ...]


def write_report(path: Path, report: Report) -> None:
    """Write the page as one HTML file."""
    durable.make_dir(path.parent)
    durable.write_text(path, page(report))


def page(report: Report) -> str:
    """The HTML text."""
    steps = [(step.name, step.detail, f"{step.seconds:.1f} s") for step in report.steps]
    curves = [
        {"title": c.title, "note": c.note, "chart": markup(line_chart(list(c.series), "step"))} for c in report.curves
    ]
    return render(
        "report.html",
        {
            **vars(report),
            **_closed_loop(report.policies),
            "curves": curves,
            "horizon": markup(line_chart(list(report.offline.horizon), "step of the chunk")),
            "steps": [*steps, ("all", "", f"{sum(step.seconds for step in report.steps):.1f} s")],
        },
    )


def _closed_loop(policies: tuple[PolicyRow, ...]) -> dict[str, Any]:
    bars = [Bar(p.name, p.success, p.interval, f"{p.successes} of {p.trials}") for p in policies]
    tasks = sorted({task for policy in policies for task in policy.tasks})
    return {
        "rates": markup(rate_chart(bars)),
        "policy_columns": ("policy", "success", "95 % interval", "errors", "steps to success", "call p50 / p95, ms"),
        "policy_rows": [
            (
                f"{p.name}: {p.what}",
                percent(p.success),
                f"{percent(p.interval[0])} to {percent(p.interval[1])}",
                str(p.errors),
                "-" if p.steps is None else f"{p.steps:.0f}",
                "-" if p.latency is None else f"{p.latency[0]:.0f} / {p.latency[1]:.0f}",
            )
            for p in policies
        ],
        "task_columns": ("instruction", *(policy.name for policy in policies)),
        "task_rows": [(task, *(_of_trials(policy, task) for policy in policies)) for task in tasks],
    }


def _of_trials(policy: PolicyRow, task: str) -> str:
    return f"{policy.tasks[task][0]} / {policy.tasks[task][1]}" if task in policy.tasks else "-"
