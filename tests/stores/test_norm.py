"""Statistics against NumPy, to the bit where that is promised, and which dimensions they are applied to."""

import dataclasses
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores import statistics as norm
from stores.errors import StaleKey, StoreCorrupt, StoreMissing, UsageError
from stores.spec import BINARY, CONTINUOUS, LIBERO, ActionField, StateField
from tests.stores.make_store import merged

EPISODES = [np.random.default_rng(e).normal(3, 0.1 + e, (1 + 7 * e, 4)).astype(np.float32) for e in range(12)]


def _quantiles(*pieces: np.ndarray) -> np.ndarray:
    tails = norm.Tails(sum(map(len, pieces)), pieces[0].shape[1])
    for piece in pieces:
        tails.add(piece)
    return tails.quantiles()


def _statistics(rows: np.ndarray) -> norm.Statistics:
    return norm.Statistics.of(norm.Moments.of(rows), _quantiles(rows))


def _normalization(rows: int = 50) -> norm.Normalization:
    rng = np.random.default_rng(1)
    action, state = rng.uniform(-1, 1, (rows, 7)), rng.normal(1, 2, (rows, 9))
    action[:, 2], state[:, 5] = 0.25, np.float32(1e-9)  # constant dimensions
    return norm.Normalization(_statistics(action), _statistics(state))


def test_merged_moments_are_those_of_all_rows() -> None:
    rows = np.concatenate(EPISODES).astype(np.float64)
    total = merged([norm.Moments.of(e) for e in EPISODES])
    assert total.count == len(rows)
    np.testing.assert_allclose(total.mean, rows.mean(0), rtol=1e-13)
    np.testing.assert_allclose(total.m2 / total.count, rows.var(0), rtol=1e-12)
    np.testing.assert_array_equal(total.min, rows.min(0))
    np.testing.assert_array_equal(total.max, rows.max(0))


def test_a_large_offset_does_not_cancel() -> None:
    rows = np.array([[1e8], [1e8 + 1], [1e8 + 2], [1e8 + 3]])
    total = merged([norm.Moments.of(rows[:1]), norm.Moments.of(rows[1:])])
    assert total.m2[0] / 4 == 1.25


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=400),
    st.integers(1, 3),
    st.integers(1, 60),
    st.sampled_from([1, 7, 4096]),
)
def test_quantiles_are_numpys_to_the_bit_however_the_rows_come(
    values: list[float], repeats: int, piece: int, at_once: int
) -> None:
    rows = np.array(values * repeats, np.float32)[:, None] + np.float32(0)  # no negative zeros: they have no order
    wanted = np.quantile(rows.astype(np.float64), norm.LEVELS, axis=0, method="linear")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm, "SORTED_ROWS", at_once)
        got = _quantiles(*(rows[start : start + piece] for start in range(0, len(rows), piece)))
    assert got.tobytes() == wanted.tobytes()


def test_quantiles_of_many_rows_are_held_in_a_fiftieth_of_them() -> None:
    rows = np.random.default_rng(5).normal(size=(200_000, 1)).astype(np.float32)
    tracemalloc.start()
    pieces = [rows[start : start + 512] for start in range(0, len(rows), 512)]
    got = _quantiles(*pieces)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert got.tobytes() == np.quantile(rows.astype(np.float64), norm.LEVELS, axis=0).tobytes()
    assert peak < rows.nbytes / 2  # all rows as float64 would be twice as much as they are


def test_other_rows_than_announced_are_refused() -> None:
    for announced, rows in ((3, 2), (3, 4), (0, 0)):
        tails = norm.Tails(announced, 2)
        tails.add(np.zeros((rows, 2)))
        with pytest.raises(UsageError, match=f"expected {announced} rows"):
            tails.quantiles()


def test_binary_dimensions_are_left_alone_and_the_others_are_standardized() -> None:
    normalization = _normalization()
    for field, width in (("action", 7), ("robot_state", 9)):
        shift, scale = normalization.affine(field, LIBERO)
        of_field = getattr(normalization, field)
        moved = [d for d in range(width) if field == "robot_state" or d in LIBERO.continuous]
        np.testing.assert_array_equal(shift[moved], np.array(of_field.mean)[moved])
        spread = np.array(of_field.std)
        if field == "robot_state":
            spread[of_field.constant] = 1.0
        np.testing.assert_array_equal(scale[moved], spread[moved])
        if field == "action":
            assert (shift[6], scale[6]) == (0.0, 1.0)
    first = dataclasses.replace(
        LIBERO, action=(ActionField("grip", 1, BINARY, ""), ActionField("pose", 6, CONTINUOUS, ""))
    )
    shift, scale = normalization.affine("action", first)
    assert (shift[0], scale[0]) == (0.0, 1.0)
    assert shift[6] == normalization.action.mean[6]
    with pytest.raises(UsageError, match="robot_state: 9 dimensions, the obs spec has 3"):
        normalization.affine("robot_state", dataclasses.replace(LIBERO, robot_state=(StateField("q", 3, "rad"),)))


def test_a_constant_dimension_has_no_spread_and_an_actions_comes_back_as_its_constant() -> None:
    normalization = _normalization()
    action, state = normalization.action, normalization.robot_state
    assert (action.std[2], state.std[5]) == (0.0, 0.0)
    assert action.constant.tolist() == [False, False, True, False, False, False, False]
    shift, scale = normalization.affine("action", LIBERO)
    assert (shift[2], scale[2]) == (0.25, 0.0)  # x * scale + shift is the constant, whatever x is
    assert normalization.affine("robot_state", LIBERO)[1][5] == 1.0  # centred, never divided by nothing


def test_bad_input_is_refused() -> None:
    with pytest.raises(StoreCorrupt, match="demo 3: expected finite"):
        norm.Moments.of(np.array([[np.nan]]), "demo 3")
    with pytest.raises(UsageError, match="at least one row"):
        norm.Moments.of(np.zeros((0, 3)))
    with pytest.raises(UsageError, match="field"):
        _normalization().affine("image", LIBERO)


def test_saved_statistics_are_bound_to_the_store(tmp_path: Path) -> None:
    normalization = _normalization()
    with pytest.raises(StoreMissing, match=f"stats are not there yet; run `statevla stats --store {tmp_path}`"):
        norm.load_stats(tmp_path, "aa")
    path = tmp_path / norm.save_stats(tmp_path, "aa", normalization)
    assert norm.load_stats(tmp_path, "aa") == normalization
    with pytest.raises(StaleKey, match=f"{path.name}.*statevla stats"):
        norm.load_stats(tmp_path, "bb")
    other = tmp_path / norm.save_stats(tmp_path, "bb", normalization)
    path.replace(other)
    with pytest.raises(StaleKey, match="another content_hash"):
        norm.load_stats(tmp_path, "bb")
    path = tmp_path / norm.save_stats(tmp_path, "aa", normalization)
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.26", 1))
    with pytest.raises(StoreCorrupt, match="altered"):
        norm.load_stats(tmp_path, "aa")
