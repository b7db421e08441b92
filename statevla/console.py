"""Terminal output of the command line: progress, tables for people, one JSON object for scripts.

Everything but the JSON object goes to stderr when JSON is asked for, so that stdout can be parsed.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from statevla.progress_bars import bars, plain_lines
from stores.printable import shown
from stores.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console

WHOLE: Final = 24
"""Letters of a word that a narrow terminal does not break, where there is room."""
_PIECES: Final = re.compile(r"[^\s/]*/+|[^\s/]+")
"""Of a text, what may stand on a line of its own: words, and the parts of a path with the slash behind them."""
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
    texts = [[shown(name), *(cell_text(row[index]) for row in rows)] for index, name in enumerate(header)]
    if any(header) and _is_turned(texts, target.width):
        header, rows = [""] * len(texts[0]), texts
        texts = [["", *column] for column in zip(*rows, strict=True)]
    table = Table(title=Text(shown(title), style="table.title"), title_justify="left", show_header=any(header))
    widths = _widths(texts, target.width)
    for index, (named, width) in enumerate(zip(texts, widths, strict=True)):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(Text(named[0]), justify="right" if numeric else "left", overflow="fold", width=width)
    for row in zip(*(_folded(column, width) for column, width in zip(texts, widths, strict=True)), strict=True):
        table.add_row(*map(Text, row))  # Text: a "[" in a name is no markup
    target.print(table)


def _room(columns: int, width: int) -> int:
    """Letters of a terminal of `width` that are left for text: each column has a border and two spaces beside its."""
    return width - 3 * columns - 1


def _wanted(texts: Sequence[str]) -> int:
    return max((len(line) for text in texts for line in text.split("\n")), default=1)


def _is_turned(columns: Sequence[Sequence[str]], width: int) -> bool:
    """Whether a table would break words, and would break none with its fields down."""

    def is_whole(texts: Sequence[Sequence[str]]) -> bool:
        longest = (max((len(piece) for text in each for piece in _PIECES.findall(text)), default=1) for each in texts)
        return sum(longest) <= _room(len(texts), width)

    return not is_whole(columns) and is_whole(list(zip(*columns, strict=True)))


def _widths(columns: Sequence[Sequence[str]], width: int) -> list[int | None]:
    """Of columns of texts. No short word is broken, and the first column, which says what a row is of, not at all where
    there is room: words of up to as many letters as all columns have room for, and the rest of the room for the texts
    that are longest. None: as wide as it likes, all have room. width: of the terminal."""
    room = _room(len(columns), width)
    wanted = [_wanted(texts) for texts in columns]
    if sum(wanted) <= room or room < len(columns):
        return [None] * len(columns)
    lengths = [[len(piece) for text in texts for piece in _PIECES.findall(text)] for texts in columns]
    limit = max(1, min(room // 2, room - len(columns) + 1))
    word, line = min(max(lengths[0], default=1), limit), min(wanted[0], limit)
    tries = [(line, WHOLE), *((word, most) for most in range(WHOLE, 0, -1))]
    found = next(
        least
        for first, most in tries
        if sum(least := [first, *(max([1, *(n for n in each if n <= most)]) for each in lengths[1:])]) <= room
    )
    for _ in range(room - sum(found)):
        found[max(range(len(found)), key=lambda column: wanted[column] - found[column])] += 1
    return list(found)


def _folded(texts: Sequence[str], width: int | None) -> list[str]:
    """The texts of a column below its header; in paths that are wider than it, with line breaks behind slashes."""
    if width is None:
        return list(texts[1:])

    def fold(word: re.Match[str]) -> str:
        lines = [""]
        for piece in _PIECES.findall(word[0]) if len(word[0]) > width else [word[0]]:
            if lines[-1] and len(lines[-1]) + len(piece) > width:
                lines.append("")
            lines[-1] += piece
        return "\n".join(lines)

    return [re.sub(r"\S*/\S*", fold, text) for text in texts[1:]]


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
    """A result as tables: one of the single facts, and one for each group that has rows of its own. Facts with a path
    that has no room in a table come below it, on lines of their own.
    """
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
    from rich.console import Console

    target = console or Console()
    room = _room(2, target.width) - max((len(shown(label)) for label, _ in facts), default=0)
    below = [(label, text) for label, text in facts if any("/" in word and len(word) > room for word in text.split())]
    print_table(title, ("", ""), [fact for fact in facts if fact not in below], console=target)
    for label, text in below:  # whole, so that they can be copied
        lines = text.split("\n")
        _print_line(f"{label}: {text}" if len(lines) == 1 else "\n  ".join([f"{label}:", *lines]), target)
    for label, rows in grouped:
        header = list(dict.fromkeys(name for row in rows for name in row))
        cells = [[row.get(name, "") for name in header] for row in rows[:LISTED]]
        more = "" if len(rows) <= LISTED else f" (the first {LISTED} of {len(rows)}; --json lists all)"
        names = [name.replace("_", " ") for name in header]
        if len(header) > MANY and len(cells) < len(header):  # fields down: side by side they would be letters wide
            cells = [[name, *column] for name, column in zip(names, zip(*cells, strict=True), strict=True)]
            names = [""] * len(cells[0])
        print_table(label + more, names, cells, console=target)


def _print_line(text: str, console: "Console") -> None:
    """Not wrapped, whatever the width."""
    from rich.text import Text

    console.print(Text(shown(text)), soft_wrap=True)


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
