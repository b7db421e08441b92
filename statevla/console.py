"""Terminal output of the command line: progress (bars on a terminal, plain lines elsewhere), tables, one JSON object.

Everything but the JSON object goes to stderr when JSON is asked for, so that stdout can be parsed.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from stores.progress import Progress, ProgressEvent

PLAIN_INTERVAL: Final = 5.0
"""Seconds between plain progress lines of one task."""


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Yield a callback that draws on stderr until the block ends."""
    if sys.stderr.isatty():
        with _bars() as progress:
            yield progress
    else:
        yield _plain_lines()


def _plain_lines() -> Progress:
    last: dict[str, float] = {}

    def update(event: ProgressEvent) -> None:
        now = time.monotonic()
        finished = event.total is not None and event.done >= event.total
        if finished or now - last.get(event.task, float("-inf")) >= PLAIN_INTERVAL:
            last[event.task] = now
            total = "" if event.total is None else f"/{event.total}"
            print(
                f"{event.task}: {event.done}{total} {event.unit} {event.message}".rstrip(), file=sys.stderr, flush=True
            )

    return update


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[message]}", style="dim"),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def update(event: ProgressEvent) -> None:
            if event.task not in tasks:
                tasks[event.task] = bars.add_task(event.task, total=event.total, unit=event.unit, rate="", message="")
            speed = next(task.speed for task in bars.tasks if task.id == tasks[event.task])
            rate = "" if not speed else f"{speed:,.1f}/s"
            bars.update(tasks[event.task], completed=event.done, total=event.total, rate=rate, message=event.message)

        yield update


def print_json(result: Mapping[str, Any]) -> None:
    """Exactly one JSON object on stdout; NaN and infinity are errors, not invalid JSON."""
    print(json.dumps(result, allow_nan=False))


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]], as_json: bool = False) -> None:
    """A table on stdout, or on stderr when stdout carries JSON; numbers are right-aligned."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for index, name in enumerate(header):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    Console(stderr=as_json).print(table)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def size_text(count: int) -> str:
    """Bytes for people: 1536 -> '1.5 KiB'."""
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def report(title: str, result: Mapping[str, Any], as_json: bool, text: str | None = None) -> None:
    """What a command prints last: one JSON object, or `text`, or a table of the flattened result."""
    from statevla.config import flatten

    if as_json:
        print_json(result)
    elif text is not None:
        print(text)
    else:
        print_table(title, ("", ""), list(flatten(result).items()))
