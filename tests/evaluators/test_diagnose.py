"""Six links broken on purpose, in the world or in the policy: the diagnosis names the one that was broken."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.collect.tabletop import collect_tabletop
from pipelines.derive.stats import compute_statistics
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from pipelines.replay import replay_of_files
from statevla.evaluators.conditions import Told
from statevla.evaluators.diagnose import Diagnosis, diagnose
from statevla.evaluators.diagnose_episodes import Episode, start_number, stored
from statevla.evaluators.diagnose_links import alignment, gripper, predictions
from statevla.evaluators.diagnose_loop import closed_loop, nearest_frames
from statevla.observation import Observation, ObsSpec, libero_spec
from statevla.policies.controls import ZeroPolicy
from statevla.policies.noise import Draw
from statevla.policies.policy import Policy
from statevla.sims.suites import SUITES
from statevla.sims.tabletop.environment import Obs, TabletopEnv
from statevla.sims.tabletop.suite import TabletopSuite
from statevla.systems.acting import Acted
from stores.errors import UsageError
from stores.reader import Store
from stores.spec import LIBERO
from tests.trainers.micro import micro_config

SIDE = 32
CHAIN = ["pictures", "statistics", "alignment", "gripper", "instruction", "predictions", "closed loop"]


class UpsideDown(TabletopEnv):
    def observe(self) -> Obs:
        seen = super().observe()
        return {key: value[::-1].copy() if "image" in key else value for key, value in seen.items()}


class SwappedCameras(TabletopEnv):
    def observe(self) -> Obs:
        seen = super().observe()
        a, b = "agentview_image", "robot0_eye_in_hand_image"
        return {**seen, a: seen[b], b: seen[a]}


class FlippedGripper(TabletopEnv):
    def step(self, action: Any) -> Any:
        return super().step(np.asarray(action) * np.array([1, 1, 1, 1, 1, 1, -1]))


class ShiftedActions(TabletopEnv):
    """Executes each action two steps later."""

    def reset(self, task: int | None = None, seed: int | None = None) -> Obs:
        self.waiting = [np.array([0, 0, 0, 0, 0, 0, -1.0])] * 2
        return super().reset(task, seed)

    def step(self, action: Any) -> Any:
        self.waiting.append(np.asarray(action))
        return super().step(self.waiting.pop(0))


class Dark(TabletopEnv):
    def observe(self) -> Obs:
        seen = super().observe()
        return {key: (value * 0.75).astype(np.uint8) if "image" in key else value for key, value in seen.items()}


class Degrees(TabletopEnv):
    def observe(self) -> Obs:
        seen = super().observe()
        return {**seen, "robot0_joint_pos": np.rad2deg(seen["robot0_joint_pos"])}


@dataclass(frozen=True)
class OtherWords(TabletopSuite):
    def tasks(self, chosen: Any) -> list[Any]:
        return [Told(t.suite, t.index, t.name, f"kindly {t.instruction}") for t in super().tasks(chosen)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("diagnose")


@pytest.fixture(scope="module")
def store(root: Path) -> Store:
    collect_tabletop(root / "raw", 12, image_size=SIDE)
    ingest(IngestConfig(suite="tabletop", source=root / "raw", out=root / "store", language="hashed"))
    compute_statistics(root / "store")
    return Store.open(root / "store")


@pytest.fixture(scope="module")
def policy(store: Store) -> Policy:
    return Policy.untrained(micro_config(), store)


def look(policy: Any, store: Store, **options: Any) -> Diagnosis:
    raw = replay_of_files(Path(store.root).with_name("raw"), "tabletop")
    usual = {"trials": 1, "max_steps": 6, "tasks": "0", "replay": raw}
    return diagnose(policy, store, name="p", **(usual | options))


def words(found: Diagnosis) -> dict[str, str]:
    return {link.name: link.word for link in found.links}


class Knows:
    """Gives the chunk of the nearest stored frame: as good as its data."""

    def __init__(self, store: Store) -> None:
        self.obs_spec: ObsSpec = store.spec
        self.chunk, self.identity = 5, "knows"
        episodes = [stored(store, i) for i in range(len(store.episode_columns["id"]))]
        rows = [(e, t) for e in episodes for t in range(len(e.actions) - self.chunk + 1)]
        self._keys = np.stack([self._key(e.observation(t)) for e, t in rows])
        self._chunks = np.stack([e.actions[t : t + self.chunk] for e, t in rows])

    def _key(self, seen: Observation) -> Any:
        pictures = np.concatenate([image[::4, ::4].ravel() for image in seen.images]) / 255.0
        return np.concatenate([pictures, 3 * seen.robot_state])

    def act(self, observations: Sequence[Observation], draws: Sequence[Draw] | None = None) -> Acted:
        keys = np.stack([self._key(seen) for seen in observations])
        return Acted(torch.from_numpy(self._chunks[nearest_frames(keys, self._keys)[1]]), None)


def test_a_sound_chain_is_said_to_be_sound(store: Store) -> None:
    found = look(Knows(store), store)
    told = words(found)
    assert list(told) == CHAIN
    assert {told[name] for name in CHAIN[:-1]} == {"ok"}
    assert "trials succeeded" in found.links[-1].evidence


@pytest.mark.parametrize(
    ("env", "broken", "evidence"),
    [
        (UpsideDown, "pictures", "upside-down is much nearer"),
        (SwappedCameras, "pictures", "the simulator's eye_in_hand is much nearer"),
        (Dark, "pictures", "brightness"),
        (Degrees, "statistics", "the simulator begins at"),
        (ShiftedActions, "alignment", "2 steps later"),
        (FlippedGripper, "gripper", "follows the command"),
    ],
)
def test_what_is_broken_in_the_world_is_named(
    store: Store, policy: Policy, monkeypatch: pytest.MonkeyPatch, env: type[TabletopEnv], broken: str, evidence: str
) -> None:
    monkeypatch.setitem(SUITES, "tabletop", TabletopSuite(env))
    found = look(policy, store)
    assert found.broken is not None
    assert (found.broken.name, evidence in found.broken.evidence) == (broken, True), found.to_markdown()
    assert found.broken.advice
    assert found.verdict.startswith(f"Broken: {broken}. ")


def test_pictures_of_another_layout_are_not_said_to_be_alike(store: Store, policy: Policy) -> None:
    """The store knows no start of its own, and nobody names its files."""
    found = look(policy, store, replay=None)
    told = found.links[0]
    assert (told.name, told.word) == ("pictures", "not known"), found.to_markdown()
    assert "of another layout" in told.evidence
    assert "--source" in told.advice


def test_motion_that_nothing_explains_is_not_said_to_be_aligned() -> None:
    """Labels that were not what moved the robot: no lag explains the motion, and none is the right one."""
    rng = np.random.default_rng(0)
    pushed, led = (np.cumsum(rng.normal(0, 1, (80, 9)), axis=0) for _ in range(2))
    same = alignment([(episode(led, led), episode(led, led))], np.ones(9))
    assert same.ok is True
    found = alignment([(episode(pushed + led, led), episode(led, led))], np.ones(9))
    assert found.ok is None
    assert "does not repeat these episodes" in found.evidence
    assert "labels" in found.advice
    verdict = Diagnosis("p", "s", (same, found)).verdict
    assert verdict == "No link is seen to be broken; not known: alignment"


def test_other_statistics_are_named(store: Store) -> None:
    policy = Policy.untrained(micro_config(), store)
    with torch.no_grad():
        policy.standardize_action.scale[1] *= 1.5
    found = look(policy, store)
    assert found.broken is not None
    assert found.broken.name == "statistics"
    assert f"action, {store.spec.action_names[1]}" in found.broken.evidence


def test_another_instruction_is_named(store: Store, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUITES, "tabletop", OtherWords())
    found = look(policy, store)
    assert found.broken is not None
    assert found.broken.name == "instruction"
    assert "kindly" in found.broken.evidence


def test_another_embedding_of_the_same_text_is_named(store: Store, policy: Policy) -> None:
    other = {text: np.roll(vector, 1) for text, vector in policy.language.items()}
    found = look(dataclasses.replace(policy, language=other), store)
    assert found.broken is not None
    assert found.broken.name == "instruction"
    assert "cosine" in found.broken.evidence


def test_a_policy_that_learnt_nothing_is_named(store: Store, policy: Policy, tmp_path: Path) -> None:
    found = look(policy, store)
    assert found.broken is not None
    assert found.broken.name == "predictions"
    assert "leaves them at step" in found.links[-1].evidence or "does not succeed" in found.links[-1].evidence
    found.save(tmp_path)
    assert json.loads((tmp_path / "diagnosis.json").read_text())["broken"] == "predictions"
    assert "| predictions | BROKEN |" in (tmp_path / "diagnosis.md").read_text()


def test_a_policy_of_another_picture_size_is_named(store: Store) -> None:
    """The simulator draws what it is asked for, so its pictures and the store's are alike."""
    found = look(ZeroPolicy(libero_spec(2 * SIDE), 5), store)
    assert found.broken is not None
    assert found.broken.name == "pictures"
    assert "trained on pictures of 64 x 64 pixels, the store has 32 x 32" in found.broken.evidence
    told = words(found)
    assert list(told) == CHAIN
    assert told["predictions"] == "not known"


def test_the_errors_of_every_dimension_are_told_by_quarter_of_the_episode(tmp_path: Path) -> None:
    """Dimension 1 is wrong by one deviation in the second half alone, the gripper in the last quarter; nothing was
    asked in the third."""
    when = np.array([0.0, 0.1, 0.3, 0.4, 0.8, 1.0])
    target = np.random.default_rng(0).normal(0, 2, (6, 5, 7))
    target[..., 6] = 1.0
    predicted = target.copy()
    predicted[when >= 0.5, :, 1] += 2.0
    predicted[5, :, 6] = -1.0
    link = predictions(predicted, target, when, (np.zeros(7), np.full(7, 2.0)), LIBERO)
    Diagnosis("p", "s", (link,)).save(tmp_path)
    (told,) = json.loads((tmp_path / "diagnosis.json").read_text())["links"]
    rows = {row["dimension"]: row for row in told["errors"]}
    assert list(rows) == list(LIBERO.action_names)
    still = {"measure": "squared error", "mean": 0.0, "quarters": [0.0, 0.0, None, 0.0]}
    names = LIBERO.action_names
    assert all(rows[name] == {"dimension": name, **still} for name in (names[0], *names[2:6]))
    assert rows[names[1]]["mean"] == pytest.approx(1 / 3)
    assert rows[names[1]]["quarters"] == [0.0, 0.0, None, pytest.approx(1.0)]
    assert (rows[names[6]]["measure"], rows[names[6]]["quarters"]) == ("wrong sign", [0.0, 0.0, None, 0.5])
    written = (tmp_path / "diagnosis.md").read_text()
    assert f"| {names[1]} | squared error | 0.33 | 0.00 | 0.00 | - | 1.00 |" in written
    assert f"| {names[6]} | wrong sign | 17 % | 0 % | 0 % | - | 50 % |" in written


def episode(states: Any, actions: Any, success: bool | None = None) -> Episode:
    return Episode("e", "do", (), np.asarray(states, np.float32), np.asarray(actions, np.float32), success)


def test_where_a_trial_leaves_the_demonstrations() -> None:
    rng = np.random.default_rng(0)
    demos = [
        episode(np.linspace(0, 1, 40)[:, None] + rng.normal(0, 0.01, (40, 9)), np.full((40, 7), 0.1)) for _ in range(4)
    ]
    away = demos[0].states.copy()
    away[20:, 3] += 1.0
    names = [f"s{i}" for i in range(9)]
    link = closed_loop([episode(away, np.full((39, 7), -0.3), False)], demos, np.ones(9), names)
    assert link.ok is False
    assert "leaves them at step 20 of 39, by s3" in link.evidence
    assert "it did (-0.30" in link.evidence
    assert closed_loop([episode(away, np.zeros((39, 7)), True)], demos, np.ones(9), names).ok is True


def test_nothing_to_look_at_is_not_broken() -> None:
    still = episode(np.zeros((20, 9)), np.zeros((20, 7)))
    assert alignment([(still, still)], np.ones(9)).ok is None
    assert gripper([(still, still)], LIBERO).ok is None


def test_a_stored_episode_is_what_was_recorded(store: Store) -> None:
    rows = store.episode_columns
    whole = stored(store, 1)
    assert len(whole.states) == int(rows["frames"][1])
    assert [len(frames) for frames in whole.images] == [len(whole.states)] * 2
    np.testing.assert_array_equal(whole.images[0][0], store.decode_segment(int(rows["first_segment"][1]))[0][0])
    assert start_number(store, 1) is None  # the tabletop has no numbered states


@pytest.mark.parametrize("options", [{"trials": 0}, {"max_steps": 0}, {"tasks": "9"}])
def test_what_makes_no_sense_is_refused(store: Store, policy: Policy, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        look(policy, store, **options)
