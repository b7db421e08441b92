"""Assembling planned batches ahead of the trainer: threads fetch and decode, one more gathers.

Legend: L lanes.
"""

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import torch

from statevla.data.batch import Batch
from statevla.data.frames import Frames, Ints, Part, Table, decoded_bytes, gather
from stores.reader import Store

AHEAD_BATCHES: Final = 16
"""Segments of this many coming batches are fetched early. RAM holds L blocks and the few that begin within them."""

READY_BATCHES: Final = 2
"""Assembled batches that may wait for the trainer."""

GIB: Final = 2**30


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


@dataclass(frozen=True)
class BatchPlan:
    """What one batch holds, and where the run stands after it."""

    after: Position
    rows: tuple[Rows, ...]


@dataclass(frozen=True)
class OpenBlock:
    """Frames of a block, and the decoding of each of its segments that was asked for."""

    frames: Frames
    decoding: dict[int, Future[None]]


class Blocks:
    """Opens blocks and has their segments decoded by `pool`, each when a coming batch first needs it.

    When the whole of `segments` fits in `cache_gib`, all blocks share one `Frames` that is decoded once; otherwise
    every block has its own, released after use.
    """

    def __init__(self, store: Store, table: Table, segments: Ints, cache_gib: float) -> None:
        self.store, self.table = store, table
        self.cached = decoded_bytes(table, segments) <= cache_gib * GIB
        self._all = Frames(table, segments) if self.cached else None
        self._done: set[int] = set()

    def open(self, block: Ints) -> OpenBlock:
        """Room for the segments of `block`, none asked for yet."""
        return OpenBlock(self._all if self._all is not None else Frames(self.table, block), {})

    def ask(self, block: OpenBlock, segments: Ints, pool: ThreadPoolExecutor) -> None:
        """Have `segments` of an open block decoded, if they are not."""
        for segment in segments.tolist():
            if segment not in block.decoding and not (self.cached and segment in self._done):
                block.decoding[segment] = pool.submit(self._load, block.frames, segment)

    def wait(self, block: OpenBlock, segments: Ints) -> None:
        """Until `segments` are decoded. Raises what their decoding raised."""
        for segment in segments.tolist():
            if segment in block.decoding:
                block.decoding[segment].result()

    def _load(self, frames: Frames, segment: int) -> None:
        frames.load(self.store, segment)
        if self.cached:
            self._done.add(segment)


@dataclass(frozen=True)
class _Failed:
    """An error of the assembling thread on its way to the consumer."""

    error: BaseException


def stream(
    plans: Iterator[BatchPlan], blocks: Blocks, *, threads: int, with_next: bool
) -> Generator[tuple[Position, Batch], None, None]:
    """Assemble `plans` in order, decoding ahead with `threads` threads; the batches do not depend on their number.

    One more thread requests blocks, gathers, and hands over at most `READY_BATCHES`. Its errors are raised here.
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
        try:
            for item in _assemble(plans, blocks, pool, with_next):
                hand_over(item)
                if stop.is_set():
                    return
            hand_over(None)
        except BaseException as error:  # handed to the consumer, which raises it
            hand_over(_Failed(error))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

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


def _assemble(
    plans: Iterator[BatchPlan], blocks: Blocks, pool: ThreadPoolExecutor, with_next: bool
) -> Iterator[tuple[Position, Batch]]:
    pin = torch.cuda.is_available()
    coming: deque[BatchPlan] = deque()
    opened: dict[tuple[int, int, int], OpenBlock] = {}
    while True:
        while len(coming) <= AHEAD_BATCHES and (plan := next(plans, None)) is not None:
            coming.append(plan)
            for rows in plan.rows:
                if rows.key not in opened:
                    opened[rows.key] = blocks.open(rows.block)
                blocks.ask(opened[rows.key], rows.segment, pool)
        if not coming:
            return
        plan = coming.popleft()
        for rows in plan.rows:
            blocks.wait(opened[rows.key], rows.segment)
        parts = [Part(opened[rows.key].frames, rows.segment, rows.step) for rows in plan.rows]
        batch = gather(blocks.table, parts, with_next=with_next, pin=pin)
        still = {rows.key for later in coming for rows in later.rows}
        for rows in plan.rows:
            if rows.key not in still:
                del opened[rows.key]
        del parts
        yield plan.after, batch
