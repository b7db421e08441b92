"""Runs one function over many tasks: here, in worker processes of this machine, or on a Dask cluster.

The only file that imports Dask, and only when it is asked for. Results must not depend on who ran what: callers get
them as they finish, in no particular order, and a task may run more than once (a worker that dies, a scheduler that
lost an answer), so tasks must be idempotent.
"""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Final, TypeVar

from stores.errors import StateVLAError, UsageError

T = TypeVar("T")
R = TypeVar("R")

RETRIES: Final = 2
"""Times that a task which raised, or whose worker died, is tried again."""
CONNECT_SECONDS: Final = 10


def run_units(
    function: Callable[[T], R],
    tasks: Sequence[tuple[str, T]],
    workers: int = 0,
    scheduler: str | None = None,
) -> Generator[tuple[str, R], None, None]:
    """Yield (name, function(task)) for every (name, task), as they finish.

    workers: 0 runs here, one after the other; N starts N worker processes with one thread each. scheduler: address
    of a Dask scheduler whose workers see the same files. What `function` raises is raised here.

    Raises UsageError when both are given or the scheduler does not answer, StateVLAError when the cluster is lost or
    a task keeps killing its worker.
    """
    if scheduler is not None and workers:
        raise UsageError(f"--workers {workers} and --scheduler {scheduler}: expected one of the two")
    if workers < 0:
        raise UsageError(f"--workers: expected 0 or more, got {workers}")
    if scheduler is None and (workers == 0 or not tasks):
        return ((name, function(task)) for name, task in tasks)
    return _run_dask(function, tasks, workers, scheduler)


def _run_dask(
    function: Callable[[T], R], tasks: Sequence[tuple[str, T]], workers: int, scheduler: str | None
) -> Generator[tuple[str, R], None, None]:
    from distributed import KilledWorker, as_completed
    from distributed.client import FutureCancelledError

    with _client(workers, scheduler) as client:
        futures = {
            client.submit(function, task, key=f"{name}-{number}", pure=False, retries=RETRIES): name
            for number, (name, task) in enumerate(tasks)
        }
        for future in as_completed(list(futures), loop=client.loop):
            name = futures.pop(future)
            try:
                result = future.result()
            except KilledWorker as error:
                raise StateVLAError(
                    f"unit {name}: the worker processes that tried it died ({error.last_worker.address} last): killed, "
                    "out of memory, or crashed by the file. What is finished stays; run the same command again"
                ) from error
            except (FutureCancelledError, TimeoutError, OSError) as error:
                if isinstance(error, OSError) and client.status == "running":
                    raise
                raise StateVLAError(
                    f"unit {name}: the cluster was lost ({error}). What is finished stays; run the same command again"
                ) from error
            yield name, result
            future.release()  # results are kept by the caller, not by the cluster


@contextlib.contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[Any]:
    """A Dask client on `scheduler`, or on a cluster of `workers` processes of its own that ends with it."""
    from distributed import Client

    with contextlib.ExitStack() as stack:
        if scheduler is None:
            scheduler = stack.enter_context(local_cluster(workers))
        _silence()
        try:
            client = Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise UsageError(f"--scheduler {scheduler}: no Dask scheduler answers there ({error})") from error
        yield stack.enter_context(client)


@contextlib.contextmanager
def local_cluster(workers: int) -> Iterator[str]:
    """The scheduler address of `workers` single-threaded processes on this machine, which end with the block."""
    from distributed import LocalCluster

    _silence()
    with tempfile.TemporaryDirectory(prefix="statevla-dask-") as scratch:
        try:
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                # Dask serves health pages in any case: on loopback, at a free port, without the dashboard.
                dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": False},
                worker_dashboard_address="127.0.0.1:0",
                local_directory=scratch,
                silence_logs=logging.CRITICAL,
            )
        except (RuntimeError, OSError) as error:
            raise StateVLAError(f"--workers {workers}: the worker processes did not start: {error}") from error
        with cluster:
            yield str(cluster.scheduler_address)


def _silence() -> None:
    """Dask reports through its logs what is raised here as errors."""
    for logger in ("distributed", "distributed.nanny", "distributed.worker", "distributed.scheduler"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
