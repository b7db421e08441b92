"""Offline evaluation of policies with known predictions, against plain loops over what went into the store.

Legend: S steps of an episode, K chunk.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from statevla.config import load_config
from statevla.data.batch import ObservationBatch
from statevla.evaluators.offline import evaluate_offline, measure, predict
from statevla.models.standardize import Standardize
from statevla.observation import ObsSpec, libero_spec
from statevla.policies.noise import Draw
from statevla.policies.policy import Policy
from statevla.systems.acting import Acted
from stores.errors import ObsSpecMismatch, StaleKey, StateVLAError
from stores.progress import ProgressEvent
from stores.reader import Store
from stores.spec import LIBERO
from tests.stores.make_store import MadeEpisode, make_tiny_store

K = 10


class LinearModel:
    """Predicts ``robot_state @ weights``, in action units; the gripper is that number's sign."""

    def __init__(self, store: Store, weights: np.ndarray) -> None:
        self.standardize_action = Standardize("action", store.stats())
        self.weights = weights

    def act_batch(self, obs: ObservationBatch, draws: Sequence[Draw]) -> Acted:
        chunk = (obs.robot_state @ torch.from_numpy(self.weights)).reshape(-1, K, 7)
        chunk[..., 6] = torch.where(chunk[..., 6] > 0, 1.0, -1.0)
        return Acted(chunk, None)


@dataclass(frozen=True)
class FakePolicy:
    model: LinearModel
    obs_spec: ObsSpec
    content_hash: str
    chunk: int = K

    @property
    def standardize_action(self) -> Standardize:
        return self.model.standardize_action

    def act_batch(self, obs: ObservationBatch, draws: Sequence[Draw]) -> Acted:
        return self.model.act_batch(obs, draws)


@dataclass(frozen=True)
class Made:
    store: Store
    episodes: list[MadeEpisode]
    weights: np.ndarray
    policy: FakePolicy

    @property
    def val(self) -> list[MadeEpisode]:
        return [episode for episode in self.episodes if episode.split == "val"]

    def predict(self, episode: MadeEpisode, step: int) -> np.ndarray:
        chunk = (episode.robot_state[step] @ self.weights).reshape(K, 7)
        chunk[:, 6] = np.where(chunk[:, 6] > 0, 1.0, -1.0)
        return chunk

    def pairs(self) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """(k, predicted action, demonstrated action) of every step that exists."""
        return [
            (k, self.predict(episode, step)[k], episode.action[step + k])
            for episode in self.val
            for step in range(len(episode.action))
            for k in range(K)
            if step + k < len(episode.action)
        ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    path = tmp_path_factory.mktemp("offline") / "store"
    episodes = make_tiny_store(path, episodes=8, frames=24, image=16)
    store = Store.open(path)
    weights = np.random.default_rng(5).normal(0, 0.5, (9, K * 7)).astype(np.float32)
    policy = FakePolicy(LinearModel(store, weights), store.spec, store.content_hash)
    return Made(store, episodes, weights, policy)


def test_errors_match_plain_loops(made: Made) -> None:
    results = evaluate_offline(made.policy, made.store, batch_size=7)
    pairs = made.pairs()
    train = np.concatenate([e.action for e in made.episodes if e.split == "train"]).astype(np.float64)
    mean, std = train.mean(axis=0), train.std(axis=0)
    for d, name in enumerate(LIBERO.action_names):
        assert results.mse[name] == pytest.approx(np.mean([(p[d] - t[d]) ** 2 for _, p, t in pairs]), rel=1e-5)
    normalized = [((p[:6] - mean[:6]) / std[:6], (t[:6] - mean[:6]) / std[:6], k) for k, p, t in pairs]
    assert results.mse_normalized == pytest.approx(np.mean([(p - t) ** 2 for p, t, _ in normalized]), rel=1e-5)
    for k, value in enumerate(results.mse_normalized_by_horizon):
        assert value == pytest.approx(np.mean([(p - t) ** 2 for p, t, at in normalized if at == k]), rel=1e-5)
    assert results.baseline_mean_action_mse_normalized == pytest.approx(
        np.mean([t**2 for _, t, _ in normalized]), rel=1e-5
    )
    assert results.gripper_accuracy == pytest.approx(np.mean([p[6] == t[6] for _, p, t in pairs]))
    assert results.gripper_ece is None
    assert (results.split, results.episodes) == ("val", len(made.val))
    assert results.frames == sum(len(e.action) for e in made.val)


def test_smoothness_matches_plain_loops(made: Made) -> None:
    smooth = evaluate_offline(made.policy, made.store).smoothness
    jerks: dict[str, list[np.ndarray]] = {"policy": [], "demo": []}
    seams: dict[str, list[np.ndarray]] = {"policy": [], "demo": []}
    for episode in made.val:
        steps = len(episode.action)
        for t in range(steps):
            valid = min(K, steps - t)
            for name, chunk in (("policy", made.predict(episode, t)[:valid]), ("demo", episode.action[t : t + valid])):
                xyz = chunk[:, :3].astype(np.float64)
                jerks[name] += [xyz[i] - 2 * xyz[i + 1] + xyz[i + 2] for i in range(valid - 2)]
            if t + K < steps:
                seams["policy"].append((made.predict(episode, t + K)[0] - made.predict(episode, t)[-1])[:3])
                seams["demo"].append((episode.action[t + K] - episode.action[t + K - 1])[:3])
    for name in ("policy", "demo"):
        assert getattr(smooth, f"{name}_jerk") == pytest.approx(np.sqrt(np.mean(np.square(jerks[name]))), rel=1e-5)
        assert getattr(smooth, f"{name}_seam") == pytest.approx(np.sqrt(np.mean(np.square(seams[name]))), rel=1e-5)


def test_batch_size_changes_nothing_and_progress_ends_at_the_total(made: Made) -> None:
    events: list[ProgressEvent] = []
    one = evaluate_offline(made.policy, made.store, batch_size=1, progress=events.append)
    many = evaluate_offline(made.policy, made.store, batch_size=1000)
    assert many.mse == pytest.approx(one.mse)  # a matrix product rounds otherwise in another batch
    assert many.gripper_accuracy == one.gripper_accuracy
    assert (many.episodes, many.frames) == (one.episodes, one.frames)
    assert events[-1].done == events[-1].total == one.frames


def test_the_demonstrator_itself_has_no_error(made: Made) -> None:
    class Oracle(LinearModel):
        """Knows each state's chunk by its robot state."""

        def act_batch(self, obs: ObservationBatch, draws: Sequence[Draw]) -> Acted:
            return Acted(torch.stack([table[row.tobytes()] for row in obs.robot_state.numpy()]), None)

    table = {}
    for episode in made.val:
        for t in range(len(episode.action)):
            rows = np.minimum(np.arange(t, t + K), len(episode.action) - 1)
            table[episode.robot_state[t].tobytes()] = torch.from_numpy(episode.action[rows])
    policy = replace(made.policy, model=Oracle(made.store, made.weights))
    results = evaluate_offline(policy, made.store)
    assert results.mse_normalized == 0.0
    assert set(results.mse.values()) == {0.0}
    assert results.gripper_accuracy == results.gripper_transition_f1 == 1.0
    assert results.smoothness.policy_jerk == results.smoothness.demo_jerk
    assert results.smoothness.policy_seam == results.smoothness.demo_seam


def test_a_constant_dimension_is_measured_and_hides_nothing(made: Made) -> None:
    predictions = predict(made.policy, made.store, "val", batch_size=64, seed=0)
    shift, scale = np.zeros(7), np.ones(7)
    moving = measure(predictions, shift, scale, np.zeros(7), "val")
    scale[3] = 0.0
    constant = measure(predictions, shift, scale, np.zeros(7), "val")
    assert constant.mse_normalized_by_dimension == moving.mse_normalized_by_dimension
    json.dumps(constant.to_dict(), allow_nan=False)


def test_a_dimension_that_never_moves_is_in_no_average(made: Made) -> None:
    predictions = predict(made.policy, made.store, "val", batch_size=64, seed=0)
    still = replace(
        predictions, target=predictions.target * (np.arange(7) != 3), predicted=predictions.predicted.copy()
    )
    still.predicted[..., 3] = 0.0
    results = measure(still, np.zeros(7), np.ones(7), np.zeros(7), "val")
    by_dimension = results.mse_normalized_by_dimension
    assert by_dimension["rx"] == 0.0
    others = [value for name, value in by_dimension.items() if name != "rx"]
    assert results.mse_normalized == pytest.approx(np.mean(others))
    horizon = [value for value in results.mse_normalized_by_horizon if value is not None]
    assert min(horizon) > 0.0
    assert results.baseline_mean_action_mse_normalized == pytest.approx(
        np.mean(still.target[~still.is_pad][:, [0, 1, 2, 4, 5]] ** 2)
    )


def test_an_untrained_bundle_is_measured_reproducibly(made: Made) -> None:
    overrides = ("model.encoder_depth=1", "model.policy_layers=1", "model.image_size=16", "model.embed_dim=32")
    config = load_config("tiny", None, overrides)
    policy = Policy.untrained(config, made.store)
    first, again = (evaluate_offline(policy, made.store, seed=3) for _ in range(2))
    assert first == again
    assert evaluate_offline(policy, made.store, seed=3, batch_size=5).mse == pytest.approx(first.mse)
    assert first.gripper_ece is not None
    assert 0.0 <= first.gripper_ece <= 1.0
    assert evaluate_offline(policy, made.store, seed=4).mse != first.mse


def test_a_policy_of_another_store_is_refused_unless_allowed(made: Made) -> None:
    policy = replace(made.policy, content_hash="f" * 64)
    with pytest.raises(StaleKey, match="another store"):
        evaluate_offline(policy, made.store)
    assert evaluate_offline(policy, made.store, allow_other_store=True) == evaluate_offline(made.policy, made.store)


def test_another_observation_is_refused(made: Made) -> None:
    policy = replace(made.policy, obs_spec=libero_spec(128))
    with pytest.raises(ObsSpecMismatch, match="height"):
        evaluate_offline(policy, made.store, allow_other_store=True)


def test_predictions_that_are_not_finite_are_refused(made: Made) -> None:
    policy = replace(made.policy, model=LinearModel(made.store, np.full_like(made.weights, np.nan)))
    with pytest.raises(StateVLAError, match="NaN"):
        evaluate_offline(policy, made.store)


def test_results_are_written(made: Made, tmp_path: Path) -> None:
    evaluate_offline(made.policy, made.store).save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"offline.json", "offline.md"}
