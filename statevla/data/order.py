"""Sample order of a training run: a pure function of (seed, epoch, position, global batch size).

In every epoch the segments are permuted and dealt to *lanes*, as cards are dealt to players. Each lane is cut into
*blocks* of M segments, and the transitions inside a block are permuted. A global batch takes an equal share of its
rows from every lane. So a reader holds one block of each lane in memory, a rank reads its own lanes only, and a run
can begin at any batch without walking through those before it.

Permutations come from Philox, a counter-based random generator, with key (seed, epoch) and counter (purpose, lane,
block). NumPy guarantees the raw 64-bit words that Philox gives; the order that sorts them is the permutation, so it is
the same on every machine and with every version of NumPy.

Legend: S segments, B rows of a global batch, L lanes, M segments in a block, W most transitions in a segment.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stores.errors import UsageError

Ints = NDArray[np.int64]

DEAL: Final = 1
LANE: Final = 2
BLOCK: Final = 3


@dataclass(frozen=True)
class Order:
    """Everything that decides the order of every epoch.

    counts: int64 [S], transitions in each segment, all > 0. batch_size: B. lanes: L, as many as `plan_order` found
    usable. block_segments: M. batches: global batches in an epoch, all full. dropped: transitions that an epoch leaves
    out, at most ``(L - 1) * W + B - L``; which ones differs from epoch to epoch.
    """

    counts: Ints
    seed: int
    batch_size: int
    lanes: int
    block_segments: int
    batches: int
    dropped: int

    @property
    def share(self) -> int:
        """Rows of a global batch that come from one lane."""
        return self.batch_size // self.lanes


@dataclass(frozen=True)
class LanePlan:
    """One lane in one epoch.

    segments: int64 [n], the lane's segments, block after block. block_start: int64 [blocks + 1], where in `segments`
    each block begins, and the end. first: how many of the lane's transitions come before each block, and their total;
    a list and no array, because every batch searches it.
    """

    lane: int
    segments: Ints
    block_start: Ints
    first: list[int]


def plan_order(counts: Ints, *, seed: int, batch_size: int, lanes: int, block_segments: int) -> Order:
    """Choose the number of lanes and count the batches of an epoch.

    At most `lanes` are used: the largest number that divides the batch and gives every lane enough transitions for its
    share of one. It depends on the store and the batch size alone, never on the ranks. Every epoch has the same number
    of batches, because the lanes have the same sizes in every epoch (see `deal`).

    Raises UsageError when a segment is empty or all transitions together do not fill one batch.
    """
    counts = np.asarray(counts, dtype=np.int64)
    if counts.size == 0 or counts.min() <= 0:
        raise UsageError(f"sample order: expected segments with transitions, got {counts.size} segments, some empty")
    total = int(counts.sum())
    if total < batch_size:
        raise UsageError(
            f"training.batch_size: {batch_size} is more than the {total} transitions of the split; "
            f"use --set training.batch_size={total} or less"
        )
    longest_first = np.sort(counts)[::-1]
    used, batches = 1, total // batch_size
    for candidate in range(min(lanes, counts.size), 1, -1):
        shortest_lane = int(longest_first[candidate - 1 :: candidate].sum())  # the last hand of `deal`
        full = shortest_lane * candidate // batch_size
        if batch_size % candidate == 0 and full:
            used, batches = candidate, full
            break
    return Order(counts, seed, batch_size, used, block_segments, batches, total - batches * batch_size)


def permutation(size: int, seed: int, epoch: int, purpose: int, lane: int = 0, block: int = 0) -> Ints:
    """A permutation of ``0 ... size-1`` that depends on nothing but the arguments."""
    counter = np.array([0, purpose, lane, block], dtype=np.uint64)  # word 0 runs
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64), counter=counter).random_raw(size)
    return np.argsort(words, kind="stable").astype(np.int64)


def deal(order: Order, epoch: int) -> list[Ints]:
    """Segments of each lane in `epoch`: L arrays int64.

    The segments are permuted, sorted by length (stable), and dealt in turn, the longest first. So two lanes differ by
    at most one segment's transitions, which bounds what an epoch drops. Then each lane is permuted again.
    """
    shuffled = permutation(order.counts.size, order.seed, epoch, DEAL)
    longest_first = shuffled[np.argsort(-order.counts[shuffled], kind="stable")]
    hands = [longest_first[lane :: order.lanes] for lane in range(order.lanes)]
    return [hand[permutation(hand.size, order.seed, epoch, LANE, lane)] for lane, hand in enumerate(hands)]


def plan_epoch(order: Order, epoch: int) -> list[LanePlan]:
    """The lanes of `epoch`, cut into blocks of M segments.

    The first block of lane l (0 … L - 1) has only ``(l + 1) / L`` of M segments. So the lanes do not all need their
    next blocks at the same batch, and a reader's work is even.
    """
    plans = []
    for lane, segments in enumerate(deal(order, epoch)):
        first = -(-order.block_segments * (lane + 1) // order.lanes)
        cuts = np.arange(first, segments.size, order.block_segments, dtype=np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), cuts, np.array([segments.size], np.int64)])
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(order.counts[segments])])
        plans.append(LanePlan(lane, segments, starts, before[starts].tolist()))
    return plans


def block_transitions(order: Order, epoch: int, plan: LanePlan, block: int) -> tuple[Ints, Ints]:
    """The transitions of a block in order of use: segment and step in the segment, int64 [transitions] each."""
    segments = plan.segments[plan.block_start[block] : plan.block_start[block + 1]]
    counts = order.counts[segments]
    owner = np.repeat(segments, counts)
    step = np.arange(owner.size, dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
    mixed = permutation(owner.size, order.seed, epoch, BLOCK, plan.lane, block)
    return owner[mixed], step[mixed]


def lane_blocks(order: Order, plan: LanePlan, batch: int) -> range:
    """Numbers of the blocks from which this lane takes its share of global batch number `batch`."""
    low, high = batch * order.share, (batch + 1) * order.share - 1
    return range(bisect_right(plan.first, low) - 1, bisect_right(plan.first, high))


def rank_lanes(order: Order, rank: int = 0, world: int = 1) -> range:
    """Lanes that `rank` reads, of `world` ranks. Raises UsageError when the lanes cannot be shared equally."""
    if order.lanes % world:
        fit = ", ".join(str(number) for number in range(1, order.lanes + 1) if order.lanes % number == 0)
        raise UsageError(
            f"data.lanes: {order.lanes} lanes are in use, which {world} ranks cannot share equally; ranks that can: "
            f"{fit}; for a new run, data.lanes and training.batch_size may also be multiples of the ranks"
        )
    return range(rank, order.lanes, world)
