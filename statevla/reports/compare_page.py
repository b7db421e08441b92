"""One HTML page of several evaluations of the same trials; films are linked by relative path, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

from statevla.reports.charts import Bar, rate_chart
from statevla.reports.render import markup, render


@dataclass(frozen=True)
class SideBySide:
    """One trial's films, a policy each; None where it was not filmed. Each (relative path, outcome)."""

    caption: str
    films: Sequence[tuple[str, str] | None]


@dataclass(frozen=True)
class ComparePage:
    """policies, pairs: rows of the two tables. names: of the policies, above the films."""

    title: str
    bars: Sequence[Bar]
    policy_columns: Sequence[str]
    policies: Sequence[Sequence[str]]
    pair_columns: Sequence[str]
    pairs: Sequence[Sequence[str]]
    notes: Sequence[str]
    names: Sequence[str]
    trials: Sequence[SideBySide]


def compare_page(page: ComparePage) -> str:
    """The HTML text."""
    return render("compare.html", {**vars(page), "chart": markup(rate_chart(page.bars))})
