"""Goals of the rows of a batch: which frame of which episode, and that it is read right."""

from pathlib import Path

import numpy as np
import pytest
import torch

from statevla.config import DataConfig
from statevla.data.decoded import decode_store
from statevla.data.frames import make_table
from statevla.data.goals import Goals
from statevla.data.loaders import SegmentLoader, SplitReader, iterate_once
from statevla.data.needs import Needs
from statevla.data.source import Source
from statevla.data.views import open_decoded
from stores.errors import UsageError
from stores.reader import Store
from tests.stores.make_store import make_episodes, make_tiny_store

EPISODES, FRAMES, IMAGE, WINDOW = 5, 21, 16, 8


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("goals") / "store"
    make_tiny_store(path, episodes=EPISODES, frames=FRAMES, image=IMAGE, window=WINDOW)
    return Store.open(path)


def goals(store: Store, kind: str, chunk: int = 4, seed: int = 0, cache: float = 1.0) -> Goals:
    table = make_table(store, chunk)
    return Goals(Source(store, table, np.arange(1), np.ones(1, np.int64), DataConfig(), 0), kind, seed, cache)


def test_the_last_frame_is_each_episodes_own(store: Store) -> None:
    made = goals(store, "final")
    assert made.last.tolist() == [FRAMES + e % 3 - 1 for e in range(EPISODES)]
    episode = np.arange(EPISODES)
    assert made.choose(episode, np.zeros(EPISODES, np.int64), 0).tolist() == made.last.tolist()


def test_future_goals_are_uniform_over_the_rest(store: Store) -> None:
    made = goals(store, "future")
    frame, last = 5, int(made.last[0])
    chosen = np.array([made.choose(np.zeros(1, np.int64), np.array([frame]), e)[0] for e in range(4000)])
    counts = np.bincount(chosen, minlength=last + 1)
    assert counts[: frame + 1].sum() == 0
    expected = 4000 / (last - frame)
    assert ((counts[frame + 1 :] - expected) ** 2 / expected).sum() < 40  # chi-square, 15 degrees of freedom: p < 5e-4


def test_near_goals_are_at_most_two_chunks_ahead(store: Store) -> None:
    made = goals(store, "near", chunk=3)
    ahead = {int(made.choose(np.zeros(1, np.int64), np.array([2]), e)[0]) - 2 for e in range(300)}
    assert ahead == {1, 2, 3, 4, 5, 6}


def test_an_epoch_does_not_draw_what_the_next_frame_drew_in_the_one_before(store: Store) -> None:
    made = goals(store, "near", chunk=4)
    frame = np.arange(12)  # eight frames come after each
    here, beside = (made.choose(np.zeros(12, np.int64), frame + i, 1 - i) - frame - i for i in (0, 1))
    assert (here == beside).sum() < 8  # one in eight is, by chance


def test_mixed_goals_are_final_in_half_of_the_rows(store: Store) -> None:
    made = goals(store, "mixed")
    zero = np.zeros(4000, np.int64)
    chosen = np.concatenate([made.choose(zero[:1], zero[:1], e) for e in range(4000)])
    assert (chosen == made.last[0]).mean() == pytest.approx(0.5 + 0.5 / made.last[0], abs=0.03)


@pytest.mark.parametrize("kind", ["final", "future", "near", "mixed"])
def test_a_goal_is_never_before_its_row_and_never_past_the_episode(store: Store, kind: str) -> None:
    made = goals(store, kind)
    episode = np.repeat(np.arange(EPISODES), FRAMES)
    frame = np.tile(np.arange(FRAMES), EPISODES)
    chosen = made.choose(episode, frame, 3)
    assert (chosen >= frame).all()
    assert (chosen <= made.last[episode]).all()
    assert ((chosen > frame) | (frame == made.last[episode])).all()


@pytest.mark.parametrize("cache", [1.0, 0.0])
def test_batches_hold_the_goals_pictures_of_their_own_episode(store: Store, cache: float) -> None:
    made = make_episodes(EPISODES, FRAMES, IMAGE, 0)
    needs = Needs(goal="mixed")
    for batch in iterate_once(store, "train", 16, 4, DataConfig(cache_gib=cache), needs=needs):
        assert batch.goal is not None
        assert batch.goal_frame is not None
        for row in range(len(batch)):
            episode, frame = made[int(batch.episode[row])], int(batch.goal_frame[row])
            np.testing.assert_array_equal(batch.goal.robot_state[row], episode.robot_state[frame])
            for camera in range(2):
                near = np.abs(batch.goal.images[camera][row].numpy().astype(int) - episode.images[frame, camera])
                assert near.mean() < 6  # JPEG; another frame has another tint


def test_goals_come_by_the_view_that_the_rows_come_by(tmp_path: Path) -> None:
    """Of decoded pictures they are the same bytes, and the segments are not read."""
    path = tmp_path / "store"
    make_tiny_store(path, episodes=EPISODES, frames=FRAMES, image=IMAGE, window=WINDOW)
    store, needs = Store.open(path), Needs(goal="mixed")
    plain = SplitReader(store, "train", 16, 4, DataConfig(), needs=needs)
    viewed = SplitReader(store, "train", 16, 4, DataConfig(), needs=needs)
    viewed.source.view = open_decoded(decode_store(store, path, 1), 0.0)
    for one, two in zip(plain.batches(), viewed.batches(), strict=True):
        assert one.goal is not None
        assert two.goal is not None
        assert torch.equal(one.goal.robot_state, two.goal.robot_state)
        assert all(torch.equal(a, b) for a, b in zip(one.goal.images, two.goal.images, strict=True))
    assert viewed.goals is not None
    assert not viewed.goals._held


def test_goals_are_the_same_for_any_rank_and_after_a_resume_and_change_with_the_epoch(store: Store) -> None:
    data, needs = DataConfig(lanes=2, block_segments=2), Needs(goal="future")

    def first(count: int, rank: int = 0, world: int = 1, start: object = None) -> dict[tuple[int, int, int], int]:
        loader = SegmentLoader(store, "train", 8, 0, data, 4, needs, rank=rank, world=world)
        found = {}
        stream = loader.batches() if start is None else loader.batches(start)  # type: ignore[arg-type]
        for _, (after, batch) in zip(range(count), stream, strict=False):
            epoch = after.epoch - (after.batch == 0)
            assert batch.goal_frame is not None
            for row in range(len(batch)):
                found[epoch, int(batch.episode[row]), int(batch.frame[row])] = int(batch.goal_frame[row])
        stream.close()
        return found

    loader = SegmentLoader(store, "train", 8, 0, data, 4, needs)
    whole = first(2 * loader.batches_per_epoch)
    halves = [first(2 * loader.batches_per_epoch, rank, 2) for rank in range(2)]
    assert {**halves[0], **halves[1]} == whole
    both = [(e, f) for (epoch, e, f) in whole if epoch == 0 and (1, e, f) in whole]
    assert any(whole[0, e, f] != whole[1, e, f] for e, f in both)


def test_an_unknown_kind_of_goal_is_named() -> None:
    with pytest.raises(UsageError, match=r"a goal of .*'final'.*; got .*'later'"):
        Needs(goal="later")
