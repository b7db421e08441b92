"""Statistics against NumPy, bit identity for any distribution of work, and what normalizing promises."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores import statistics as norm
from stores.errors import StaleKey, StoreCorrupt, StoreMissing, UsageError

EPISODES = [np.random.default_rng(e).normal(3, 0.1 + e, (1 + 7 * e, 4)).astype(np.float32) for e in range(12)]


def _statistics(rows: np.ndarray) -> norm.Statistics:
    return norm.Statistics.of(norm.Moments.of(rows), norm.quantiles(rows))


def _normalization(rows: int = 50) -> norm.Normalization:
    rng = np.random.default_rng(1)
    action, state = rng.uniform(-1, 1, (rows, 7)), rng.normal(1, 2, (rows, 9))
    action[:, 2], state[:, 5] = 0.25, np.float32(1e-9)  # constant dimensions
    return norm.Normalization(_statistics(action), _statistics(state))


def test_merged_moments_are_those_of_all_rows() -> None:
    rows = np.concatenate(EPISODES).astype(np.float64)
    total = norm.merge([norm.Moments.of(e) for e in EPISODES])
    assert total.count == len(rows)
    np.testing.assert_allclose(total.mean, rows.mean(0), rtol=1e-13)
    np.testing.assert_allclose(total.m2 / total.count, rows.var(0), rtol=1e-12)
    np.testing.assert_array_equal(total.min, rows.min(0))
    np.testing.assert_array_equal(total.max, rows.max(0))


def test_a_large_offset_does_not_cancel() -> None:
    rows = np.array([[1e8], [1e8 + 1], [1e8 + 2], [1e8 + 3]])
    total = norm.merge([norm.Moments.of(rows[:1]), norm.Moments.of(rows[1:])])
    assert total.m2[0] / 4 == 1.25


@given(st.lists(st.integers(0, 3), min_size=len(EPISODES), max_size=len(EPISODES)), st.randoms())
def test_same_bits_for_any_workers_in_any_order(worker_of: list[int], random) -> None:
    wanted = norm.merge([norm.Moments.of(e) for e in EPISODES])
    results = []
    for worker in range(4):
        results += [(e, norm.Moments.of(EPISODES[e])) for e in range(len(EPISODES)) if worker_of[e] == worker]
    random.shuffle(results)
    total = norm.merge([moments for _, moments in sorted(results, key=lambda pair: pair[0])])
    for field in ("mean", "m2", "min", "max"):
        assert getattr(total, field).tobytes() == getattr(wanted, field).tobytes()
    rows = np.concatenate([EPISODES[e] for e, _ in results])
    assert norm.quantiles(rows).tobytes() == norm.quantiles(np.concatenate(EPISODES)).tobytes()


def test_quantiles_are_exact() -> None:
    rows = np.stack([np.arange(101.0), np.arange(101.0)[::-1] * 2], axis=1)
    np.testing.assert_allclose(norm.quantiles(rows), [[1, 2], [99, 198]], rtol=1e-15)


@pytest.mark.parametrize("mode", norm.MODES)
def test_normalizing_inverts_and_leaves_the_gripper_alone(mode: str) -> None:
    normalization = _normalization()
    rng = np.random.default_rng(2)
    for field, width in (("action", 7), ("robot_state", 9)):
        raw = rng.normal(0, 2, (6, 3, width)).astype(np.float32)
        there = normalization.normalize(field, raw, mode)
        assert there.dtype == np.float32
        assert np.isfinite(there).all()
        assert np.abs(there).max() < 100  # a constant dimension explodes nothing
        back = normalization.denormalize(field, there, mode)
        if field == "action":
            assert np.unique(back[..., 2]).tolist() == [0.25]  # whatever a model says of a constant dimension
            back[..., 2] = raw[..., 2]
        np.testing.assert_allclose(back, raw, atol=2e-6)
        if field == "action":
            np.testing.assert_array_equal(there[..., 6], raw[..., 6])


def test_mean_std_and_quantile_do_what_they_say() -> None:
    rows = np.random.default_rng(3).normal(5, 3, (4000, 9))
    normalization = norm.Normalization(_statistics(rows[:, :7]), _statistics(rows))
    plain = normalization.normalize("robot_state", rows)
    np.testing.assert_allclose(plain, (rows - rows.mean(0)) / rows.std(0), atol=1e-5)
    squeezed = normalization.normalize("robot_state", rows, "quantile")
    np.testing.assert_allclose(np.quantile(squeezed, [0.01, 0.99], axis=0), [[-1] * 9, [1] * 9], atol=1e-5)


def test_a_constant_dimension_has_no_spread_and_is_only_centred() -> None:
    action = _normalization().action
    assert action.std[2] == 0.0
    assert action.constant.tolist() == [False, False, True, False, False, False, False]
    assert _normalization().normalize("action", np.full(7, 0.5))[2] == 0.25
    assert action.min[2] == action.max[2] == action.mean[2] == 0.25


def test_bad_input_is_refused() -> None:
    with pytest.raises(StoreCorrupt, match="demo 3: expected finite"):
        norm.Moments.of(np.array([[np.nan]]), "demo 3")
    with pytest.raises(UsageError, match="at least one row"):
        norm.Moments.of(np.zeros((0, 3)))
    with pytest.raises(UsageError, match="train split is empty"):
        norm.merge([])
    with pytest.raises(UsageError, match="mode"):
        _normalization().normalize("action", np.zeros(7), "minmax")
    with pytest.raises(UsageError, match="field"):
        _normalization().normalize("image", np.zeros(7))


def test_saved_statistics_are_bound_to_the_store(tmp_path: Path) -> None:
    normalization = _normalization()
    with pytest.raises(StoreMissing, match="statevla stats"):
        norm.load_stats(tmp_path, "aa")
    key = norm.save_stats(tmp_path, "aa", normalization)
    assert norm.load_stats(tmp_path, "aa") == normalization
    with pytest.raises(StaleKey, match=f"{key}.*statevla stats"):
        norm.load_stats(tmp_path, "bb")
    path = tmp_path / norm.stats_path(key)
    path.rename(tmp_path / norm.stats_path(norm.stats_key("bb")))
    with pytest.raises(StaleKey, match="made for manifest aa"):
        norm.load_stats(tmp_path, "bb")
    path = tmp_path / norm.stats_path(norm.save_stats(tmp_path, "aa", normalization))
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.26", 1))
    with pytest.raises(StoreCorrupt, match="altered"):
        norm.load_stats(tmp_path, "aa")
