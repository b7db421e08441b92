"""How fast something went."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """samples: that were taken, in seconds by the clock and of the processor (of this process, all threads)."""

    samples: int
    seconds: float
    processor: float


def timed(run: Callable[[], int]) -> Pace:
    """Of `run`, which says how many samples it took."""
    start, worked = time.perf_counter(), time.process_time()
    samples = run()
    return Pace(samples, time.perf_counter() - start, time.process_time() - worked)
