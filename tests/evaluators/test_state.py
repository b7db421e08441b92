"""Measures of states: closed forms, references, and the whole evaluation of a StaMo and of a JEPA encoder."""

import json
from pathlib import Path

import numpy as np
import pytest

from statevla.config.load import load_config
from statevla.evaluators.state import evaluate_states
from statevla.evaluators.state_measures import bend, principal, probe, psnr, ridge, ssim
from statevla.evaluators.state_pictures import _components
from statevla.systems.table import sections
from statevla.trainers.trainer import train
from stores.errors import StaleKey, UsageError
from stores.reader import Store
from tests.systems.test_stamo import MICRO
from tests.trainers.micro import SETTINGS, micro_store


def test_ridge_is_least_squares_of_the_augmented_system() -> None:
    rng = np.random.default_rng(0)
    x, y, penalty = rng.normal(size=(30, 4)), rng.normal(size=(30, 2)), 3.0
    centred = x - x.mean(axis=0)
    rows = np.concatenate([centred, np.sqrt(penalty) * np.eye(4)])
    expected, *_ = np.linalg.lstsq(rows, np.concatenate([y - y.mean(axis=0), np.zeros((4, 2))]), rcond=None)
    weights, offset = ridge(x, y, penalty)
    np.testing.assert_allclose(weights, expected)
    np.testing.assert_allclose(x.mean(axis=0) @ weights + offset, y.mean(axis=0))


def test_a_probe_finds_what_is_linear_and_nothing_in_noise() -> None:
    rng = np.random.default_rng(0)
    x, episode = rng.normal(size=(400, 6)), np.repeat(np.arange(20), 20)
    y = x @ rng.normal(size=(6, 3)) + 2
    assert probe((x[:300], y[:300], episode[:300]), (x[300:], y[300:])) > 0.999
    noise = rng.normal(size=(400, 3))
    assert abs(probe((x[:300], noise[:300], episode[:300]), (x[300:], noise[300:]))) < 0.1


def test_psnr_and_ssim_closed_forms() -> None:
    zero = np.zeros((20, 20))
    everywhere = np.ones_like(zero, dtype=bool)
    assert psnr(zero, zero + 0.1, everywhere) == pytest.approx(20)
    left = everywhere.copy()
    left[:, 10:] = False
    half = zero.copy()
    half[:, 10:] = 1
    assert psnr(zero, half, left) > 100
    rng = np.random.default_rng(0)
    picture = rng.random((20, 20))
    assert ssim(picture, picture) == pytest.approx(1)
    a, b = 0.3, 0.7
    assert ssim(zero + a, zero + b) == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4))


def test_a_straight_even_way_does_not_bend() -> None:
    line = np.arange(30)[:, None] * np.array([[1.0, -2.0]])
    np.testing.assert_allclose(bend(line, 10), 0, atol=1e-12)
    assert bend(line[np.random.default_rng(0).permutation(30)], 10).mean() > 0.5


def test_principal_components_hold_most_of_what_varies() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 8)) * np.array([9, 5, 1, 1, 1, 1, 1, 0.1])
    mean, directions = principal(x, 2)
    np.testing.assert_allclose(directions.T @ directions, np.eye(2), atol=1e-9)
    assert ((x - mean) @ directions).var(axis=0).sum() > 0.9 * x.var(axis=0).sum()
    train = rng.integers(0, 255, (12, 1, 4, 4, 3)).astype(np.uint8)
    told = _components(train, train / 255.0, 11)  # as many as 12 frames can have: they are given back
    np.testing.assert_allclose(told, train / 255.0, atol=1e-4)


def test_a_stamo_is_probed_and_paints(tmp_path: Path) -> None:
    store = micro_store(tmp_path / "store")
    config = load_config("tiny", None, (*SETTINGS, *MICRO, "training.max_steps=2"), sections())
    train("stamo", config, store, tmp_path / "run")
    found = evaluate_states(tmp_path / "run", Store.open(store), "cpu")
    assert set(found.probes) == {
        "state", "state, 64 components", "pooled pixels", "pooled pixels, 64 components",
    }  # fmt: skip
    assert set(found.probes["state"]) == {"1", "2", "5", "10"}
    assert found.state_numbers == 32
    assert found.pictures is not None
    assert set(found.pictures.whole) == {
        "its state", "the task's mean picture", "the nearest training picture", "32 principal components",
    }  # fmt: skip
    found.save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "state.json").read_text())["system"] == "stamo"
    assert "| its state |" in (tmp_path / "out" / "state.md").read_text()
    with pytest.raises(StaleKey, match="was trained on the store"):
        evaluate_states(tmp_path / "run", Store.open(micro_store(tmp_path / "other", seed=3)), "cpu")


def test_a_jepa_is_probed_and_a_policy_is_refused(tmp_path: Path) -> None:
    store = micro_store(tmp_path / "store")
    config = load_config("tiny", None, (*SETTINGS, "training.max_steps=1"), sections())
    train("temporal_jepa", config, store, tmp_path / "jepa")
    found = evaluate_states(tmp_path / "jepa", Store.open(store), "cpu")
    assert found.pictures is None
    assert found.system == "temporal_jepa"
    film = train("film", config, store, tmp_path / "film")
    with pytest.raises(UsageError, match=r"expected a trained encoder .*, got the policy film"):
        evaluate_states(Path(film.checkpoint), Store.open(store), "cpu")
