"""From a store and an order to batches, in one process: threads read and decode, array gathers assemble the batches.

Images are encoded on disk and uint8 in memory. They are resized and normalized on the training device, in the model.

Legend: B rows of a global batch, L lanes, M segments in a block, K actions of a chunk.
"""

import contextlib
import itertools
from collections.abc import Generator, Iterator
from typing import Final

import numpy as np

from statevla.config import DataConfig
from statevla.data.batch import Batch
from statevla.data.frames import Ints, Table, make_table
from statevla.data.goals import Goals
from statevla.data.labelled import choose_labelled
from statevla.data.needs import NOW, Needs
from statevla.data.order import (
    LanePlan,
    Order,
    block_transitions,
    lane_blocks,
    permutation,
    plan_epoch,
    plan_order,
    rank_lanes,
)
from statevla.data.oversample import Repeated, repeat_changes, repeat_segments
from statevla.data.prefetch import BatchPlan, Position, Rows
from statevla.data.source import Source
from stores.errors import UsageError
from stores.reader import Store

START: Final = Position(0, 0)

PASS: Final = 4
"""Purpose of the permutations of `pass_plans`, beside those of `statevla/data/order.py`."""


def split_segments(store: Store, table: Table, split: str, *, with_next_only: bool) -> tuple[Ints, Ints]:
    """Segments of a split, and how many transitions to take from each: int64 [segments] twice, all of them above 0.

    Left out are segments of episodes that the table leaves out (`choose_labelled`) and, with `with_next_only`, a step
    that no observation follows (`Needs.require`). Raises UsageError when the split is empty.
    """
    counts = np.minimum(table.steps, table.observations - 1) if with_next_only else table.steps
    if table.labelled is not None and not table.keeps_unlabelled:
        counts = np.where(table.labelled[table.episode], counts, 0)
    codes, names = store.episode_columns.codes("split")
    in_split = np.array([name == split for name in names], dtype=np.bool_)[codes]
    chosen = np.flatnonzero(in_split[table.episode] & (counts > 0)).astype(np.int64)
    if chosen.size == 0:
        known = sorted(names)
        raise UsageError(f"{store.root}: no transitions in split {split!r}; the store has {', '.join(known)}")
    return chosen, counts[chosen]


class SegmentLoader:
    """Endless training batches in the order of `statevla/data/order.py`, from any position.

    The batches are the same for any number of threads. needs: what they hold; where it asks for no later observation,
    `next_obs` is `obs` and `has_next` is false. rank, world: the rank reads its own lanes only, of B rows its share.
    Raises UsageError where the split is empty or smaller than a batch, or where ranks cannot share the lanes.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        batch_size: int,
        seed: int,
        data: DataConfig,
        chunk: int,
        needs: Needs,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.store, self.data, self.needs = store, data, needs
        table = make_table(store, chunk, seed if data.shuffle_instructions else None)
        self.table = choose_labelled(store, table, data, seed)
        self.segments, counts = split_segments(store, self.table, split, with_next_only=needs.require)
        self.repeated = None
        if data.oversample_gripper > 1:
            if not store.spec.binary:
                raise UsageError(
                    f"data.oversample_gripper: {data.oversample_gripper} draws the steps more often at which a binary "
                    f"dimension of the action changes, but {store.root} has no binary dimension; leave it out, or say "
                    "which one it is and ingest again (statevla ingest --spec FILE)"
                )
            first, episode = self.table.first_step, self.table.episode
            self.repeated = repeat_changes(store, self.segments, first, episode, counts, chunk, data.oversample_gripper)
        elif data.labelled_times > 1 and self.table.labelled is not None:
            wanted = self.table.labelled[self.table.episode[self.segments]]
            every = len(self.table.episode)
            self.repeated = repeat_segments(self.segments, counts, wanted, data.labelled_times, every)
        if self.repeated is not None:
            counts = self.repeated.counts
        self.order = plan_order(
            counts, seed=seed, batch_size=batch_size, lanes=data.lanes, block_segments=data.block_segments
        )
        self.lanes = rank_lanes(self.order, rank, world)
        self.source = Source(store, self.table, self.segments, counts, data, needs.ahead)
        self.goals = None if needs.goal == "none" else Goals(self.source, needs.goal, seed)

    @property
    def batches_per_epoch(self) -> int:
        """Global batches in every epoch."""
        return self.order.batches

    def state(self, position: Position) -> dict[str, int | str]:
        """What to save with a checkpoint so that `batches` goes on from there."""
        return {"epoch": position.epoch, "batch": position.batch, "content_hash": self.store.content_hash}

    def batches(self, start: Position = START) -> Generator[tuple[Position, Batch], None, None]:
        """Batches from `start` on, without end, each with the position after it. Closing it stops its threads."""
        plans = training_plans(self.order, self.segments, self.lanes, start, self.repeated)
        batches = self.source.stream(plans)
        return batches if self.goals is None else with_goals(batches, self.goals)


def with_goals(
    batches: Generator[tuple[Position, Batch], None, None], goals: Goals
) -> Generator[tuple[Position, Batch], None, None]:
    """The same batches, with each row's goal."""
    with contextlib.closing(batches):
        for after, batch in batches:
            yield after, goals.attach(batch, after.epoch - (after.batch == 0))


def training_plans(
    order: Order, segments: Ints, lanes: range, start: Position, repeated: Repeated | None = None
) -> Iterator[BatchPlan]:
    """Plans of a rank's part of every global batch from `start` on, without walking through the batches before it.

    order: over 0 … S - 1, which stand for the store's `segments`. lanes: the rank's (`rank_lanes`). repeated: where
    some transitions are drawn more often, which step of the store a step of the order means.
    """
    epoch, batch = start.epoch, start.batch
    while True:
        plans = [plan for plan in plan_epoch(order, epoch) if plan.lane in lanes]
        held: dict[tuple[int, int], tuple[Ints, Ints, Ints]] = {}  # `_block_rows` by (lane, block)
        for number in range(batch, order.batches):
            needed = {(plan.lane, block): plan for plan in plans for block in lane_blocks(order, plan, number)}
            held = {
                key: held.get(key) or _block_rows(order, epoch, plan, key[1], segments) for key, plan in needed.items()
            }
            rows = []
            for (lane, block), plan in needed.items():
                members, segment, step = held[lane, block]
                begin = plan.first[block]
                cut = slice(max(number * order.share - begin, 0), (number + 1) * order.share - begin)
                chosen, drawn = segment[cut], step[cut]
                drawn = drawn if repeated is None else repeated.steps(chosen, drawn)
                rows.append(Rows((epoch, lane, block), members, chosen, drawn))
            last = number + 1 == order.batches
            yield BatchPlan(Position(epoch + 1, 0) if last else Position(epoch, number + 1), tuple(rows))
        epoch, batch = epoch + 1, 0


def _block_rows(order: Order, epoch: int, plan: LanePlan, block: int, segments: Ints) -> tuple[Ints, Ints, Ints]:
    """A block's segments, and segment and step of each of its rows in order of use, in the store's own numbers."""
    members = plan.segments[plan.block_start[block] : plan.block_start[block + 1]]
    segment, step = block_transitions(order, epoch, plan, block)
    return segments[members], segments[segment], step


def pass_plans(
    segments: Ints, counts: Ints, batch_size: int, block_segments: int, mixed: bool = False
) -> Iterator[BatchPlan]:
    """Plans of one pass over all transitions in store order; the last batch may be smaller.

    mixed: in a shuffled order that is always the same: segments are shuffled, then the transitions of each block.
    """
    if mixed:
        order = permutation(segments.size, 0, 0, PASS)
        segments, counts = segments[order], counts[order]
    owner = np.repeat(np.arange(segments.size), counts)
    step = np.arange(owner.size, dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
    if mixed:
        order = permutation(owner.size, 0, 1, PASS)
        order = order[np.argsort(owner[order] // block_segments, kind="stable")]
        owner, step = owner[order], step[order]
    for number, start in enumerate(range(0, owner.size, batch_size)):
        mine, steps = owner[start : start + batch_size], step[start : start + batch_size]
        block = mine // block_segments
        rows = []
        for name in np.unique(block).tolist():
            members = segments[name * block_segments : (name + 1) * block_segments]
            chosen = block == name
            rows.append(Rows((0, 0, int(name)), members, segments[mine[chosen]], steps[chosen]))
        yield BatchPlan(Position(0, number + 1), tuple(rows))


class SplitReader:
    """Passes over a split. Decoded frames are kept between passes when they fit in ``data.cache_gib``.

    The order is the store's, or with `mixed` a shuffled one that is always the same: then a loss that is made of a
    batch's statistics (variance, covariance) means something.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        batch_size: int,
        chunk: int,
        data: DataConfig,
        *,
        needs: Needs = NOW,
        seed: int = 0,
        mixed: bool = False,
    ) -> None:
        self.batch_size, self.data, self.needs, self.mixed = batch_size, data, needs, mixed
        self.table = make_table(store, chunk, seed if data.shuffle_instructions else None)
        self.segments, self.counts = split_segments(store, self.table, split, with_next_only=needs.require)
        self.source = Source(store, self.table, self.segments, self.counts, data, needs.ahead)
        self.goals = None if needs.goal == "none" else Goals(self.source, needs.goal, seed)

    def batches(self, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Every transition exactly once; the last batch may be smaller. Each rank gets every `world`-th batch."""
        size = self.data.block_segments * (self.data.lanes if self.mixed else 1)
        every = pass_plans(self.segments, self.counts, self.batch_size, size, self.mixed)
        plans = itertools.islice(every, rank, None, world)
        for _, batch in self.source.stream(plans):
            yield batch if self.goals is None else self.goals.attach(batch, 0)


def iterate_once(
    store: Store, split: str, batch_size: int, chunk: int, data: DataConfig | None = None, *, needs: Needs = NOW
) -> Iterator[Batch]:
    """Batches of every transition of a split that `needs` allows, exactly once, in store order."""
    return SplitReader(store, split, batch_size, chunk, data or DataConfig(), needs=needs).batches()
