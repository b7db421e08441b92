"""How fast a run trains, measured between two lines of its metrics."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Speed:
    """samples_per_s: rows of global batches. data_wait: share of the time that the loop waited for batches, 0 to 1."""

    samples_per_s: float
    data_wait: float


class Stopwatch:
    """Runs from when it is made; `lap` reads it and starts it again."""

    def __init__(self, step: int) -> None:
        self._step, self._since, self._waited = step, time.monotonic(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for a batch."""
        before = time.monotonic()
        yield
        self._waited += time.monotonic() - before

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training: its time does not count."""
        before = time.monotonic()
        yield
        self._since += time.monotonic() - before

    def lap(self, step: int, batch_size: int) -> Speed:
        """Since the last lap, which ended at an earlier step than `step`."""
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        speed = Speed((step - self._step) * batch_size / seconds, self._waited / seconds)
        self._step, self._since, self._waited = step, now, 0.0
        return speed
