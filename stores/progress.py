"""How long-running library calls tell the command line where they are, without knowing of terminals."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressEvent:
    """`done` of `total` (None: unknown) things called `unit` are finished in `task`; `message` is a short extra."""

    task: str
    done: int
    total: int | None
    unit: str
    message: str = ""


Progress = Callable[[ProgressEvent], None]


def told(progress: Progress | None, task: str, unit: str) -> Callable[[str], None]:
    """Say a line beside `task` before any of its things is done, where somebody listens."""

    def say(message: str) -> None:
        if progress is not None:
            progress(ProgressEvent(task, 0, None, unit, message))

    return say
