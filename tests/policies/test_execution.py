"""Which actions of which chunk are executed, against plain loops."""

import numpy as np
import pytest

from statevla.policies.execution import ChunkBuffer, Execution
from stores.errors import UsageError


def numbered(offset: float = 0.0, length: int = 5) -> np.ndarray:
    return np.arange(length * 7, dtype=np.float32).reshape(length, 7) + offset


def test_chunks_are_executed_as_far_as_planned() -> None:
    buffer = ChunkBuffer(Execution(2))
    np.testing.assert_array_equal(buffer.add(numbered()), numbered()[:2])
    np.testing.assert_array_equal(buffer.add(numbered(100)), numbered(100)[:2])
    assert len(ChunkBuffer(Execution()).add(numbered())) == 3  # half, rounded up
    with pytest.raises(UsageError, match="at most the policy's chunk of 5"):
        ChunkBuffer(Execution(6)).add(numbered())


@pytest.mark.parametrize("coefficient", [0.3, -0.3])
def test_ensembling_is_the_weighted_mean_of_what_was_predicted_for_a_step(coefficient: float) -> None:
    rng = np.random.default_rng(0)
    buffer = ChunkBuffer(Execution(1, coefficient))
    chunks = rng.normal(size=(100, 4, 7)).astype(np.float32)
    for now in range(len(chunks)):
        action = buffer.add(chunks[now])[0]
        made_at = [t for t in range(now + 1) if now - t < 4]  # oldest first
        weights = [np.exp(-coefficient * i) for i in range(len(made_at))]
        expected = sum(w * chunks[t][now - t].astype(np.float64) for w, t in zip(weights, made_at, strict=True))
        expected = expected / sum(weights)
        np.testing.assert_allclose(action[:6], expected[:6], rtol=1e-12)
        if len(made_at) > 1:
            assert action[6] == (1.0 if expected[6] > 0 else -1.0)


@pytest.mark.parametrize(("coefficient", "chosen"), [(1e4, 0), (-1e4, -1)])
def test_a_large_weight_takes_the_oldest_and_a_negative_one_the_newest(coefficient: float, chosen: int) -> None:
    chunks = np.random.default_rng(0).normal(size=(6, 4, 7)).astype(np.float32)
    buffer = ChunkBuffer(Execution(1, coefficient))
    for now, chunk in enumerate(chunks):
        action = buffer.add(chunk)[0]
        made_at = [t for t in range(now + 1) if now - t < 4][chosen]
        np.testing.assert_allclose(action[:6], chunks[made_at][now - made_at][:6], rtol=1e-6)


@pytest.mark.parametrize("pose", [0.0, 0.7])
def test_chunks_that_agree_are_what_ensembling_gives(pose: float) -> None:
    buffer = ChunkBuffer(Execution(1, 0.01))
    for _ in range(7):
        np.testing.assert_allclose(buffer.add(chunk_of(pose))[0], chunk_of(pose)[0], rtol=1e-6, atol=1e-12)


def chunk_of(*pose: float, gripper: float = 1.0) -> np.ndarray:
    """Five equal actions."""
    return np.tile(np.array([*pose, *[0.0] * (6 - len(pose)), gripper], np.float32), (5, 1))


def test_a_vote_averages_those_that_agree_with_the_newest_where_they_are_most() -> None:
    buffer = ChunkBuffer(Execution(1, vote=True))
    buffer.add(chunk_of(1.0, 0.0))
    buffer.add(chunk_of(0.0, -1.0, gripper=-1.0))  # an outlier, by now
    action = buffer.add(chunk_of(1.0, 0.5))[0]
    np.testing.assert_allclose(action, [1.0, 0.25, 0, 0, 0, 0, 1.0])


def test_a_newest_chunk_that_stands_alone_is_outvoted() -> None:
    buffer = ChunkBuffer(Execution(1, vote=True))
    buffer.add(chunk_of(1.0, 0.0))
    buffer.add(chunk_of(0.8, 0.2))
    action = buffer.add(chunk_of(-1.0, 0.0, gripper=-1.0))[0]
    np.testing.assert_allclose(action, [0.9, 0.1, 0, 0, 0, 0, 1.0], atol=1e-7)


def test_a_robot_that_stands_still_agrees_with_itself() -> None:
    buffer = ChunkBuffer(Execution(1, vote=True))
    for _ in range(3):
        assert np.isfinite(buffer.add(chunk_of(0.0))).all()


def test_late_chunks_leave_exactly_so_many_steps_to_the_old_ones() -> None:
    replan, late, length = 3, 2, 5
    buffer = ChunkBuffer(Execution(replan, latency_steps=late))
    chunks = [numbered(1000 * number, length) for number in range(4)]
    executed = np.concatenate([buffer.add(chunk) for chunk in chunks])
    np.testing.assert_array_equal(executed[:late], [[0, 0, 0, 0, 0, 0, -1]] * late)  # nothing to do yet
    for step in range(late, len(executed)):
        made = (step - late) // replan
        np.testing.assert_array_equal(executed[step], chunks[made][step - made * replan])


def test_no_latency_is_no_change() -> None:
    chunks = [numbered(1000 * number) for number in range(4)]
    plain, none = ChunkBuffer(Execution(2)), ChunkBuffer(Execution(2, latency_steps=0))
    for chunk in chunks:
        np.testing.assert_array_equal(plain.add(chunk), none.add(chunk))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"replan": 0}, "replan: expected at least 1"),
        ({"ensemble": float("inf")}, "ensemble: expected a finite weight"),
        ({"ensemble": float("nan")}, "ensemble: expected a finite weight"),
        ({"ensemble": 0.1, "vote": True}, "choose one"),
        ({"latency_steps": -1}, "latency_steps: expected"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        Execution(**options)


def test_a_chunk_must_last_until_the_next_one_is_there() -> None:
    assert Execution(3, latency_steps=2).resolve(5).replan == 3
    with pytest.raises(UsageError, match="ends before the next one is there"):
        Execution(3, latency_steps=3).resolve(5)
