"""Index arithmetic of segments against brute force."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.errors import SourceError
from stores.segments import chunk_actions, segment_members, segment_spans

LENGTHS = st.tuples(st.integers(1, 200), st.booleans(), st.integers(1, 40), st.integers(1, 20))


@given(LENGTHS)
def test_every_transition_can_be_made_from_exactly_one_segment(case: tuple[int, bool, int, int]) -> None:
    steps, successor, window, chunk = case
    frames = steps + successor
    actions = np.arange(steps, dtype=np.float32)[:, None] + np.zeros((1, 7), np.float32)
    seen = []
    for span in segment_spans(frames, steps, window):
        assert 1 <= span.steps <= window
        action, is_pad = chunk_actions(actions, span, chunk)
        assert action.shape == (span.steps + chunk - 1, 7)
        for i in range(span.steps):
            t = span.first_step + i
            seen.append(t)
            assert i < span.observations  # obs_t
            assert (i + 1 < span.observations) == (t + 1 < frames)  # obs_{t+1}, where there is one
            for k in range(chunk):
                assert action[i + k, 0] == min(t + k, steps - 1)
                assert is_pad[i + k] == (t + k >= steps)
        assert span.first_step + span.observations <= frames
    assert seen == list(range(steps))


@pytest.mark.parametrize(("frames", "steps", "window"), [(0, 0, 4), (5, 3, 4), (3, 4, 4), (1, 0, 4), (4, 4, 0)])
def test_impossible_episodes_are_refused(frames: int, steps: int, window: int) -> None:
    with pytest.raises(SourceError, match="expected steps >= 1"):
        segment_spans(frames, steps, window)


def test_a_missing_image_is_refused() -> None:
    span = segment_spans(5, 4, 16)[0]
    state, action = np.zeros((5, 9), np.float32), np.zeros((4, 7), np.float32)
    images = {"agentview": [b"x"] * 5, "eye_in_hand": [b"x"] * 4}
    with pytest.raises(SourceError, match="expected 5 eye_in_hand images, got 4"):
        segment_members("key", span, {}, state, action, images, 10, "jpeg")


def test_the_json_of_a_segment_is_sorted_and_has_text_as_it_is() -> None:
    span = segment_spans(5, 4, 16)[0]
    state, action = np.zeros((5, 9), np.float32), np.zeros((4, 7), np.float32)
    meta = {"source": "é.hdf5", "episode": "é/0", "demo": "0", "instruction": "leg die Schüssel ab 碗"}
    name, data = segment_members("k", span, meta, state, action, {}, 2, "jpeg").members[0]
    told = {**meta, "first_step": 0, "steps": 4, "observations": 5}
    assert (name, data.decode()) == ("json", json.dumps(dict(sorted(told.items())), ensure_ascii=False))
    with pytest.raises(ValueError, match="not JSON compliant"):
        segment_members("k", span, {**meta, "rate": float("nan")}, state, action, {}, 2, "jpeg")
