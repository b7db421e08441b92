"""A comparison for people: rows of its tables, Markdown, and the page with the films side by side."""

import os
from pathlib import Path
from typing import Final
from urllib.parse import quote

from statevla.evaluators.compare import Comparison, Pair
from statevla.evaluators.intervals import wilson
from statevla.reports.charts import Bar
from statevla.reports.compare_page import ComparePage, SideBySide, compare_page
from statevla.reports.tables import markdown_table, percent
from stores.disk import durable

POLICY_COLUMNS: Final = (
    "policy", "success", "95% interval", "steps to success", "parameters", "training, min", "ms a call",
)  # fmt: skip
PAIR_COLUMNS: Final = ("first", "second", "both", "first only", "second only", "neither", "difference", "what it says")
JSON: Final = "compare.json"
MARKDOWN: Final = "compare.md"
PAGE: Final = "index.html"


def policy_rows(comparison: Comparison) -> list[list[str]]:
    """Cells of `POLICY_COLUMNS`, in the order the runs were named."""
    rows = []
    for told in comparison.to_dict()["policies"]:
        low, high = told["interval"]
        parameters = told["parameters"]
        rows.append(
            [
                told["name"],
                f"{told['successes']} of {told['trials']}, {percent(told['success'])}",
                f"{percent(low)} to {percent(high)}",
                _number(told["steps_to_success"], 0),
                "-" if parameters is None else f"{parameters:,}",
                _number(told["training_minutes"], 1),
                _number(told["ms_a_call"], 1),
            ]
        )
    return rows


def pair_rows(comparison: Comparison) -> list[list[str]]:
    """Cells of `PAIR_COLUMNS`."""
    return [
        [pair.first, pair.second, *map(str, pair.counts), _difference(pair), pair.verdict] for pair in comparison.pairs
    ]


def to_markdown(comparison: Comparison) -> str:
    """Both tables and the notes."""
    description = comparison.evaluations[0].description
    parts = [
        f"# {description['suite']}, seed {description['seed']}: the same trials",
        markdown_table(POLICY_COLUMNS, policy_rows(comparison)),
        markdown_table(PAIR_COLUMNS, pair_rows(comparison)),
    ]
    notes = "\n".join(f"- {note}." for note in comparison.notes)
    return "\n\n".join([*parts, notes] if notes else parts)


def save(comparison: Comparison, out: Path) -> None:
    """Write ``compare.json``, ``compare.md`` and ``index.html``, which links the evaluations' films."""
    durable.make_dir(out)
    durable.write_json(out / JSON, comparison.to_dict())
    durable.write_text(out / MARKDOWN, to_markdown(comparison) + "\n")
    durable.write_text(out / PAGE, page(comparison, out))


def page(comparison: Comparison, out: Path) -> str:
    """The HTML text; films are linked from `out`."""
    description = comparison.evaluations[0].description
    bars = []
    for each in comparison.evaluations:
        won, tried = sum(each.finished.values()), len(each.finished)
        bars.append(Bar(each.name, won / tried if tried else None, wilson(won, tried), f"{won} of {tried}"))
    return compare_page(
        ComparePage(
            title=f"{description['suite']}: {len(bars)} policies on the same trials",
            bars=bars,
            policy_columns=POLICY_COLUMNS,
            policies=policy_rows(comparison),
            pair_columns=PAIR_COLUMNS,
            pairs=pair_rows(comparison),
            notes=comparison.notes,
            names=[each.name for each in comparison.evaluations],
            trials=_films(comparison, out),
        )
    )


def _films(comparison: Comparison, out: Path) -> list[SideBySide]:
    """Trials that a policy was filmed in, by task and start; of films that somebody removed, nothing."""
    filmed = {
        (each.name, key): each.folder.resolve() / record.video
        for each in comparison.evaluations
        for key, record in each.records.items()
        if record.video and (each.folder / record.video).is_file()
    }
    found = []
    for key in sorted({key for _, key in filmed}):
        films: list[tuple[str, str] | None] = []
        for each in comparison.evaluations:
            film = filmed.get((each.name, key))
            films.append(None if film is None else (_link(film, out), each.records[key].outcome))
        found.append(SideBySide(f"{comparison.evaluations[0].records[key].instruction}, start {key[1]}", films))
    return found


def _link(file: Path, out: Path) -> str:
    """From a page in `out`: what of a name would mean something else in a link is escaped."""
    return quote(Path(os.path.relpath(file, out.resolve())).as_posix())


def _difference(pair: Pair) -> str:
    low, high = pair.interval
    return f"{100 * pair.difference:+z.0f} % ({100 * low:+z.0f} to {100 * high:+z.0f})"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
