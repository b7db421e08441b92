"""Progress on a terminal (bar, count, one time left; the metrics on a line of their own) and in a log (plain lines)."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from stores.printable import shown
from stores.progress import Progress, ProgressEvent

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_INTERVAL: Final = 5.0
"""Seconds between plain progress lines of one task."""

MEGABYTE: Final = 1e6


def counts_text(event: ProgressEvent) -> str:
    """``3/12 episodes``; bytes in MB."""
    if event.unit == "B":
        total = "" if event.total is None else f"/{event.total / MEGABYTE:.1f}"
        return f"{event.done / MEGABYTE:.1f}{total} MB"
    return f"{event.done:,}{'' if event.total is None else f'/{event.total:,}'} {event.unit}"


def left_text(event: ProgressEvent, seconds: float) -> str:
    """``1:05 left`` from the pace since the start of the task; empty where it cannot be told or nothing is left."""
    if event.total is None or not 0 < event.done < event.total:
        return ""
    minutes, rest = divmod(round(seconds * (event.total - event.done) / event.done), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left" if hours else f"{minutes}:{rest:02} left"


def plain_lines() -> Progress:
    """Lines on stderr, at most one in `PLAIN_INTERVAL` for each task, and the last; all that is said."""
    last: dict[str, float] = {}
    began: dict[str, tuple[float, int]] = {}

    def update(event: ProgressEvent) -> None:
        if event.said:
            print(f"{event.task}: {shown(event.message)}", file=sys.stderr, flush=True)
            return
        now = time.monotonic()
        start, done = began.setdefault(event.task, (now, event.done))
        finished = event.total is not None and event.done >= event.total
        if finished or now - last.get(event.task, float("-inf")) >= PLAIN_INTERVAL:
            last[event.task] = now
            left = left_text(_since(event, done), now - start)
            parts = (counts_text(event), shown(event.message), left and f"| {left}")
            print(f"{event.task}: {' '.join(part for part in parts if part)}", file=sys.stderr, flush=True)

    return update


def _since(event: ProgressEvent, first: int) -> ProgressEvent:
    """The event counted from what was there at the start: a resumed run's pace is that of its own steps."""
    total = None if event.total is None else event.total - first
    return ProgressEvent(event.task, event.done - first, total, event.unit)


@contextmanager
def bars(console: "Console | None" = None) -> Iterator[Progress]:
    """A bar for each task until the block ends, and below each its last message, cut at the width of the terminal; what
    is said stands above them, whole.
    """
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Bars(RichProgress):
        def get_renderables(self) -> Iterator[RenderableType]:
            for task in self.tasks:
                yield self.make_tasks_table([task])
                if task.fields["message"] and not task.finished:
                    yield Text(f"  {task.fields['message']}", style="dim", no_wrap=True, overflow="ellipsis")

    columns = (
        TextColumn("[bold]{task.description}", markup=True),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[counts]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Bars(*columns, console=console or Console(stderr=True), expand=True) as drawn:
        tasks: dict[str, Any] = {}

        def update(event: ProgressEvent) -> None:
            if event.said:
                drawn.console.print(Text(f"{event.task}: {shown(event.message)}"))
                return
            if event.task not in tasks:
                tasks[event.task] = drawn.add_task(event.task, total=event.total, counts="", message="")
            fields: dict[str, Any] = {"counts": counts_text(event), "message": shown(event.message)}
            drawn.update(tasks[event.task], completed=event.done, total=event.total, **fields)

        yield update
