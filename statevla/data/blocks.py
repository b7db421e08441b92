"""Pictures: segments of a block are fetched and decoded when a batch first needs them, and gathered from there."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from statevla.data.batch import Batch
from statevla.data.frames import Buffers, Frames, Ints, Part, Table, decoded_bytes, gather
from statevla.data.numbers import Numbers
from statevla.data.prefetch import BatchPlan
from stores.reader import Store


@dataclass(frozen=True)
class OpenBlock:
    """Frames of a block, and the decoding of each of its segments that was asked for. fetching: of what is far."""

    frames: Frames
    decoding: dict[int, Future[None]]
    fetching: dict[int, Future[None]]


class Blocks:
    """Opens blocks and has their segments decoded by `pool`, each when a coming batch first needs it.

    When the whole of `segments` fits in `cache_bytes`, all blocks share one `Frames` that is decoded once; otherwise
    every block has its own, released after use.
    """

    def __init__(self, store: Store, table: Table, segments: Ints, cache_bytes: float, numbers: Numbers | None) -> None:
        self.store, self.table, self.numbers = store, table, numbers
        self.cached = decoded_bytes(table, segments) <= cache_bytes
        self._all = Frames(table, segments) if self.cached else None
        self._done: set[int] = set()

    def open(self, block: Ints, buffers: Buffers, fetching: dict[int, Future[None]]) -> OpenBlock:
        """Room for the segments of `block`, none asked for yet but what is `fetching`."""
        frames = self._all if self._all is not None else Frames(self.table, block, buffers)
        return OpenBlock(frames, {}, fetching)

    def fetch(self, fetching: dict[int, Future[None]], segments: Ints, pool: ThreadPoolExecutor) -> None:
        """Have `segments` brought near, if they are not asked for."""
        for segment in segments.tolist():
            if segment not in fetching and not (self.cached and segment in self._done):
                fetching[segment] = pool.submit(self.store.fetch_segment, segment)

    def ask(self, block: OpenBlock, segments: Ints, pool: ThreadPoolExecutor) -> None:
        """Have `segments` of an open block decoded, if they are not."""
        for segment in segments.tolist():
            if segment not in block.decoding and not (self.cached and segment in self._done):
                block.decoding[segment] = pool.submit(self._load, block, segment)

    def wait(self, block: OpenBlock, segments: Ints) -> None:
        """Until `segments` are decoded. Raises what their decoding raised."""
        for segment in segments.tolist():
            if segment in block.decoding:
                block.decoding[segment].result()

    def _load(self, block: OpenBlock, segment: int) -> None:
        if (fetch := block.fetching.get(segment)) is not None:
            fetch.result()
        block.frames.load(self.store, segment)
        if self.cached:
            self._done.add(segment)


class BlockSupply:
    """A stream's open blocks."""

    def __init__(self, blocks: Blocks, ahead: int) -> None:
        self.blocks, self.ahead = blocks, ahead
        self._buffers = Buffers()
        self._opened: dict[tuple[int, int, int], OpenBlock] = {}
        self._fetching: dict[tuple[int, int, int], dict[int, Future[None]]] = {}

    def fetch(self, plan: BatchPlan, pool: ThreadPoolExecutor) -> None:
        for rows in plan.rows:
            self.blocks.fetch(self._fetching.setdefault(rows.key, {}), rows.segment, pool)

    def ask(self, plan: BatchPlan, pool: ThreadPoolExecutor) -> None:
        for rows in plan.rows:
            if rows.key not in self._opened:
                fetching = self._fetching.setdefault(rows.key, {})
                self._opened[rows.key] = self.blocks.open(rows.block, self._buffers, fetching)
            self.blocks.ask(self._opened[rows.key], rows.segment, pool)

    def batch(self, plan: BatchPlan, pool: ThreadPoolExecutor, pin: bool) -> Batch:
        for rows in plan.rows:
            self.blocks.wait(self._opened[rows.key], rows.segment)
        parts = [Part(self._opened[rows.key].frames, rows.segment, rows.step) for rows in plan.rows]
        return gather(self.blocks.table, parts, ahead=self.ahead, pin=pin, numbers=self.blocks.numbers)

    def release(self, plan: BatchPlan, coming: Iterable[BatchPlan]) -> None:
        still = {rows.key for later in coming for rows in later.rows}
        for rows in plan.rows:
            if rows.key not in still:
                # All that was asked for was of batches that are used up by now: nothing is being decoded into it.
                closed = self._opened.pop(rows.key)
                self._fetching.pop(rows.key, None)
                if not self.blocks.cached:
                    self._buffers.give(closed.frames)
