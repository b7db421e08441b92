"""What the batches of a split are made of: pictures of segments, or a view in their place, and further views beside."""

import functools
from collections.abc import Generator, Iterator

from statevla.config import DataConfig
from statevla.data.batch import Batch
from statevla.data.blocks import Blocks, BlockSupply
from statevla.data.frames import Ints, Table
from statevla.data.machine import cache_bytes, loader_threads
from statevla.data.numbers import Numbers
from statevla.data.prefetch import BatchPlan, Position, Supply, stream
from statevla.data.rows import BesideSupply, RowSupply
from statevla.data.views import View
from stores.reader import Store


class Source:
    """Makes the batches of a split, for one or more streams of them.

    ahead: steps to the later observation of a transition (`Needs.ahead`). view: what observations are made of; None,
    as at first: the pictures of the segments. beside: further views, which come with every observation.
    """

    def __init__(self, store: Store, table: Table, segments: Ints, counts: Ints, data: DataConfig, ahead: int) -> None:
        self.store, self.table, self.data, self.ahead = store, table, data, ahead
        self.segments, self.counts = segments, counts
        self.view: View | None = None
        self.beside: tuple[View, ...] = ()

    @functools.cached_property
    def numbers(self) -> Numbers:
        """Robot states and actions by frame number."""
        return Numbers(self.store, self.data.lanes * self.data.block_segments)

    @functools.cached_property
    def _blocks(self) -> Blocks:
        numbers = self.numbers if self.table.chunk > self.table.store_chunk else None
        held = self.data.lanes * self.data.block_segments
        return Blocks(self.store, self.table, self.segments, self.counts, held, cache_bytes(self.data), numbers)

    def supply(self) -> Supply:
        """A new stream's way to its batches."""
        if self.view is None:
            supply: Supply = BlockSupply(self._blocks, self.ahead)
        else:
            supply = RowSupply(self.table, self.numbers, self.view, self.ahead)
        return BesideSupply(supply, self.table, self.beside) if self.beside else supply

    def stream(self, plans: Iterator[BatchPlan]) -> Generator[tuple[Position, Batch], None, None]:
        """The batches of `plans`, with as many threads (and requests to a far store) as the configuration says."""
        requests = self.data.remote_requests if self.store.is_far else 0
        return stream(plans, self.supply(), threads=loader_threads(self.data), requests=requests)
