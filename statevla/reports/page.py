"""One self-contained HTML page of a run: no script, no link, pictures inside, light and dark.

Everything that comes from outside (instructions, file names, messages) is escaped.
"""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

from statevla.evaluators.results import OfflineResults, RolloutResults, percent
from statevla.reports.charts import Bar, Series, line_chart, rate_chart
from stores.disk import durable

STYLE: Final = """
:root { color-scheme: light dark; --ground: #fbfaf7; --card: #ffffff; --ink: #1d2430; --dim: #667080; --line: #e2e4e8;
  --s0: #1f7a5c; --s1: #b4532a; --s2: #3565b0; --s3: #8a6d1f; --good: #1f7a5c; --bad: #b3382c; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171c; --card: #1c2027; --ink: #e8ebf0; --dim: #98a2b0;
  --line: #323843; --s0: #4fc08d; --s1: #e8875a; --s2: #7aa8ee; --s3: #d9b44a; --good: #4fc08d; --bad: #f0796c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 32px 20px 64px; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; } h2 { font-size: 20px; margin: 44px 0 12px; }
h3 { font-size: 15px; margin: 0 0 8px; } p { margin: 0 0 12px; max-width: 74ch; } .dim { color: var(--dim); }
.verdict { border-left: 5px solid var(--bad); background: var(--card); padding: 12px 16px; border-radius: 4px; }
.verdict.ok { border-color: var(--good); } .verdict p { margin: 0; }
.grid-of { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); }
.wide { grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); }
figure, .card { margin: 0; padding: 12px; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  overflow-x: auto; }
figure img { display: block; width: 100%; border-radius: 4px; } figcaption { margin-top: 8px; font-size: 14px; }
.outcome { font-weight: 600; } .success { color: var(--good); } .failure, .error { color: var(--bad); }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 10px; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--dim); font-weight: 600; } td + td, th + th { text-align: right; } td + td { white-space: nowrap; }
.text td, .text th { text-align: left; white-space: normal; }
.text td { overflow-wrap: anywhere; }
.chart { width: 100%; height: auto; font-size: 12px; } .chart .dim { fill: var(--dim); }
.chart .ink { fill: var(--ink); }
.chart .grid { stroke: var(--line); } .whisker { stroke: var(--ink); stroke-width: 1.6; fill: none; }
pre { font-size: 13px; overflow-x: auto; margin: 0; }
"""


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
class PolicyRollouts:
    """A policy or control in closed loop, and what it is."""

    name: str
    what: str
    results: RolloutResults


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
    offline: OfflineResults
    policies: tuple[PolicyRollouts, ...]
    videos: tuple[Video, ...]
    configuration: str
    machine: tuple[tuple[str, str], ...]


def write_report(path: Path, report: Report) -> None:
    """Write the page as one HTML file."""
    durable.make_dir(path.parent)
    durable.write_text(path, page(report))


def page(report: Report) -> str:
    """The HTML text."""
    total = sum(step.seconds for step in report.steps)
    steps = [(step.name, step.detail, f"{step.seconds:.1f} s") for step in report.steps]
    sections = [
        _section("Closed loop", _closed_loop(report.policies)),
        _section("Rollouts", _gallery([_video(video) for video in report.videos])) if report.videos else "",
        _section("Against held-out demonstrations", _offline(report.offline)),
        _section("Training", _gallery([_curves(curves) for curves in report.curves], "wide")),
        _section("What the policy sees", _gallery([_picture(picture) for picture in report.pictures])),
        _section("What was done", _card(_table(("step", "result", "time"), [*steps, ("all", "", f"{total:.1f} s")]))),
        _section("Store", _card(_table(("", ""), report.store, "text"))),
        _section("Configuration", _card(f"<pre>{escape(report.configuration)}</pre>")),
        _section("Machine and versions", _card(_table(("", ""), report.machine, "text"))),
    ]
    verdict = f'<div class="verdict{" ok" if report.ok else ""}"><p>{escape(report.verdict)}</p></div>'
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>{escape(report.title)}</h1><p>{escape(report.about)}</p>{verdict}\n{''.join(sections)}</body></html>\n"
    )


def _closed_loop(policies: tuple[PolicyRollouts, ...]) -> str:
    bars = [
        Bar(p.name, p.results.success, p.results.interval, f"{p.results.successes} of {p.results.trials}")
        for p in policies
    ]
    rows = []
    for policy in policies:
        result, latency = policy.results, policy.results.latency
        low, high = result.interval
        rows.append(
            (
                f"{policy.name}: {policy.what}",
                percent(result.success),
                f"{percent(low)} to {percent(high)}",
                str(result.errors),
                "-" if result.steps is None else f"{result.steps:.0f}",
                "-" if latency is None else f"{latency.p50_ms:.0f} / {latency.p95_ms:.0f}",
            )
        )
    headers = ("policy", "success", "95 % interval", "errors", "steps to success", "call p50 / p95, ms")
    tasks = sorted({task for policy in policies for task in policy.results.per_task})
    by_task = [(task, *(_of_trials(policy.results, task) for policy in policies)) for task in tasks]
    return (
        _card(rate_chart(bars))
        + _card(_table(headers, rows))
        + _card(_table(("instruction", *(policy.name for policy in policies)), by_task))
    )


def _of_trials(results: RolloutResults, task: str) -> str:
    if task not in results.per_task:
        return "-"
    return f"{results.per_task[task].successes} / {results.per_task[task].trials}"


def _offline(results: OfflineResults) -> str:
    dimensions = [
        (name, f"{results.mse[name]:.4g}", f"{results.mse_normalized_by_dimension[name]:.4g}")
        if name in results.mse_normalized_by_dimension
        else (name, f"{results.mse[name]:.4g}", "-")
        for name in results.mse
    ]
    horizon = [(k, value) for k, value in enumerate(results.mse_normalized_by_horizon) if value is not None]
    policy = Series("policy", tuple(float(k) for k, _ in horizon), tuple(value for _, value in horizon))
    mean = Series("mean action", policy.steps, (results.baseline_mean_action_mse_normalized,) * len(policy.steps))
    lead = f"{results.split} split: {results.episodes} episodes, {results.frames} frames."
    summary = [(row[0], row[1]) for row in results.summary_rows()]
    return f'<p class="dim">{escape(lead)}</p>' + _gallery(
        [
            _card(_table(("measure", "value"), summary)),
            _card(_table(("dimension", "MSE, action units", "MSE, normalized"), dimensions)),
            _card("<h3>MSE, normalized, by chunk step</h3>" + line_chart([policy, mean], "step of the chunk")),
        ],
        "wide",
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>\n"


def _card(body: str) -> str:
    return f'<div class="card">{body}</div>'


def _gallery(items: list[str], style: str = "") -> str:
    return f'<div class="grid-of {style}">{"".join(items)}</div>'


def _curves(curves: Curves) -> str:
    caption = f'<figcaption class="dim">{escape(curves.note)}</figcaption>'
    return f"<figure><h3>{escape(curves.title)}</h3>{line_chart(list(curves.series), 'step')}{caption}</figure>"


def _picture(picture: Picture) -> str:
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>"
    return f"<figure>{_image('png', picture.png, picture.caption)}{caption}</figure>"


def _video(video: Video) -> str:
    outcome = f'<span class="outcome {escape(video.outcome)}">{escape(video.outcome)}</span>'
    return (
        f"<figure>{_image('gif', video.gif, video.caption)}"
        f"<figcaption>{escape(video.caption)}: {outcome}</figcaption></figure>"
    )


def _image(kind: str, data: bytes, alt: str) -> str:
    return f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{b64encode(data).decode()}">'


def _table(headers: tuple[str, ...], rows: Sequence[tuple[str, ...]], style: str = "") -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in headers) if any(headers) else ""
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="{style}">{f"<tr>{head}</tr>" if head else ""}{body}</table>'
