"""The format page suffices: a reader written from it gives what went into the store, and what our reader gives."""

from pathlib import Path

import numpy as np

from stores.reader import Store
from tests.stores import second_reader
from tests.stores.make_store import make_tiny_store


def test_both_readers_give_what_went_in(tmp_path: Path) -> None:
    made = make_tiny_store(tmp_path, episodes=3, frames=20, image=16, window=8, chunk=4, codec="png")
    store = Store.open(tmp_path)
    seen = {row["id"]: [] for row in store.episodes.to_pylist()}
    by_id = {f"{episode.source}/{episode.demo}": episode for episode in made}
    for row, step, now, state, after, action, chunk, is_pad in second_reader.transitions(tmp_path):
        episode = by_id[row["id"]]
        seen[row["id"]].append(step)
        np.testing.assert_array_equal(now, episode.images[step])
        np.testing.assert_array_equal(state, episode.robot_state[step])
        np.testing.assert_array_equal(action, episode.action[step])
        wanted = np.minimum(np.arange(step, step + 4), len(episode.action) - 1)
        np.testing.assert_array_equal(chunk, episode.action[wanted])
        np.testing.assert_array_equal(is_pad, np.arange(step, step + 4) >= len(episode.action))
        assert (after is None) == (step + 1 == len(episode.images))
        if after is not None:
            np.testing.assert_array_equal(after, episode.images[step + 1])
    assert seen == {name: list(range(len(episode.action))) for name, episode in by_id.items()}
    theirs = second_reader.frames(tmp_path)
    assert set(theirs) == set(store.frames)
    for name, array in store.frames.items():
        np.testing.assert_array_equal(theirs[name], array)
