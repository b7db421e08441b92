"""What a stream holds: no more than it says, each segment decoded once, all let go of in the end."""

import contextlib
import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from statevla.config import DataConfig
from statevla.data.blocks import BlockSupply
from statevla.data.loaders import SegmentLoader, training_plans
from statevla.data.needs import PAIRS
from statevla.data.prefetch import BatchPlan, Position, Rows, _assemble
from statevla.data.slots import Slots
from stores.reader import Segment, Store
from tests.stores.make_store import make_tiny_store

DATA = DataConfig(lanes=4, block_segments=3, loader_threads=2, cache_gib=0.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("store") / "many"
    make_tiny_store(path, episodes=24, frames=33, image=16, window=8, chunk=6, codec="png")
    return Store.open(path)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    count: Counter[str] = Counter()
    decode = Segment.decode

    def counted(self: Segment, *given: object, **named: object) -> object:
        count[self.key] += 1
        return decode(self, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Segment, "decode", counted)
    return count


def supply_of(store: Store) -> tuple[SegmentLoader, BlockSupply]:
    loader = SegmentLoader(store, "train", 8, 3, DATA, 6, PAIRS)
    supply = loader.source.supply()
    assert isinstance(supply, BlockSupply)
    return loader, supply


def test_a_stream_holds_what_its_blocks_have_and_half_as_much(
    store: Store, decoded: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, supply = supply_of(store)
    plans = training_plans(loader.order, loader.segments, loader.lanes, Position(0, 0))
    epochs = 3
    finite: Iterator[BatchPlan] = itertools.islice(plans, epochs * loader.batches_per_epoch)
    least = []
    take = Slots.take

    def watched(self: Slots, segment: int) -> None:
        take(self, segment)
        least.append(self.free)

    monkeypatch.setattr(Slots, "take", watched)
    with ThreadPoolExecutor(2) as pool:
        for _ in _assemble(finite, supply, pool):
            pass
    slots = supply._held(0)
    assert len(slots.images[0]) == (4 * 3 + 8) * slots.length  # 12 segments of blocks, and a batch
    assert len(loader.segments) > 4 * 3 + 8
    assert min(least) == 0  # it was full, and went on
    assert slots.free == 4 * 3 + 8
    assert not supply._left
    assert not supply._holders
    assert not supply._decoding
    assert max(decoded.values()) <= epochs
    assert sum(decoded.values()) <= epochs * len(loader.segments)


def test_a_disk_is_asked_before_segments_are_decoded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each, and each before it is read, which its decoding thread does."""
    told: list[tuple[str, int]] = []
    fetch, read = Store.fetch_segment, Store.read_segment

    def fetched(self: Store, i: int) -> None:
        told.append(("asked", i))
        fetch(self, i)

    def readed(self: Store, i: int) -> Segment:
        assert threading.current_thread().name.startswith("statevla-decode")
        told.append(("read", i))
        return read(self, i)

    monkeypatch.setattr(Store, "fetch_segment", fetched)
    monkeypatch.setattr(Store, "read_segment", readed)
    loader, _ = supply_of(store)
    with contextlib.closing(loader.batches()) as batches:
        for _ in itertools.islice(batches, loader.batches_per_epoch):
            pass
    first: dict[int, str] = {}
    for what, i in told:
        first.setdefault(i, what)
    assert set(first.values()) == {"asked"}
    assert {i for what, i in told if what == "read"} == set(loader.segments.tolist())


def test_a_segment_stays_while_another_block_needs_it(store: Store, decoded: Counter[str]) -> None:
    _, supply = supply_of(store)
    rows = supply.blocks.counts
    segment = int(supply.blocks.segments[0])
    everything = np.arange(rows[segment])

    def plan(epoch: int, step: np.ndarray) -> BatchPlan:
        chosen = np.full(len(step), segment)
        return BatchPlan(Position(epoch, 1), (Rows((epoch, 0, 0), np.array([segment]), chosen, step),))

    with ThreadPoolExecutor(1) as pool:
        first, second = plan(0, everything), plan(1, everything)
        for each in (first, second):
            supply.ask(each, pool)
        supply.batch(first, pool, False)
        supply.release(first, [second])
        batch = supply.batch(second, pool, False)
        assert batch.frame.tolist() == sorted(batch.frame.tolist())
        supply.release(second, [])
    assert sum(decoded.values()) == 1
    assert supply._held(0).free == len(supply._held(0).images[0]) // supply._held(0).length


def test_a_segment_goes_with_its_last_row_not_with_its_block(store: Store) -> None:
    _, supply = supply_of(store)
    segment = int(supply.blocks.segments[0])
    step = np.arange(supply.blocks.counts[segment])
    whole = BatchPlan(Position(0, 1), (Rows((0, 0, 0), np.array([segment]), np.full(len(step), segment), step),))
    assert len(step) > 1
    with ThreadPoolExecutor(1) as pool:
        supply.ask(whole, pool)
        supply.batch(whole, pool, False)
        supply.release(whole, [whole])  # the block goes on, with other segments
    assert not supply._holders


def test_rows_that_an_epoch_leaves_out_hold_nothing(store: Store) -> None:
    _, supply = supply_of(store)
    segment = int(supply.blocks.segments[0])
    only = BatchPlan(Position(0, 1), (Rows((0, 0, 0), np.array([segment]), np.array([segment]), np.array([0])),))
    with ThreadPoolExecutor(1) as pool:
        supply.ask(only, pool)
        supply.batch(only, pool, False)
        supply.release(only, [only])
        assert supply._holders == {segment: 1}
        supply.release(only, [])
    assert not supply._holders
