"""Chunk measures against plain loops."""

import numpy as np
import pytest

from statevla.evaluators.metrics import (
    calibration_error,
    gripper_accuracy,
    gripper_transition_f1,
    jerk,
    mse_by_dimension,
    mse_by_horizon,
    seam,
)

N, K, D = 9, 5, 7


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chunks of one nine-step episode, padded as loaders pad: step k of frame n is valid while n + k < 9."""
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=(N, K, D)).astype(np.float32)
    target = rng.normal(size=(N, K, D)).astype(np.float32)
    is_pad = np.arange(N)[:, None] + np.arange(K) >= N
    return predicted, target, is_pad


def test_errors_match_a_plain_loop(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    predicted, target, is_pad = case
    for d in range(D):
        errors = [
            (float(predicted[n, k, d]) - float(target[n, k, d])) ** 2 for n in range(N) for k in range(K) if n + k < N
        ]
        assert mse_by_dimension(predicted, target, is_pad)[d] == pytest.approx(sum(errors) / len(errors))
    for k, value in enumerate(mse_by_horizon(predicted, target, is_pad)):
        errors = [
            (float(predicted[n, k, d]) - float(target[n, k, d])) ** 2 for n in range(N) for d in range(D) if n + k < N
        ]
        assert value == pytest.approx(sum(errors) / len(errors))


def test_padding_counts_nowhere(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    predicted, target, is_pad = case
    spoiled = predicted.copy()
    spoiled[is_pad] = 1e9
    np.testing.assert_array_equal(
        mse_by_dimension(predicted, target, is_pad), mse_by_dimension(spoiled, target, is_pad)
    )
    assert mse_by_horizon(predicted, target, is_pad) == mse_by_horizon(spoiled, target, is_pad)
    assert jerk(predicted, is_pad) == jerk(spoiled, is_pad)
    frames = np.arange(N)
    assert seam(predicted, is_pad, np.zeros(N, int), frames) == seam(spoiled, is_pad, np.zeros(N, int), frames)
    closes, wanted = predicted[..., 0] > 0, target[..., 0] > 0
    flipped = np.where(is_pad, ~closes, closes)
    assert gripper_accuracy(closes, wanted, is_pad) == gripper_accuracy(flipped, wanted, is_pad)
    assert gripper_transition_f1(closes, wanted, is_pad) == gripper_transition_f1(flipped, wanted, is_pad)


def test_a_horizon_without_valid_steps_has_no_error() -> None:
    is_pad = np.array([[False, False, True]])
    zeros = np.zeros((1, 3, D))
    assert mse_by_horizon(zeros, zeros + 2, is_pad) == [4.0, 4.0, None]


def test_gripper_transitions_by_hand() -> None:
    wanted = np.array([[0, 0, 1, 1], [1, 0, 0, 1]], dtype=bool)
    closes = np.array([[0, 1, 1, 1], [1, 0, 0, 1]], dtype=bool)
    is_pad = np.zeros((2, 4), dtype=bool)
    # wanted changes: (0, 2), (1, 1), (1, 3); predicted: (0, 1), (1, 1), (1, 3); found: two.
    assert gripper_transition_f1(closes, wanted, is_pad) == pytest.approx(2 * 2 / (3 + 3))
    is_pad[1, 3] = True  # one found change less
    assert gripper_transition_f1(closes, wanted, is_pad) == pytest.approx(2 * 1 / (2 + 2))
    assert gripper_accuracy(closes, wanted, is_pad) == pytest.approx(6 / 7)
    still = np.zeros((2, 4), dtype=bool)
    assert gripper_transition_f1(still, still, is_pad) is None
    # The same place in the wrong direction is no hit.
    assert gripper_transition_f1(np.array([[True, False]]), np.array([[False, True]]), still[:1, :2]) == 0.0


def test_calibration_against_a_loop() -> None:
    rng = np.random.default_rng(1)
    p = rng.uniform(size=(40, K))
    closed = rng.uniform(size=(40, K)) < 0.3
    is_pad = rng.uniform(size=(40, K)) < 0.2
    entries = [(p[i, k], closed[i, k]) for i in range(40) for k in range(K) if not is_pad[i, k]]
    total = 0.0
    for b in range(10):
        low, high = 0.5 + b / 20, 0.5 + (b + 1) / 20
        inside = [(q, c) for q, c in entries if low <= max(q, 1 - q) < high]
        if inside:
            accuracy = np.mean([(q > 0.5) == c for q, c in inside])
            confidence = np.mean([max(q, 1 - q) for q, _ in inside])
            total += len(inside) / len(entries) * abs(accuracy - confidence)
    assert calibration_error(p, closed, is_pad) == pytest.approx(total)


def test_calibration_of_certainty() -> None:
    closed = np.array([[True, False, True, True]])
    no_pad = np.zeros((1, 4), dtype=bool)
    assert calibration_error(closed.astype(float), closed, no_pad) == 0.0
    assert calibration_error(np.ones((1, 4)), closed, no_pad) == pytest.approx(0.25)


def test_jerk_of_a_parabola_and_of_a_line() -> None:
    t = np.arange(K, dtype=float)
    no_pad = np.zeros((1, K), dtype=bool)
    assert jerk((3 * t**2)[None, :, None], no_pad) == pytest.approx(6.0)
    assert jerk((3 * t + 1)[None, :, None], no_pad) == pytest.approx(0.0)
    assert jerk(np.zeros((1, 2, 3)), no_pad[:, :2]) is None


def test_seams_by_hand() -> None:
    # Two episodes of 5 and 3 frames, chunks of 2, in mixed order; chunk of (e, f) = [10 e + f, 10 e + f + 0.5].
    order = [(1, 2), (0, 0), (0, 3), (1, 0), (0, 1), (0, 4), (1, 1), (0, 2)]
    episode, frame = (np.array(column) for column in zip(*order, strict=True))
    first = (10 * episode + frame).astype(float)
    chunks = np.stack([first, first + 0.5], axis=1)[..., None]
    is_pad = np.zeros((8, 2), dtype=bool)
    assert seam(chunks, is_pad, episode, frame) == pytest.approx(1.5)
    assert seam(chunks[:1], is_pad[:1], episode[:1], frame[:1]) is None
