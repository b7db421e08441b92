"""Assembling planned batches ahead of the trainer: threads fetch and decode, one more gathers.

How is a `Supply`'s business: `statevla.data.blocks` for pictures, `statevla.data.rows` for what is stored by frame.

Legend: L lanes.
"""

import queue
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol, runtime_checkable

import torch

from statevla.data.batch import Batch
from statevla.data.frames import Ints

AHEAD_BATCHES: Final = 16
"""Segments of this many coming batches are decoded early, as far as there is room for them."""

FETCH_BATCHES: Final = 4
"""Of this many more the bytes are asked of the disk, so that no decoding waits for it."""

FAR_BATCHES: Final = 96
"""Where the store is far: what this many coming batches need is brought near, into the cache on this disk."""

READY_BATCHES: Final = 2
"""Assembled batches that may wait for the trainer."""


@dataclass(frozen=True)
class Position:
    """Where a run stands: batches of `epoch` before number `batch` are used up."""

    epoch: int
    batch: int


@dataclass(frozen=True)
class Rows:
    """Rows of one batch out of one block. key: the block. block: its segments. segment, step: int64 [rows]."""

    key: tuple[int, int, int]
    block: Ints
    segment: Ints
    step: Ints

    @cached_property
    def used(self) -> dict[int, int]:
        """How many rows each segment has here, in rising order of segments. Few rows: NumPy would take longer."""
        return dict(sorted(Counter(self.segment.tolist()).items()))


@dataclass(frozen=True)
class BatchPlan:
    """What one batch holds, and where the run stands after it."""

    after: Position
    rows: tuple[Rows, ...]


@runtime_checkable
class Supply(Protocol):
    """One stream's way to its batches; asked by one thread only."""

    def fetch(self, plan: BatchPlan, pool: ThreadPoolExecutor) -> None:
        """`plan` comes later: ask the disk for what it needs, or have `pool` bring near what is far. Before `ask`."""

    def room(self, plan: BatchPlan) -> bool:
        """Whether `plan` can be asked for beside what is held. Always, where nothing that was asked for is held."""

    def ask(self, plan: BatchPlan, pool: ThreadPoolExecutor) -> None:
        """`plan` is coming: have `pool` get what takes long."""

    def batch(self, plan: BatchPlan, pool: ThreadPoolExecutor, pin: bool) -> Batch:
        """The batch of `plan`, which was asked for."""

    def release(self, plan: BatchPlan, coming: Iterable[BatchPlan]) -> None:
        """`plan` is used up; let go of what none of `coming` needs."""


@dataclass(frozen=True)
class _Failed:
    """An error of the assembling thread on its way to the consumer."""

    error: BaseException


def stream(
    plans: Iterator[BatchPlan], supply: Supply, *, threads: int, requests: int = 0
) -> Generator[tuple[Position, Batch], None, None]:
    """Assemble `plans` in order, decoding ahead with `threads` threads; the batches do not depend on their number.

    requests: of a store that is far, how many may be on their way at once; 0: it is near. One more thread asks,
    gathers, and hands over at most `READY_BATCHES`. Errors of all threads are raised here.
    """
    ready: queue.Queue[tuple[Position, Batch] | _Failed | None] = queue.Queue(READY_BATCHES)
    stop = threading.Event()

    def hand_over(item: tuple[Position, Batch] | _Failed | None) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def work() -> None:
        pool = ThreadPoolExecutor(threads, thread_name_prefix="statevla-decode")
        fetchers = ThreadPoolExecutor(requests or threads, thread_name_prefix="statevla-fetch")
        ahead = FAR_BATCHES if requests else FETCH_BATCHES
        try:
            for item in _assemble(_fetched(plans, supply, fetchers, ahead), supply, pool):
                hand_over(item)
                if stop.is_set():
                    return
            hand_over(None)
        except BaseException as error:  # handed to the consumer, which raises it
            hand_over(_Failed(error))
        finally:
            fetchers.shutdown(wait=False, cancel_futures=True)
            pool.shutdown(wait=True, cancel_futures=True)
            fetchers.shutdown(wait=True)

    worker = threading.Thread(target=work, name="statevla-assemble", daemon=True)
    worker.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, _Failed):
                raise item.error
            yield item
    finally:
        stop.set()
        worker.join()


def _fetched(
    plans: Iterator[BatchPlan], supply: Supply, fetchers: ThreadPoolExecutor, ahead: int
) -> Iterator[BatchPlan]:
    """The same plans, each after what the next `ahead` need was asked for."""
    later: deque[BatchPlan] = deque()
    while True:
        while len(later) <= ahead and (plan := next(plans, None)) is not None:
            later.append(plan)
            supply.fetch(plan, fetchers)
        if not later:
            return
        yield later.popleft()


def _assemble(plans: Iterator[BatchPlan], supply: Supply, pool: ThreadPoolExecutor) -> Iterator[tuple[Position, Batch]]:
    pin = torch.cuda.is_available()
    coming: deque[BatchPlan] = deque()
    waiting: BatchPlan | None = None
    while True:
        while len(coming) <= AHEAD_BATCHES:
            waiting = next(plans, None) if waiting is None else waiting
            if waiting is None or (coming and not supply.room(waiting)):
                break
            supply.ask(waiting, pool)
            coming.append(waiting)
            waiting = None
        if not coming:
            return
        plan = coming.popleft()
        batch = supply.batch(plan, pool, pin)
        supply.release(plan, coming if waiting is None else [*coming, waiting])
        yield plan.after, batch
