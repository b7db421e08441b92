"""Batches against the episodes that went into the store, whatever the threads, cache and starting position."""

import itertools
import threading
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from statevla.config import DataConfig
from statevla.data.batch import Batch, ObservationBatch
from statevla.data.frames import derange
from statevla.data.loaders import SegmentLoader, SplitReader, iterate_once
from statevla.data.needs import NOW, PAIRS, Needs
from statevla.data.prefetch import Position
from stores.errors import StoreCorrupt, UsageError
from stores.reader import Store
from tests.stores.make_store import MadeEpisode, make_tiny_store

CHUNK, WINDOW = 6, 8
DATA = DataConfig(lanes=4, block_segments=2, loader_threads=2, cache_gib=0.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[MadeEpisode]]:
    path = tmp_path_factory.mktemp("store") / "tiny"
    episodes = make_tiny_store(path, episodes=8, frames=21, image=16, window=WINDOW, chunk=CHUNK + 2, codec="png")
    return Store.open(path), episodes


def tensors(batch: Batch | ObservationBatch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for item in fields(batch):
        value = getattr(batch, item.name)
        if isinstance(value, ObservationBatch):
            found += tensors(value)
        elif value is not None:
            found += value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
    return found


def same(one: Batch, two: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(two), strict=True))


def loader(store: Store, needs: Needs = PAIRS, data: DataConfig = DATA, batch: int = 8) -> SegmentLoader:
    return SegmentLoader(store, "train", batch, 3, data, CHUNK, needs)


def check_row(batch: Batch, row: int, episode: MadeEpisode, store: Store, *, ahead: int) -> None:
    """One row from first principles: NumPy indexing into what was written."""
    t = int(batch.frame[row])
    steps = len(episode.action)
    wanted = [episode.action[min(t + k, steps - 1)] for k in range(CHUNK)]
    np.testing.assert_array_equal(np.stack([frames[row] for frames in batch.obs.images]), episode.images[t])
    np.testing.assert_array_equal(batch.obs.robot_state[row].numpy(), episode.robot_state[t])
    np.testing.assert_array_equal(batch.obs.language[row].numpy(), store.language.vector(episode.instruction))
    np.testing.assert_array_equal(batch.action[row].numpy(), episode.action[t])
    np.testing.assert_array_equal(batch.chunk[row].numpy(), np.stack(wanted))
    assert batch.is_pad[row].tolist() == [t + k >= steps for k in range(CHUNK)]
    last = min(t - t % WINDOW + WINDOW, len(episode.images) - 1)  # a segment ends with the next one's first
    later = min(ahead, last - t)
    assert (int(batch.ahead[row]), bool(batch.has_next[row])) == (later, later > 0)
    if later:
        seen = np.stack([frames[row] for frames in batch.next_obs.images])
        np.testing.assert_array_equal(seen, episode.images[t + later])
        np.testing.assert_array_equal(batch.next_obs.robot_state[row].numpy(), episode.robot_state[t + later])


@pytest.mark.parametrize("needs", [PAIRS, NOW, Needs(offsets=(0, 3), require=True), Needs(offsets=(0, 3))])
def test_rows_are_what_was_ingested_and_come_once(made: tuple[Store, list[MadeEpisode]], needs: Needs) -> None:
    store, episodes = made
    load = loader(store, needs)
    seen = []
    for _, batch in itertools.islice(load.batches(), load.batches_per_epoch):
        for row in range(len(batch)):
            episode = episodes[int(batch.episode[row])]
            assert episode.split == "train"
            check_row(batch, row, episode, store, ahead=needs.ahead)
            seen.append((int(batch.episode[row]), int(batch.frame[row])))
        assert not needs.require or bool(batch.has_next.all())
    assert len(seen) == len(set(seen)) == load.batches_per_epoch * 8
    usable = sum(
        min(len(e.action), len(e.images) - 1) if needs.require else len(e.action)
        for e in episodes
        if e.split == "train"
    )
    assert len(seen) + load.order.dropped == usable


@pytest.mark.parametrize("data", [replace(DATA, loader_threads=1), replace(DATA, loader_threads=5), DataConfig()])
def test_threads_and_cache_change_nothing(made: tuple[Store, list[MadeEpisode]], data: DataConfig) -> None:
    store, _ = made
    data = replace(data, lanes=DATA.lanes, block_segments=DATA.block_segments)
    count = 3 * loader(store).batches_per_epoch  # three epochs: blocks are freed, or reused from the cache
    for (where, one), (there, two) in zip(
        itertools.islice(loader(store).batches(), count), loader(store, data=data).batches(), strict=False
    ):
        assert where == there
        assert same(one, two)


@pytest.mark.resume
@pytest.mark.parametrize("skip", [1, 7, 29])
def test_resuming_anywhere_continues_the_uninterrupted_run(made: tuple[Store, list[MadeEpisode]], skip: int) -> None:
    store, _ = made
    whole = list(itertools.islice(loader(store).batches(), skip + 6))
    state = loader(store).state(whole[skip - 1][0])
    assert state["content_hash"] == store.content_hash
    again = loader(store).batches(Position(int(state["epoch"]), int(state["batch"])))
    for (where, one), (there, two) in zip(whole[skip:], again, strict=False):
        assert where == there
        assert same(one, two)


def test_ranks_split_the_global_batch(made: tuple[Store, list[MadeEpisode]]) -> None:
    store, _ = made
    streams = [SegmentLoader(store, "train", 8, 3, DATA, CHUNK, PAIRS, rank=r, world=2).batches() for r in range(2)]
    for (_, whole), (_, first), (_, second) in itertools.islice(zip(loader(store).batches(), *streams, strict=True), 5):
        rows = {(int(e), int(f)) for b in (first, second) for e, f in zip(b.episode, b.frame, strict=True)}
        assert len(first) == len(second) == 4
        assert rows == {(int(e), int(f)) for e, f in zip(whole.episode, whole.frame, strict=True)}


@pytest.mark.parametrize("chunk", [CHUNK, CHUNK + 2, 20])
def test_a_chunk_of_any_length_comes_with_its_padding(made: tuple[Store, list[MadeEpisode]], chunk: int) -> None:
    store, episodes = made  # the store's own chunks have CHUNK + 2 actions
    load = SegmentLoader(store, "train", 8, 3, DATA, chunk, NOW)
    for _, batch in itertools.islice(load.batches(), load.batches_per_epoch):
        for row in range(len(batch)):
            action, t = episodes[int(batch.episode[row])].action, int(batch.frame[row])
            wanted = [action[min(t + k, len(action) - 1)] for k in range(chunk)]
            np.testing.assert_array_equal(batch.chunk[row].numpy(), np.stack(wanted))
            assert batch.is_pad[row].tolist() == [t + k >= len(action) for k in range(chunk)]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("cache", [0.0, 1.0])
def test_a_pass_meets_every_step_of_the_split_once(
    made: tuple[Store, list[MadeEpisode]], mixed: bool, cache: float
) -> None:
    store, episodes = made
    reader = SplitReader(store, "val", 7, CHUNK, replace(DATA, cache_gib=cache), mixed=mixed)
    expected = [(e, t) for e, m in enumerate(episodes) if m.split == "val" for t in range(len(m.action))]
    for _ in range(2):  # the second pass reads the cache
        batches = list(reader.batches())
        rows = [(int(e), int(f)) for b in batches for e, f in zip(b.episode, b.frame, strict=True)]
        assert sorted(rows) == expected
        assert (rows == expected) == (not mixed)
        for batch in batches:
            for row in range(len(batch)):
                check_row(batch, row, episodes[int(batch.episode[row])], store, ahead=0)


def test_iterate_once_gives_next_observations_where_needed(made: tuple[Store, list[MadeEpisode]]) -> None:
    store, episodes = made
    rows = 0
    for batch in iterate_once(store, "val", 5, CHUNK, needs=PAIRS):
        assert bool(batch.has_next.all())
        check_row(batch, len(batch) - 1, episodes[int(batch.episode[-1])], store, ahead=1)
        rows += len(batch)
    assert rows == sum(min(len(e.action), len(e.images) - 1) for e in episodes if e.split == "val")


def test_shuffled_instructions_are_another_tasks_for_the_whole_episode(made: tuple[Store, list[MadeEpisode]]) -> None:
    store, episodes = made
    texts = sorted({e.instruction for e in episodes})
    vectors = np.stack([store.language.vector(text) for text in texts])
    data = replace(DATA, shuffle_instructions=True)
    chosen: dict[int, set[str]] = {}
    for _, batch in itertools.islice(loader(store, NOW, data).batches(), loader(store, NOW).batches_per_epoch):
        for episode, vector in zip(batch.episode.tolist(), batch.obs.language.numpy(), strict=True):
            chosen.setdefault(episode, set()).add(texts[int((vectors == vector).all(axis=1).argmax())])
    assert all(len(names) == 1 and episodes[e].instruction not in names for e, names in chosen.items())


def test_derangement_covers_all_other_instructions_and_repeats() -> None:
    own = np.arange(3000, dtype=np.int64) % 5
    other = derange(own, 5, 11)
    assert (other != own).all()
    counts = np.bincount((other - own) % 5, minlength=5)
    assert counts[0] == 0
    assert counts[1:].min() > 600  # 750 expected, standard deviation 24
    np.testing.assert_array_equal(other, derange(own, 5, 11))
    assert (other != derange(own, 5, 12)).any()
    with pytest.raises(UsageError, match="one instruction only"):
        derange(own * 0, 1, 0)


def test_errors_of_the_decoding_threads_reach_the_consumer(tmp_path: Path) -> None:
    make_tiny_store(tmp_path / "s", episodes=4, frames=20, image=16)
    store = Store.open(tmp_path / "s")
    shard = next((tmp_path / "s/shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    before = threading.active_count()
    with pytest.raises(StoreCorrupt, match=shard.name):
        list(itertools.islice(loader(store, batch=4).batches(), 60))
    assert threading.active_count() == before


def test_closing_early_ends_the_threads(made: tuple[Store, list[MadeEpisode]]) -> None:
    before = threading.active_count()
    batches = loader(made[0]).batches()
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_what_cannot_be_loaded(made: tuple[Store, list[MadeEpisode]]) -> None:
    store, _ = made
    with pytest.raises(UsageError, match="split 'test'; the store has train, val"):
        SegmentLoader(store, "test", 8, 0, DATA, CHUNK, PAIRS)
    with pytest.raises(UsageError, match="more than the"):
        SegmentLoader(store, "train", 4096, 0, DATA, CHUNK, PAIRS)
