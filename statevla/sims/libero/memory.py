"""How many simulator workers fit into this machine."""

import os

from statevla.memory import free_gib

WORKER_GIB = 2.4
"""Most memory of one worker process, measured over all suites."""
BESIDE_GIB = 1.0
"""Left to everything else."""


def workers_that_fit(cores: int | None = None) -> int:
    """Workers that memory and cores allow, at least 1.

    cores: to use; None: all of this process.
    """
    cores = cores or len(os.sched_getaffinity(0))
    room = (free_gib() - BESIDE_GIB) / WORKER_GIB
    return max(1, cores if room >= cores else int(room))
