"""How long-running library calls tell the command line where they are, without knowing of terminals."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressEvent:
    """`done` of `total` (None: unknown) things called `unit` are finished in `task`; `message` is a short extra.

    said: `message` is a sentence that must be read, which nothing later repeats: it is shown whatever came before it,
    and moves no bar.
    """

    task: str
    done: int
    total: int | None
    unit: str
    message: str = ""
    said: bool = False


Progress = Callable[[ProgressEvent], None]


def told(progress: Progress | None, task: str, unit: str) -> Callable[[str], None]:
    """Say a line beside `task` before any of its things is done, where somebody listens."""

    def say(message: str) -> None:
        if progress is not None:
            progress(ProgressEvent(task, 0, None, unit, message, said=True))

    return say
