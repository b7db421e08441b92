"""Pictures: segments are fetched and decoded when a batch first needs them, gathered from there, and let go of after
their last row.
"""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from statevla.data.batch import Batch, ObservationBatch
from statevla.data.frames import Ints, Table, assemble
from statevla.data.numbers import Numbers
from statevla.data.prefetch import BatchPlan
from statevla.data.slots import Slots, decoded_bytes, slots_of
from stores.reader import Store

Key = tuple[int, int, int]


class Blocks:
    """What the streams of a split share: when the whole of `segments` fits in `cache_bytes`, it is decoded once, and
    kept.

    counts: int64 [segments], rows of each in a block. held: segments that a stream's blocks hold at once, at most.
    numbers: where the actions are to come from when the segments' own chunks are too short.
    """

    def __init__(
        self,
        store: Store,
        table: Table,
        segments: Ints,
        counts: Ints,
        held: int,
        cache_bytes: float,
        numbers: Numbers | None,
    ) -> None:
        self.store, self.table, self.segments, self.held, self.numbers = store, table, segments, held, numbers
        self.counts = np.zeros(len(table.steps), np.int64)
        self.counts[segments] = counts
        self.cached = decoded_bytes(table, segments) <= cache_bytes
        self.whole: Slots | None = None
        self.done: set[int] = set()
        if self.cached:
            self.whole = Slots(table, len(segments))
            for segment in segments.tolist():
                self.whole.take(segment)

    def slots(self, rows: int) -> Slots:
        """For one stream of batches of `rows`."""
        if self.whole is not None:
            return self.whole
        return Slots(self.table, min(len(self.segments), slots_of(self.held, rows)))


class BlockSupply:
    """One stream. A segment is held from when it is asked for until the last of its rows in the block was used, or the
    block was; one that is in the next epoch's block too by then stays.
    """

    def __init__(self, blocks: Blocks, ahead: int) -> None:
        self.blocks, self.ahead = blocks, ahead
        self._slots: Slots | None = None
        self._left: dict[Key, dict[int, int]] = {}
        """Of every open block, the segments it holds, with the rows that are still to come."""
        self._holders: dict[int, int] = {}
        self._fetching: dict[int, Future[None] | None] = {}
        """Of every segment that is to come near, or be read from the disk, before it is asked for; None: no waiting."""
        self._decoding: dict[int, Future[None] | None] = {}
        """Of every segment that is asked for, or was; None: a batch has waited for it."""

    def fetch(self, plan: BatchPlan, pool: ThreadPoolExecutor) -> None:
        for rows in plan.rows:
            for segment in rows.used:
                if segment not in self._fetching and not self._asked(segment):
                    self._fetching[segment] = self._fetch(segment, pool)

    def room(self, plan: BatchPlan) -> bool:
        if self.blocks.cached:
            return True
        slots = self._held(_length(plan))
        return len({segment for rows in plan.rows for segment in rows.used} - self._holders.keys()) <= slots.free

    def ask(self, plan: BatchPlan, pool: ThreadPoolExecutor) -> None:
        slots = self._held(_length(plan))
        for rows in plan.rows:
            left = self._left.setdefault(rows.key, {})
            for segment in rows.used:
                if not self.blocks.cached and segment not in left:
                    left[segment] = int(self.blocks.counts[segment])
                    self._holders[segment] = self._holders.get(segment, 0) + 1
                    if self._holders[segment] == 1:
                        slots.take(segment)
                if not self._asked(segment):
                    fetched = self._fetching.pop(segment, None)
                    self._decoding[segment] = pool.submit(self._load, slots, segment, fetched)

    def batch(self, plan: BatchPlan, pool: ThreadPoolExecutor, pin: bool) -> Batch:
        segment = np.concatenate([rows.segment for rows in plan.rows])
        step = np.concatenate([rows.step for rows in plan.rows])
        for rows in plan.rows:
            for asked in rows.used:
                if (decoding := self._decoding.get(asked)) is not None:
                    decoding.result()
                    self._decoding[asked] = None
        slots = self._held(len(segment))
        batch = gather(self.blocks.table, slots, segment, step, ahead=self.ahead, pin=pin, numbers=self.blocks.numbers)
        return batch.pin() if pin else batch

    def release(self, plan: BatchPlan, coming: Iterable[BatchPlan]) -> None:
        if self.blocks.cached:
            return
        still = {rows.key for later in coming for rows in later.rows}
        for rows in plan.rows:
            left = self._left[rows.key]
            for segment, used in rows.used.items():
                left[segment] -= used
                if left[segment] <= 0:
                    self._let_go(segment)
        for key in {rows.key for rows in plan.rows} - still:
            for segment, count in self._left.pop(key).items():
                if count > 0:  # rows that the epoch leaves out, or that were used before this stream began
                    self._let_go(segment)

    def _asked(self, segment: int) -> bool:
        return segment in self._decoding or segment in self.blocks.done

    def _let_go(self, segment: int) -> None:
        self._holders[segment] -= 1
        if not self._holders[segment]:
            del self._holders[segment], self._decoding[segment]
            self._held(0).give(segment)

    def _held(self, rows: int) -> Slots:
        if self._slots is None:
            self._slots = self.blocks.slots(rows)
        return self._slots

    def _fetch(self, segment: int, pool: ThreadPoolExecutor) -> Future[None] | None:
        """Bring it near by one of `pool`; of a disk it is only asked. It is read where it is decoded: read by another
        thread, it would be in another core's cache by then, and that thread would hold what Python's threads share.
        """
        store = self.blocks.store
        if store.is_far:
            return pool.submit(store.fetch_segment, segment)
        store.fetch_segment(segment)
        return None

    def _load(self, slots: Slots, segment: int, fetched: Future[None] | None) -> None:
        if fetched is not None:
            fetched.result()
        slots.load(segment, self.blocks.store.read_segment(segment))
        if self.blocks.cached:
            self.blocks.done.add(segment)


def _length(plan: BatchPlan) -> int:
    return sum(rows.segment.size for rows in plan.rows)


def gather(
    table: Table, slots: Slots, segment: Ints, step: Ints, *, ahead: int, pin: bool, numbers: Numbers | None = None
) -> Batch:
    """One batch of steps in segments that are in `slots`. ahead: as `assemble`. pin: pictures in page-locked memory."""
    obs_row, action_row = slots.rows(segment, step)

    def observe(later: Ints, language: torch.Tensor) -> ObservationBatch:
        at = obs_row + later
        return ObservationBatch(slots.pictures(at, pin), torch.from_numpy(slots.robot_state[at]), language)

    if numbers is not None:
        chunk, is_pad = numbers.actions(table.rows(segment, step), table.last_rows(segment), table.chunk)
    else:
        at = action_row[:, None] + np.arange(table.chunk, dtype=np.int64)
        chunk, is_pad = slots.action[at], slots.is_pad[at]
    return assemble(table, segment, step, chunk, is_pad, observe, ahead)
