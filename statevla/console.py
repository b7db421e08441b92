"""Terminal output of the command line: progress, tables for people, one JSON object for scripts.

Everything but the JSON object goes to stderr when JSON is asked for, so that stdout can be parsed.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from statevla.progress_bars import bars, plain_lines
from stores.printable import shown
from stores.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console

WHOLE: Final = 13
"""Letters of a word that a narrow terminal does not break, where there is room."""
MANY: Final = 9
"""Columns of a table that still have room for a word each at 80 letters."""
LISTED: Final = 12
"""Lines of a list that a table shows; ``--json`` gives all."""


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Yield a callback that draws on stderr until the block ends: bars on a terminal, plain lines elsewhere."""
    if sys.stderr.isatty():
        with bars() as progress:
            yield progress
    else:
        yield plain_lines()


def print_json(result: Mapping[str, Any]) -> None:
    """Exactly one JSON object on stdout; NaN and infinity are errors, not invalid JSON."""
    print(json.dumps(result, allow_nan=False))


def print_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[object]], as_json: bool = False,
    console: "Console | None" = None,
) -> None:  # fmt: skip
    """A table on stdout, or on stderr when stdout carries JSON; numbers are right-aligned."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    target = console or Console(stderr=as_json)
    table = Table(title=Text(shown(title), style="table.title"), title_justify="left", show_header=any(header))
    texts = [[shown(name), *(cell_text(row[index]) for row in rows)] for index, name in enumerate(header)]
    for index, (named, width) in enumerate(zip(texts, _widths(texts, target.width), strict=True)):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(Text(named[0]), justify="right" if numeric else "left", overflow="fold", width=width)
    for row in rows:
        table.add_row(*(Text(cell_text(value)) for value in row))  # Text: a "[" in a name is no markup
    target.print(table)


def _widths(columns: Sequence[Sequence[str]], width: int) -> list[int | None]:
    """Of columns of texts, so that no short word is broken: words of up to as many letters as all columns have room
    for, and the rest of the room for the texts that are longest. None: as wide as it likes, all have room. width: of
    the terminal; each column has a border and two spaces beside its text."""
    room = width - 3 * len(columns) - 1
    wanted = [max((len(line) for text in texts for line in text.split("\n")), default=1) for texts in columns]
    if sum(wanted) <= room or room < len(columns):
        return [None] * len(columns)
    lengths = [[len(word) for text in texts for word in text.split()] for texts in columns]
    limits = ([max([1, *(n for n in each if n <= most)]) for each in lengths] for most in range(WHOLE, 0, -1))
    found = next(least for least in limits if sum(least) <= room)
    for _ in range(room - sum(found)):
        found[max(range(len(found)), key=lambda column: wanted[column] - found[column])] += 1
    return list(found)


def cell_text(value: object) -> str:
    """One value for people; what of a text would steer the terminal is escaped."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{shown(name)} {cell_text(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        if all(isinstance(item, int | float) for item in value):
            return ", ".join(map(cell_text, value))
        more = [] if len(value) <= LISTED else [f"… and {len(value) - LISTED} more (--json lists all)"]
        return "\n".join([*map(cell_text, value[:LISTED]), *more])
    return shown(value)


def size_text(count: int) -> str:
    """Bytes for people: 3016246 -> '3.0 MB'."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def print_facts(title: str, result: Mapping[str, Any], console: "Console | None" = None) -> None:
    """A result as tables: one of the single facts, and one for each group that has rows of its own."""
    facts: list[tuple[str, str]] = []
    grouped: list[tuple[str, list[Mapping[str, Any]]]] = []
    for name, value in result.items():
        label = name.replace("_", " ")
        if rows := _rows_of(value):
            grouped.append((label, rows))
        elif name == "bytes":
            facts.append(("size", size_text(value)))
        elif name == "seconds" and isinstance(value, float):
            facts.append(("time", f"{value:.1f} s"))
        elif value not in ([], (), {}, ""):
            facts.append((label, cell_text(value)))
    print_table(title, ("", ""), facts, console=console)
    for label, rows in grouped:
        header = list(dict.fromkeys(name for row in rows for name in row))
        cells = [[row.get(name, "") for name in header] for row in rows[:LISTED]]
        more = "" if len(rows) <= LISTED else f" (the first {LISTED} of {len(rows)}; --json lists all)"
        names = [name.replace("_", " ") for name in header]
        if len(header) > MANY and len(cells) < len(header):  # fields down: side by side they would be letters wide
            cells = [[name, *column] for name, column in zip(names, zip(*cells, strict=True), strict=True)]
            names = [""] * len(cells[0])
        print_table(label + more, names, cells, console=console)


def _rows_of(value: object) -> list[Mapping[str, Any]]:
    """The rows of what is a table of its own: a list of mappings, or a mapping of mappings by name; else nothing."""
    if isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
        return list(value)
    if isinstance(value, Mapping) and value and all(isinstance(item, Mapping) for item in value.values()):
        return [{"name": name, **item} for name, item in value.items()]
    return []


def print_markdown(text: str, console: "Console | None" = None) -> None:
    """Markdown, drawn on a terminal; as it is elsewhere, for a file or another program. What a terminal would obey is
    escaped in both.
    """
    text = shown(text)
    if console is None and not sys.stdout.isatty():
        print(text)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    (console or Console()).print(Markdown(text))


def report(title: str, result: Mapping[str, Any], as_json: bool, markdown: str | None = None) -> None:
    """What a command prints last: one JSON object, or its own Markdown, or tables of the result."""
    if as_json:
        print_json(result)
    elif markdown is not None:
        print_markdown(markdown)
    else:
        print_facts(title, result)
