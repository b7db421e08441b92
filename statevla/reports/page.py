"""One self-contained HTML page of a run: no link, pictures inside, light and dark; its only script moves the films.

Plain rows and pictures in; everything is escaped (`statevla.reports.templates`).
"""

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statevla.reports.charts import Bar, Dot, Series, legend, line_chart, rate_chart, scatter
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
    """A rollout as JPEG frames, `every` ms each. outcome: ``success``, ``failure`` or ``error``."""

    frames: tuple[bytes, ...]
    every: int
    caption: str
    outcome: str


@dataclass(frozen=True)
class Curves:
    """Lines over training steps, all in one chart. note: what to see in it."""

    title: str
    series: tuple[Series, ...]
    note: str


@dataclass(frozen=True)
class Traces:
    """Predicted and demonstrated actions of one episode. panels: SVG, a dimension each. still: those never moving."""

    instruction: str
    panels: tuple[str, ...]
    still: tuple[str, ...]


@dataclass(frozen=True)
class Demonstration:
    """One recorded episode: its first picture and an SVG of its actions."""

    png: bytes
    instruction: str
    trace: str


@dataclass(frozen=True)
class Scatter:
    """States on their two main components, coloured by task and by progress. shares: of the variance, of each."""

    by_task: tuple[Dot, ...]
    by_progress: tuple[Dot, ...]
    tasks: tuple[str, ...]
    first_share: float
    second_share: float
    episodes: int


@dataclass(frozen=True)
class PolicyRow:
    """A policy or control in closed loop, and what it is.

    steps: mean of the successful episodes. latency: p50 and p95 of a call, ms. tasks: (successes, trials,
    bounds of the 95 % interval) by instruction.
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
    tasks: Mapping[str, tuple[int, int, float, float]]


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
    commands: tuple[str, ...]
    traces: Traces
    demonstrations: tuple[Demonstration, ...]
    moving: tuple[str, ...]
    states: Scatter | None


def write_report(path: Path, report: Report) -> None:
    """Write the page as one HTML file."""
    durable.make_dir(path.parent)
    durable.write_text(path, page(report))


def page(report: Report) -> str:
    """The HTML text."""
    steps = [(step.name, step.detail, f"{step.seconds:.1f} s") for step in report.steps]
    curves = [
        {"title": c.title, "note": c.note, "chart": markup(line_chart(c.series, "optimizer step", "loss"))}
        for c in report.curves
    ]
    return render(
        "report.html",
        {
            **vars(report),
            **_closed_loop(report.policies),
            "curves": curves,
            "horizon": markup(line_chart(report.offline.horizon, "step of the chunk", "squared error")),
            "trace_legend": markup(legend(["demonstration", "policy"])),
            "trace_panels": [markup(panel) for panel in report.traces.panels],
            "moving_legend": markup(legend(report.moving)),
            "shown": [{**vars(d), "trace": markup(d.trace)} for d in report.demonstrations],
            "videos": [_film(video) for video in sorted(report.videos, key=lambda v: v.outcome == "success")],
            "clouds": _clouds(report.states),
            "steps": [*steps, ("all", "", f"{sum(step.seconds for step in report.steps):.1f} s")],
        },
    )


def _film(video: Video) -> dict[str, Any]:
    """What the template shows of a film: its frames as data for the script, the last one for who runs none."""
    frames = [f"data:image/jpeg;base64,{b64encode(frame).decode()}" for frame in video.frames]
    return {**vars(video), "sources": frames, "seconds": len(frames) * video.every / 1000}


def _clouds(states: Scatter | None) -> dict[str, Any] | None:
    if states is None:
        return None
    axes = (f"first component, {percent(states.first_share)}", f"second component, {percent(states.second_share)}")
    return {
        "tasks": markup(legend(states.tasks) + scatter(states.by_task, *axes)),
        "progress": markup(scatter(states.by_progress, *axes)),
        "episodes": states.episodes,
    }


def _closed_loop(policies: tuple[PolicyRow, ...]) -> dict[str, Any]:
    bars = [Bar(p.name, p.success, p.interval, f"{p.successes} of {p.trials}") for p in policies]
    tasks = sorted({task for policy in policies for task in policy.tasks})
    return {
        "rates": markup(rate_chart(bars)),
        "policy_columns": ("policy", "success", "95 % interval", "errors", "steps to success", "call p50 / p95, ms"),
        "policy_rows": [
            (
                f"{p.name}: {p.what}",
                _unbroken(percent(p.success)),
                f"{_unbroken(percent(p.interval[0]))} to {_unbroken(percent(p.interval[1]))}",
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
    if task not in policy.tasks:
        return "-"
    successes, trials, low, high = policy.tasks[task]
    return f"{successes} of {trials} ({_unbroken(percent(low))} to {_unbroken(percent(high))})"


def _unbroken(text: str) -> str:
    """With spaces at which no line ends."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")
