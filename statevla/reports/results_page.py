"""One HTML page of a closed-loop evaluation; videos are linked by relative path."""

from collections.abc import Sequence
from dataclasses import dataclass

from statevla.reports.render import render


@dataclass(frozen=True)
class Rate:
    """A success rate and its interval, in [0, 1]; None when nothing was tried."""

    value: float | None
    interval: tuple[float, float]


@dataclass(frozen=True)
class Film:
    """A video beside the page. source: its relative path."""

    source: str
    caption: str
    outcome: str


@dataclass(frozen=True)
class ResultsPage:
    """headline: large, before `about`. rates: drawn at the end of their rows. failed: task, start, outcome, steps,
    message."""

    title: str
    headline: str
    about: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    rates: Sequence[Rate | None]
    facts: Sequence[str]
    films: Sequence[Film]
    failed: Sequence[tuple[str, ...]]


def results_page(page: ResultsPage) -> str:
    """The HTML text."""
    rows = [{"cells": cells, "rate": rate} for cells, rate in zip(page.rows, page.rates, strict=True)]
    return render("results.html", {**vars(page), "rows": rows})
