"""How many simulator workers fit into this machine."""

import os

from statevla.memory import free_gib
from stores.errors import UsageError

WORKER_GIB = 2.4
"""Most memory of one worker process, measured over all suites."""
BESIDE_GIB = 1.0
"""Left to everything else."""


def workers_that_fit(cores: int | None = None) -> int:
    """Workers that memory and cores allow, at least 1.

    cores: to use; None: all of this process.
    """
    cores = cores or len(os.sched_getaffinity(0))
    room = _room(free_gib())
    return max(1, cores if room >= cores else int(room))


def require_room(workers: int) -> None:
    """Raises UsageError for more workers than memory has room for now; one is always let try."""
    free = free_gib()
    room = _room(free)
    if workers <= max(1.0, room):
        return
    raise UsageError(
        f"--workers {workers}: a simulator takes up to {WORKER_GIB} GiB of memory, {BESIDE_GIB:g} GiB are left to "
        f"everything else, and {free:.1f} GiB are free. --workers {max(1, int(room))} fits"
    )


def _room(free: float) -> float:
    return (free - BESIDE_GIB) / WORKER_GIB
