"""Runs one function over many tasks: here, in worker processes of this machine, or on a Dask cluster.

The only file that imports Dask, and only when it is asked for. Results must not depend on who ran what: callers get
them as they finish, in no particular order, and a task may run more than once (a worker that dies, a scheduler that
lost an answer), so tasks must be idempotent.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import queue
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Final, TypeVar

from stores.errors import StateVLAError, UsageError

T = TypeVar("T")
R = TypeVar("R")

RETRIES: Final = 2
"""Times that a task which raised, or whose worker died, is tried again."""
CONNECT_SECONDS: Final = 10
IN_FLIGHT: Final = 256
"""Tasks that the scheduler knows at once."""
PATIENCE_SECONDS: Final = 10.0
MAX_ALONE: Final = 6
"""Waits of `PATIENCE_SECONDS` in a row that end with no worker there, before giving up."""


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
    from distributed import Future

    with _client(workers, scheduler) as client:
        waiting = iter(enumerate(tasks))
        futures: dict[Future, str] = {}
        # Dask's wait() for the first of many asks after all of them, every time: with results coming in between, that
        # left the driver's memory full of holes (150 MB for the 256 units in flight).
        finished: queue.SimpleQueue[Future] = queue.SimpleQueue()
        patience = _Patience(client)
        while True:
            for number, (name, task) in itertools.islice(waiting, IN_FLIGHT - len(futures)):
                future = client.submit(function, task, key=f"{name}-{number}", pure=False, retries=RETRIES)
                futures[future] = name
                future.add_done_callback(finished.put)
            if not futures:
                return
            try:
                future = finished.get(timeout=PATIENCE_SECONDS)
            except queue.Empty:
                with _lost(client, next(iter(futures.values()))):
                    patience.waited()
                continue
            name = futures.pop(future)
            with _lost(client, name):
                result = _result(future, patience)
            yield name, result
            future.release()  # results are kept by the caller, not by the cluster


class _Patience:
    """Counts waits for nothing, as long as no worker is there."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._alone = 0

    def waited(self) -> None:
        """`PATIENCE_SECONDS` have passed. Raises StateVLAError when that was once too often without a worker."""
        self._alone = 0 if self._client.scheduler_info()["workers"] else self._alone + 1
        if self._alone >= MAX_ALONE:
            raise StateVLAError(
                f"no worker has been there for {self._alone * PATIENCE_SECONDS:g} seconds: killed, out of memory, or "
                "never started. What is finished stays; run the same command again"
            )

    def rewarded(self) -> None:
        """Something came."""
        self._alone = 0


def _result(future: Any, patience: _Patience) -> Any:
    """The result of a finished future. It may have died with the worker that held it: then it is made again, if there
    is another worker.
    """
    while True:
        try:
            result = future.result(timeout=PATIENCE_SECONDS)
        except TimeoutError:
            if future.status == "error":
                raise
            patience.waited()
        else:
            patience.rewarded()
            return result


@contextlib.contextmanager
def _lost(client: Any, name: str) -> Iterator[None]:
    """Say in our words what it means when a worker or the cluster died while `name` was being made."""
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError
    from distributed.comm import CommClosedError

    try:
        yield
    except KilledWorker as error:
        raise StateVLAError(
            f"unit {name}: the worker processes that tried it died ({error.last_worker.address} last): killed, "
            "out of memory, or crashed by the file. What is finished stays; run the same command again"
        ) from error
    except (FutureCancelledError, asyncio.CancelledError, TimeoutError, OSError) as error:
        # A task's own OSError; that of a connection comes before the client knows that the cluster is gone.
        if isinstance(error, OSError) and not isinstance(error, CommClosedError) and client.status == "running":
            raise
        raise StateVLAError(
            f"unit {name}: the cluster was lost ({error}). What is finished stays; run the same command again"
        ) from error


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
    import dask
    from distributed import LocalCluster

    _silence()
    # Nobody looks at the samples of its profiler, for which a worker stops a hundred times a second.
    quiet = dask.config.set({"distributed.worker.profile.enabled": False})
    with tempfile.TemporaryDirectory(prefix="statevla-dask-") as scratch, _same_environment(), quiet:
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


@contextlib.contextmanager
def _same_environment() -> Iterator[None]:
    """Put the environment back. Dask sets its workers' variables in this process to start them, and of two workers that
    start at once leaves some: a later child trains at half the speed with its MALLOC_TRIM_THRESHOLD_.
    """
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _silence() -> None:
    """Dask reports through its logs what is raised here as errors."""
    for logger in ("distributed", "distributed.nanny", "distributed.worker", "distributed.scheduler"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
