"""Measures of states: closed forms, references, and the whole evaluation of a StaMo and of a JEPA encoder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cli import app
from pipelines.derive.features import FeatureConfig, make_features
from statevla.config.load import load_config
from statevla.evaluators import state_probes
from statevla.evaluators.state import _code, evaluate_states
from statevla.evaluators.state_measures import LAMBDAS, bend, bootstrap, principal, probe, psnr, ridge, ssim
from statevla.evaluators.state_pictures import _components, _ssim
from statevla.systems.table import sections
from statevla.trainers.trainer import train
from stores.errors import StaleKey, UsageError
from stores.reader import Store
from tests.pipelines.test_features import save_small_dinov2
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
    train, test = slice(0, 300), slice(300, 400)
    found = probe((x[train], y[train], episode[train]), (x[test], y[test], episode[test]))
    assert found.r2 > 0.999
    noise = rng.normal(size=(400, 3))
    found = probe((x[train], noise[train], episode[train]), (x[test], noise[test], episode[test]))
    assert abs(found.r2) < 0.1
    assert found.low is not None
    assert found.low < found.r2 < found.high
    assert found.mse == pytest.approx((noise[test] ** 2).mean(), rel=0.2)


def test_a_probe_is_the_ridge_of_the_penalty_that_is_best_on_held_out_episodes() -> None:
    rng = np.random.default_rng(1)
    x, episode = rng.normal(3, 2, size=(60, 20)), np.repeat(np.arange(12), 5)
    y = x[:, :2] + rng.normal(0, 4, size=(60, 2))
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    errors = []
    for penalty in LAMBDAS:
        total = 0.0
        for number in range(5):
            away = episode % 5 == number
            weights, offset = ridge(scaled[~away], y[~away], penalty)
            total += ((scaled[away] @ weights + offset - y[away]) ** 2).sum()
        errors.append(total)
    weights, offset = ridge(scaled, y, LAMBDAS[int(np.argmin(errors))])
    wrong = ((scaled @ weights + offset - y) ** 2).sum()
    found = probe((x, y, episode), (x, y, episode))
    assert found.r2 == pytest.approx(1 - wrong / ((y - y.mean(axis=0)) ** 2).sum())


def test_the_interval_is_over_episodes() -> None:
    wrong, plain = np.repeat([1.0, 3.0], 50), np.full(100, 4.0)
    assert bootstrap(wrong, plain, np.repeat([0, 1], 50), 0) == (0.25, 0.75)  # either episode may be drawn twice
    low, high = bootstrap(wrong, plain, np.arange(100), 0)
    assert 0.4 < low < 0.5 < high < 0.6
    assert bootstrap(wrong, plain, np.zeros(100, int), 0) == (None, None)


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
    np.testing.assert_allclose(ssim(picture, picture), np.ones((10, 10)))
    a, b = 0.3, 0.7
    np.testing.assert_allclose(ssim(zero + a, zero + b), (2 * a * b + 1e-4) / (a * a + b * b + 1e-4))


def test_similarity_where_it_moves_is_of_the_windows_in_whose_middle_it_does() -> None:
    rng = np.random.default_rng(0)
    seen, told = (rng.random((2, 1, 20, 20, 3)) for _ in range(2))
    moved = np.zeros((2, 1, 20, 20), dtype=bool)
    moved[1, 0, 9, 7] = moved[0, 0, 0, 0] = True  # the second has no window around it
    whole, moving = _ssim(seen, told, moved)
    maps = [ssim(seen[n, 0].mean(axis=-1), told[n, 0].mean(axis=-1)) for n in range(2)]
    assert whole == pytest.approx(np.mean(maps))
    assert moving == pytest.approx(maps[1][4, 2])
    assert _ssim(seen, told, np.zeros_like(moved))[1] is None


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
    assert found.notes == (
        "nothing of this encoder is frozen: its features are those of convolutions trained with the rest",
        "no features of dinov2 are kept with this store, so they are absent; run `statevla features STORE --encoder "
        "NAME` with it",
        "states of temporal_jepa are absent; name one of this store with --beside",
    )
    assert found.pictures is not None
    assert set(found.pictures.whole) == {
        "its state", "its state, in one step", "the task's mean picture", "the nearest training picture",
        "32 principal components",
    }  # fmt: skip
    assert set(found.gripper) == set(found.probes)
    found.save(tmp_path / "out")
    assert "The same of the gripper's commands" in (tmp_path / "out" / "state.md").read_text()
    assert json.loads((tmp_path / "out" / "state.json").read_text())["system"] == "stamo"
    assert "| its state |" in (tmp_path / "out" / "state.md").read_text()
    with pytest.raises(StaleKey, match="was trained on the store"):
        evaluate_states(tmp_path / "run", Store.open(micro_store(tmp_path / "other", seed=3)), "cpu")


def test_one_camera_is_painted_from_noise_alone_with_guidance(tmp_path: Path) -> None:
    store = micro_store(tmp_path / "store")
    chosen = ("stamo.cameras=eye_in_hand", "stamo.levels=noise", "training.max_steps=1")
    train("stamo", load_config("tiny", None, (*SETTINGS, *MICRO, *chosen), sections()), store, tmp_path / "run")
    told = CliRunner().invoke(
        app, ["eval", "state", "--checkpoint", str(tmp_path / "run"), "--guidance", "1.5",
              "--out", str(tmp_path / "out"), "--store", str(store), "--device", "cpu", "--json"],
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    found = json.loads((tmp_path / "out" / "state.json").read_text())
    assert found["state_numbers"] == 16
    assert "its state" not in found["pictures"]["whole"]
    assert "its state, in one step" in found["pictures"]["whole"]
    assert f"{found['state_numbers']} principal components" in found["pictures"]["whole"]
    assert "painted with guidance 1.5" in found["notes"]
    assert "its states are of eye_in_hand; pooled pixels are of every camera" in found["notes"]
    assert [file.name for file in (tmp_path / "out").glob("*.png")] == ["between_1.png"]


def test_another_painter_of_the_same_pictures_paints_beside(tmp_path: Path) -> None:
    """As itself would: what it paints is not of the first one's states."""
    store = micro_store(tmp_path / "store")
    for name, keys in (
        ("flow", ("training.seed=1",)), ("direct", ("stamo.levels=noise", "training.learning_rate=0.01")),
        ("one camera", ("stamo.cameras=agentview",)),
    ):  # fmt: skip
        config = load_config("tiny", None, (*SETTINGS, *MICRO, *keys, "training.max_steps=4"), sections())
        train("stamo", config, store, tmp_path / name)
    opened = Store.open(store)
    beside = [tmp_path / "direct", tmp_path / "one camera"]
    found = evaluate_states(tmp_path / "flow", opened, "cpu", beside=beside).pictures
    own = evaluate_states(tmp_path / "direct", opened, "cpu").pictures
    assert found is not None
    assert own is not None
    assert [name for name in found.whole if " of " in name] == ["stamo of direct, in one step"]
    assert found.whole["stamo of direct, in one step"] == own.whole["its state, in one step"]
    assert found.whole["stamo of direct, in one step"] != found.whole["its state, in one step"]


def test_guidance_of_what_does_not_paint_or_always_had_its_state_is_refused(tmp_path: Path) -> None:
    store = micro_store(tmp_path / "store")
    for system, key in (("temporal_jepa", "stamo.depth=1"), ("stamo", "stamo.state_dropout=0")):
        config = load_config("tiny", None, (*SETTINGS, *MICRO, key, "training.max_steps=1"), sections())
        train(system, config, store, tmp_path / system)
    with pytest.raises(UsageError, match=r"--guidance 2: temporal_jepa paints nothing"):
        evaluate_states(tmp_path / "temporal_jepa", Store.open(store), "cpu", guidance=2.0)
    with pytest.raises(UsageError, match=r"never painted without a state \(stamo\.state_dropout=0\)"):
        evaluate_states(tmp_path / "stamo", Store.open(store), "cpu", guidance=2.0)


def test_the_grippers_commands_are_probed_by_themselves() -> None:
    """A feature that adds the commands up tells all of them and nothing of the arm; one of the arm's, the other way."""
    rng, frames, episodes = np.random.default_rng(0), 40, 12
    arm, hand = rng.normal(size=(episodes, frames, 2)), rng.choice([-1.0, 1.0], size=(episodes, frames, 1))
    episode = np.arange(episodes).repeat(frames)

    def coded(chosen: slice) -> state_probes.Coded:
        before = {name: np.cumsum(np.roll(done, 1, axis=1), axis=1)[chosen].reshape(-1, done.shape[2])
                  for name, done in (("of the arm", arm), ("of the hand", hand))}  # fmt: skip
        rows = slice(chosen.start * frames, chosen.stop * frames)
        flat = arm[chosen].reshape(-1, 2), hand[chosen].reshape(-1, 1)
        return state_probes.Coded(before, flat[0], episode[rows], np.arange(len(flat[0])), flat[1])

    train_side, val = coded(slice(0, 9)), coded(slice(9, 12))
    pose, grip = state_probes.probe_all(train_side, val, 0)
    for k in ("1", "5"):
        for found, own, other in ((grip, "of the hand", "of the arm"), (pose, "of the arm", "of the hand")):
            mine, theirs = found[own][k], found[other][k]
            assert mine is not None
            assert theirs is not None
            assert mine.r2 > 0.999
            assert theirs.r2 < 0.2


def test_a_gripper_that_never_moves_is_not_told() -> None:
    episode, feature = np.arange(12).repeat(20), np.random.default_rng(0).normal(size=(240, 3))
    still = state_probes.Coded({"x": feature}, feature[:, :2], episode, np.arange(240), -np.ones((240, 1)))
    pose, grip = state_probes.probe_all(still, still, 0)
    assert list(grip["x"].values()) == [None] * 4
    assert pose["x"]["1"] is not None


def test_a_jepa_is_probed_and_a_policy_is_refused(tmp_path: Path) -> None:
    store = micro_store(tmp_path / "store")
    config = load_config("tiny", None, (*SETTINGS, "training.max_steps=1"), sections())
    train("temporal_jepa", config, store, tmp_path / "jepa")
    found = evaluate_states(tmp_path / "jepa", Store.open(store), "cpu")
    assert found.pictures is None
    assert found.system == "temporal_jepa"
    assert "Actions count as displacements: where they are positions to reach" in found.to_markdown()
    film = train("film", config, store, tmp_path / "film")
    with pytest.raises(UsageError, match=r"expected a trained encoder .*, got the policy film"):
        evaluate_states(Path(film.checkpoint), Store.open(store), "cpu")


def test_kept_features_and_other_encoders_are_probed_on_the_same_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = micro_store(tmp_path / "store")
    make_features(FeatureConfig(store, str(save_small_dinov2(tmp_path / "tower")), name="dino", device="cpu"))
    config = load_config("tiny", None, (*SETTINGS, *MICRO, "training.max_steps=1"), sections())
    for system in ("stamo", "temporal_jepa"):
        train(system, config, store, tmp_path / system)
    opened = Store.open(store)
    found = evaluate_states(tmp_path / "stamo", opened, "cpu", beside=[tmp_path / "temporal_jepa"])
    names = ["state", "temporal_jepa of temporal_jepa", "pooled pixels", "features/dino, mean", "features/dino, class"]
    assert list(found.probes) == [row for name in names for row in (name, f"{name}, 64 components")]
    assert len(found.notes) == 1
    alone = evaluate_states(tmp_path / "temporal_jepa", opened, "cpu")
    assert found.probes["temporal_jepa of temporal_jepa"] == alone.probes["state"]
    assert found.probes["features/dino, class"] == alone.probes["features/dino, class"]
    assert f"| features/dino, class | {found.probes['features/dino, class']['1'].r2:.3f} (" in found.to_markdown()
    with pytest.raises(UsageError, match=r"--beside .*: temporal_jepa of temporal_jepa is there already"):
        evaluate_states(tmp_path / "stamo", opened, "cpu", beside=[tmp_path / "temporal_jepa"] * 2)
    asked = ("--checkpoint", tmp_path / "stamo", "--beside", tmp_path / "temporal_jepa", "--store", store)
    told = CliRunner().invoke(
        app, ["eval", "state", *map(str, asked), "--out", str(tmp_path / "out"), "--device", "cpu", "--json"]
    )
    assert json.loads(told.stdout)["probes"]["state"]["1"]["r2"] == pytest.approx(found.probes["state"]["1"].r2)
    frames = opened.manifest.counts["frames"]
    monkeypatch.setattr(state_probes, "vectors", lambda found, count: {"mean": np.zeros((count, 4))})
    kept, absent = state_probes.kept_vectors(opened)  # as before class tokens were kept
    assert {name: len(values) for name, values in kept.items()} == {"features/dino, mean": frames}
    assert "features/dino has no <camera>_class, so its class token is absent" in absent[0]


def test_a_frames_features_are_those_of_its_row(tmp_path: Path) -> None:
    store = Store.open(micro_store(tmp_path / "store"))
    numbers = {"number": np.arange(store.manifest.counts["frames"])[:, None].astype(float)}
    coded = _code({}, numbers, store, "val", torch.device("cpu"), None)
    first = store.episode_columns["first_frame"]
    for episode in np.unique(coded.episode):
        own = coded.features["number"][coded.episode == episode, 0]
        np.testing.assert_array_equal(own, first[episode] + np.arange(len(own)))
