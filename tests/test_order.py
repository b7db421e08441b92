"""The sample order against its promises: no repeats, bounded drop, any rank count, any starting position."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statevla.data.loaders import training_plans
from statevla.data.order import (
    Ints,
    Order,
    block_transitions,
    deal,
    lane_blocks,
    permutation,
    plan_epoch,
    plan_order,
    rank_lanes,
)
from statevla.data.prefetch import Position
from stores.errors import UsageError


@st.composite
def orders(draw: st.DrawFn) -> Order:
    counts = np.array(draw(st.lists(st.integers(1, 16), min_size=1, max_size=60)), dtype=np.int64)
    batch = draw(st.integers(1, min(24, int(counts.sum()))))
    return plan_order(
        counts,
        seed=draw(st.integers(0, 2**40)),
        batch_size=batch,
        lanes=draw(st.integers(1, 12)),
        block_segments=draw(st.integers(1, 9)),
    )


def global_batch(order: Order, epoch: int, batch: int) -> tuple[Ints, Ints]:
    """Segment and step of every row, lanes in order: what a training run on one rank reads when it starts there."""
    every = np.arange(order.counts.size)
    plan = next(training_plans(order, every, range(order.lanes), Position(epoch, batch)))
    return np.concatenate([rows.segment for rows in plan.rows]), np.concatenate([rows.step for rows in plan.rows])


def whole_epoch(order: Order, epoch: int) -> list[tuple[int, int]]:
    rows = []
    for batch in range(order.batches):
        segment, step = global_batch(order, epoch, batch)
        assert segment.shape == step.shape == (order.batch_size,)
        rows += list(zip(segment.tolist(), step.tolist(), strict=True))
    return rows


@settings(deadline=None, max_examples=60)
@given(order=orders(), epoch=st.integers(0, 1000))
def test_an_epoch_repeats_nothing_and_drops_little(order: Order, epoch: int) -> None:
    rows = whole_epoch(order, epoch)
    assert len(rows) == len(set(rows))
    assert all(0 <= step < order.counts[segment] for segment, step in rows)
    assert order.dropped == int(order.counts.sum()) - len(rows)
    assert order.batches >= 1
    assert order.dropped <= (order.lanes - 1) * int(order.counts.max()) + order.batch_size - order.lanes


@settings(deadline=None, max_examples=60)
@given(order=orders(), epoch=st.integers(0, 5))
def test_lanes_share_all_segments_evenly(order: Order, epoch: int) -> None:
    hands = deal(order, epoch)
    assert sorted(np.concatenate(hands).tolist()) == list(range(order.counts.size))
    totals = [int(order.counts[hand].sum()) for hand in hands]
    assert max(totals) - min(totals) <= int(order.counts.max())
    assert min(totals) // order.share == order.batches


@settings(deadline=None, max_examples=40)
@given(order=orders(), epoch=st.integers(0, 5), data=st.data())
def test_ranks_read_their_own_lanes_and_together_make_the_global_batch(
    order: Order, epoch: int, data: st.DataObject
) -> None:
    world = data.draw(st.sampled_from([w for w in range(1, order.lanes + 1) if order.lanes % w == 0]))
    batch = data.draw(st.integers(0, order.batches - 1))
    segment, step = global_batch(order, epoch, batch)
    by_lane = [set(hand.tolist()) for hand in deal(order, epoch)]
    seen: list[int] = []
    for rank in range(world):
        lanes = rank_lanes(order, rank, world)
        rows = np.concatenate([np.arange(lane * order.share, (lane + 1) * order.share) for lane in lanes])
        mine = set().union(*(by_lane[lane] for lane in lanes))
        assert set(segment[rows].tolist()) <= mine
        seen += rows.tolist()
    assert sorted(seen) == list(range(order.batch_size))
    assert step.size == order.batch_size


@settings(deadline=None, max_examples=40)
@given(order=orders(), epoch=st.integers(0, 5))
def test_walking_the_lanes_block_by_block_meets_the_same_batches(order: Order, epoch: int) -> None:
    """An uninterrupted reader, written without the jump: concatenate a lane's blocks and slice."""
    streams = []
    for plan in plan_epoch(order, epoch):
        blocks = [block_transitions(order, epoch, plan, b) for b in range(len(plan.block_start) - 1)]
        streams.append((np.concatenate([b[0] for b in blocks]), np.concatenate([b[1] for b in blocks])))
        assert plan.first[-1] == streams[-1][0].size
    for batch in range(order.batches):
        cut = slice(batch * order.share, (batch + 1) * order.share)
        segment, step = global_batch(order, epoch, batch)
        np.testing.assert_array_equal(segment, np.concatenate([s[cut] for s, _ in streams]))
        np.testing.assert_array_equal(step, np.concatenate([t[cut] for _, t in streams]))


@settings(deadline=None, max_examples=40)
@given(order=orders(), epoch=st.integers(0, 5))
def test_blocks_hold_at_most_m_segments_and_batches_name_the_blocks_they_need(order: Order, epoch: int) -> None:
    for plan in plan_epoch(order, epoch):
        sizes = np.diff(plan.block_start)
        assert sizes.min() >= 1
        assert sizes.max() <= order.block_segments
        for before, after in pairwise(range(order.batches)):
            one, two = lane_blocks(order, plan, before), lane_blocks(order, plan, after)
            assert two.start in (one.stop - 1, one.stop)


def test_the_order_changes_with_seed_and_epoch_and_repeats_with_both() -> None:
    counts = np.full(40, 16, dtype=np.int64)
    one, two = (plan_order(counts, seed=s, batch_size=64, lanes=8, block_segments=4) for s in (1, 2))
    assert whole_epoch(one, 0) == whole_epoch(one, 0)
    assert whole_epoch(one, 0) != whole_epoch(one, 1)
    assert whole_epoch(one, 0) != whole_epoch(two, 0)


def test_permutation_is_pinned() -> None:
    """Raw Philox words: these numbers may never change, or a resumed run would see another order."""
    words = np.random.Philox(key=np.array([7, 3], np.uint64), counter=np.array([0, 1, 0, 0], np.uint64)).random_raw(6)
    assert permutation(6, 7, 3, 1).tolist() == sorted(range(6), key=lambda i: int(words[i]))
    assert permutation(6, 7, 3, 1).tolist() == PINNED


PINNED = [2, 0, 3, 1, 5, 4]


@pytest.mark.parametrize(
    ("segments", "batch", "lanes", "used"), [(56, 64, 8, 8), (14, 64, 8, 8), (5, 64, 8, 4), (3, 7, 8, 1), (50, 6, 8, 6)]
)
def test_small_stores_use_fewer_lanes(segments: int, batch: int, lanes: int, used: int) -> None:
    counts = np.full(segments, 16, dtype=np.int64)
    assert plan_order(counts, seed=0, batch_size=batch, lanes=lanes, block_segments=32).lanes == used


def test_what_cannot_be_ordered() -> None:
    with pytest.raises(UsageError, match="64 is more than the 48 transitions"):
        plan_order(np.full(3, 16, dtype=np.int64), seed=0, batch_size=64, lanes=8, block_segments=2)
    with pytest.raises(UsageError, match="some empty"):
        plan_order(np.array([3, 0], dtype=np.int64), seed=0, batch_size=1, lanes=1, block_segments=2)
    order = plan_order(np.full(30, 16, dtype=np.int64), seed=0, batch_size=64, lanes=8, block_segments=2)
    with pytest.raises(UsageError, match="3 ranks cannot share"):
        rank_lanes(order, 0, 3)
