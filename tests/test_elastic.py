"""Elastic order: for any ranks and any point to go on from, the global sequence of samples is one and the same.

Threads decode and never choose (`tests/test_loaders.py` compares whole batches for several numbers of them).
"""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statevla.data import loaders
from statevla.data.loaders import training_plans
from statevla.data.order import LanePlan, Order, lane_blocks, plan_epoch, rank_lanes
from statevla.data.prefetch import BatchPlan, Position
from tests.test_order import global_batch, orders

Lanes = dict[int, list[tuple[int, int]]]


def by_lane(plan: BatchPlan) -> Lanes:
    """(segment, step) of every row, in order, by the lane that it comes from."""
    found: Lanes = {}
    for rows in plan.rows:
        found.setdefault(rows.key[1], []).extend(zip(rows.segment.tolist(), rows.step.tolist(), strict=True))
    return found


@given(order=orders(), epoch=st.integers(0, 3), data=st.data())
def test_any_ranks_from_anywhere_give_the_same_global_batches(order: Order, epoch: int, data: st.DataObject) -> None:
    world = data.draw(st.sampled_from([n for n in range(1, order.lanes + 1) if order.lanes % n == 0]))
    first = data.draw(st.integers(0, order.batches - 1))
    segments, count = np.arange(order.counts.size), min(3, 2 * order.batches)
    streams = [
        training_plans(order, segments, rank_lanes(order, rank, world), Position(epoch, first)) for rank in range(world)
    ]
    at = Position(epoch, first)
    for plans in itertools.islice(zip(*streams, strict=True), count):
        lanes: Lanes = {}
        for plan in plans:
            lanes |= by_lane(plan)
        segment, step = global_batch(order, at.epoch, at.batch)
        assert [row for lane in sorted(lanes) for row in lanes[lane]] == list(
            zip(segment.tolist(), step.tolist(), strict=True)
        )
        assert len({plan.after for plan in plans}) == 1
        at = plans[0].after


@given(order=orders(), data=st.data())
def test_going_on_from_anywhere_mixes_only_the_blocks_of_that_batch(order: Order, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, order.batches - 1))
    mixed: list[tuple[int, int]] = []
    original = loaders.block_transitions

    def count(order: Order, epoch: int, plan: LanePlan, block: int) -> object:
        mixed.append((plan.lane, block))
        return original(order, epoch, plan, block)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaders, "block_transitions", count)
        next(training_plans(order, np.arange(order.counts.size), range(order.lanes), Position(0, first)))
    needed = {(plan.lane, block) for plan in plan_epoch(order, 0) for block in lane_blocks(order, plan, first)}
    assert sorted(mixed) == sorted(needed)  # nothing before it, however far in the epoch
