"""Plans to a goal's state as policies: formulas against closed forms, and tried in the tabletop world."""

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cli import app
from pipelines.collect.tabletop import collect_tabletop
from pipelines.derive.stats import compute_statistics
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from statevla.config.load import load_config
from statevla.evaluators import state_answers
from statevla.evaluators.goals import ExpertGoals
from statevla.evaluators.state_answers import EXECUTED, PENALTY, Line, fit_gripper, fit_network
from statevla.evaluators.state_loop import LINE, NETWORK, Planner, Trials, goals_of, planners, run_plans
from statevla.evaluators.state_plan import STEP
from statevla.evaluators.state_probes import Coded
from statevla.observation import Observation
from statevla.policies.noise import Draw
from statevla.systems.table import sections
from statevla.trainers.trainer import train
from stores.errors import StateVLAError, UsageError
from stores.reader import Store
from tests.systems.test_stamo import MICRO
from tests.trainers.micro import SETTINGS


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_answers, "STEPS", 10)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("plan")
    collect_tabletop(folder / "source", 16, seed=0, image_size=32)
    ingest(IngestConfig("tabletop", folder / "source", folder / "store", language="hashed", train_split=0.75))
    compute_statistics(folder / "store")
    return Store.open(folder / "store")


class Asked:
    """Goals whose robot stands `away` from where it stood at the trial's beginning; notes who asked."""

    def __init__(self, away: float) -> None:
        self.away, self.draws = away, list[Draw]()

    def of(self, draw: Draw) -> Observation:
        self.draws.append(draw)
        return seen(self.away + draw.trial)


def seen(place: float) -> Observation:
    state = np.full(9, place, np.float32)
    pictures = tuple(np.zeros((32, 32, 3), np.uint8) for _ in range(2))
    return Observation(pictures, state, "put the red block in the blue bowl")


def straight(store: Store, goals: Any) -> Planner:
    """Fitted to a world whose state is the sum of its (standardized) actions, of which every second closes."""
    rng = np.random.default_rng(0)
    rows = np.flatnonzero(np.isfinite(store.frames["action"]).all(axis=1))
    episode = store.frames["episode"][rows]
    action = rng.normal(size=(len(rows), len(store.spec.continuous)))
    sums = np.concatenate([np.zeros((1, action.shape[1])), np.cumsum(action, axis=0)])[:-1]
    coded = Coded({"state": sums}, action, episode, rows)

    def states(obs: Any) -> torch.Tensor:
        return cast(torch.Tensor, obs.robot_state[:, : action.shape[1]])

    return planners(store, coded, "state", states, goals, "an encoder", {}, 0)[LINE]


def test_the_gripper_is_the_penalized_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(2, 3, size=(300, 4))
    closed = (features[:, :1] + rng.normal(size=(300, 1)) > 2) & [[True]]
    found = fit_gripper(features, closed)
    x = (features - features.mean(axis=0)) / features.std(axis=0)
    error = 1 / (1 + np.exp(-(x @ found.weights + found.offset))) - closed
    np.testing.assert_allclose(x.T @ error / 300 + PENALTY * found.weights, 0, atol=1e-5)  # where the loss is least
    np.testing.assert_allclose(error.mean(axis=0), 0, atol=1e-5)
    assert (found(features) == closed).mean() > 0.85


def test_the_actions_are_those_of_the_cut_difference_one_after_the_other(store: Store) -> None:
    goals = Asked(100.0)
    plan = straight(store, goals)
    acted = plan.act([seen(0.0)], [Draw(0, 0)])
    assert acted.chunk.shape == (1, EXECUTED, store.spec.action_dim)
    assert (acted.chunk == acted.chunk[:, :1]).all()
    continuous = list(store.spec.continuous)
    mean, std = (np.asarray(part)[continuous] for part in (store.stats().action.mean, store.stats().action.std))
    assert isinstance(plan.answer, Line)
    each = plan.answer.length / np.sqrt(len(continuous)) / STEP  # every dimension alike, K-th part of the way
    np.testing.assert_allclose(acted.chunk[0, 0, continuous].numpy(), mean + std * each, atol=0.02 * std.max())
    near = plan.act([seen(99.9)], [Draw(0, 0)]).chunk[0, 0, continuous].numpy()
    np.testing.assert_allclose(near, mean + std * 0.1 / STEP, atol=0.02 * std.max())
    assert set(np.unique(acted.chunk[..., list(store.spec.binary)])) <= {-1.0, 1.0}


@pytest.mark.parametrize("closes", [True, False])
def test_the_gripper_hears_of_the_goal(store: Store, closes: bool) -> None:
    closed = store.frames["action"][:, store.spec.binary[0]] > 0
    rows = np.concatenate([np.flatnonzero(closed)[:120], np.flatnonzero(~closed)[:120]])  # a NaN is none of the former
    episode, action = np.arange(240) // 30, np.random.default_rng(0).normal(size=(240, 6))
    features = np.concatenate([0.1 * action, np.zeros((240, 1))], axis=1)
    features[29::30, 6] = np.where(episode[29::30] < 4, 1, -1)  # only the last state of an episode tells which it is
    state = np.zeros(9, np.float32)
    state[6] = 1 if closes else -1

    class Told:
        def of(self, draw: Draw) -> Observation:
            return dataclasses.replace(seen(0.0), robot_state=state)

    coded = Coded({"state": features}, action, episode, rows)
    plan = planners(store, coded, "state", lambda obs: obs.robot_state[:, :7], Told(), "an encoder", {}, 0)[LINE]
    found = plan.act([seen(0.0)], [Draw(0, 0)]).chunk[..., list(store.spec.binary)]
    assert (found == (1.0 if closes else -1.0)).all()
    assert isinstance(plan.answer, Line)
    of_here, of_goal = np.abs(plan.answer.gripper.weights[[6, 13], 0])
    assert of_goal > 3 * of_here


def test_rows_are_independent_and_each_has_its_own_trials_goal(store: Store) -> None:
    plan = straight(store, goals := Asked(50.0))
    draws = [Draw(0, 0, 3), Draw(1, 40, 2)]
    both = plan.act([seen(0.0), seen(10.0)], draws).chunk
    assert goals.draws == draws
    for row, (place, draw) in enumerate(zip((0.0, 10.0), draws, strict=True)):
        alone = straight(store, Asked(50.0)).act([seen(place)], [draw]).chunk
        torch.testing.assert_close(both[row : row + 1], alone)
    with pytest.raises(UsageError, match="expected the draw of each trial"):
        plan.act([seen(0.0)])


def test_progress_is_what_of_the_way_was_made(store: Store) -> None:
    plan = straight(store, Asked(10.0))
    assert plan.progress is None
    for place in (0.0, 4.0, 8.0):
        plan.act([seen(place)], [Draw(0, 0)])
    assert plan.progress == pytest.approx(0.8)
    plan.act([seen(1.0)], [Draw(0, 1)])  # another trial, of which nothing is made yet
    assert plan.progress == pytest.approx(0.4)


def test_a_plan_is_tried_and_its_trials_are_kept(store: Store, tmp_path: Path) -> None:
    trials = Trials("tabletop", 1, tmp_path / "plan", "0-1")
    found = run_plans({LINE: straight(store, goals_of(trials, store))}, trials, 0)[LINE]
    assert (found.trials, found.measured) == (2, 2)
    assert found.progress is not None
    again = run_plans({LINE: straight(store, goals_of(trials, store))}, trials, 0)[LINE]
    assert (again.successes, again.trials, again.measured, again.progress) == (found.successes, 2, 0, None)


def wandering(episodes: int, seed: int, feature: int = 2) -> tuple[Coded, Any]:
    """Episodes of 20 frames that begin in the same state; each keeps its direction, and closes where that is to the
    right for its first five actions.
    """
    rng = np.random.default_rng(seed)
    turn = rng.uniform(0, 2 * np.pi, episodes)
    away = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    frame = np.tile(np.arange(20), episodes)
    action = away.repeat(20, axis=0)
    closed = (action[:, :1] > 0) & (frame < 5)[:, None]
    return Coded({"s": frame[:, None] * action + 7.0}, action, np.arange(episodes).repeat(20), frame), closed


def test_the_network_goes_where_the_goal_is() -> None:
    coded, closed = wandering(200, 0)
    net = fit_network(coded, "s", closed, seed=0, steps=400)
    other, shut = wandering(50, 1)
    here, there = (other.features["s"][row::20] for row in (0, 19))  # the beginning is the same for all
    pose, gripper = net(here, there)
    assert pose.shape == (50, EXECUTED, 2)
    assert gripper.shape == (50, EXECUTED, 1)
    shown = other.action.reshape(50, 20, 2)[:, :EXECUTED]
    assert np.abs(pose - shown).mean() < 0.15
    assert (gripper == shut.reshape(50, 20, 1)[:, :EXECUTED]).mean() > 0.9
    assert not net(other.features["s"][10::20], there)[1].any()  # later in an episode nothing closes
    alone = net(here[3:4], there[3:4])
    np.testing.assert_allclose(alone[0], pose[3:4], atol=1e-5)


def test_a_network_is_a_function_of_its_seed() -> None:
    coded, closed = wandering(20, 0)
    place = coded.features["s"][:3], coded.features["s"][40:43]
    found = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)  # what others drew before
        found.append(fit_network(coded, "s", closed, seed, steps=20)(*place)[0])
    first, again, other = found
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_a_network_learns_no_action_of_another_episode() -> None:
    """Episodes of one action alone, one after the other: nothing is told across their ends."""
    coded, closed = wandering(2, 0)
    short = Coded(coded.features, coded.action, np.arange(40) // (EXECUTED - 1), coded.row)
    with pytest.raises(UsageError, match=f"the {EXECUTED} frames"):
        fit_network(short, "s", closed, 0)
    ends = np.arange(40) % EXECUTED == EXECUTED - 1
    marked = Coded(
        coded.features, np.where(ends[:, None], 9.0, 0.0) + np.zeros((40, 2)), np.arange(40) // EXECUTED, coded.row
    )
    pose, _ = fit_network(marked, "s", closed, 0, steps=300)(coded.features["s"][::5], coded.features["s"][4::5])
    np.testing.assert_allclose(pose[:, :-1], 0, atol=0.6)  # the only window of an episode ends with its mark
    np.testing.assert_allclose(pose[:, -1], 9, atol=0.6)


def test_the_command_tries_the_way_and_tells(store: Store, tmp_path: Path) -> None:
    config = load_config("tiny", None, (*SETTINGS, *MICRO, "training.max_steps=2"), sections())
    train("stamo", config, Path(store.root), tmp_path / "run")
    arguments = ["eval", "state", "--checkpoint", tmp_path / "run", "--store", store.root, "--device", "cpu", "--json"]
    result = CliRunner().invoke(
        app,
        [
            str(part)
            for part in (
                *arguments,
                "--plan-in",
                "tabletop",
                "--num-trials",
                1,
                "--tasks",
                "0",
                "--out",
                tmp_path / "out",
            )
        ],
    )
    assert result.exit_code == 0, result.output
    loops = json.loads((tmp_path / "out" / "state.json").read_text())["loops"]
    page = (tmp_path / "out" / "state.md").read_text()
    assert set(loops) == {LINE, NETWORK}
    for name, told in loops.items():
        assert (told["suite"], told["trials"], told["measured"]) == ("tabletop", 1, 1)
        assert f"| {name} | tabletop | 0 / 1 | 0% (0% to 79%) |" in page
        assert (tmp_path / "out" / "plan" / name / "results.json").is_file()


def test_what_is_to_be_tried_wants_a_suite() -> None:
    for more in (("--tasks", "0"), ("--num-trials", "3")):
        result = CliRunner().invoke(app, ["eval", "state", *more])
        assert isinstance(result.exception, UsageError)
        assert "--plan-in" in str(result.exception)


def test_what_cannot_be_tried_is_refused_before_anything_is_computed(store: Store, tmp_path: Path) -> None:
    for suite, tasks, why in (("nowhere", None, "no suite 'nowhere'"), ("tabletop", "9", "tabletop has tasks 0-3")):
        with pytest.raises(StateVLAError, match=why):
            goals_of(Trials(suite, 1, tmp_path, tasks), store)
    known = [text for text in store.manifest.instructions if "green" not in text]
    narrow = dataclasses.replace(store, manifest=dataclasses.replace(store.manifest, instructions=known))
    with pytest.raises(UsageError, match="has no demonstration of 'put the green block in the blue bowl'"):
        goals_of(Trials("tabletop", 1, tmp_path), narrow)


def test_goals_are_seen_as_the_store_sees(store: Store, tmp_path: Path) -> None:
    found = goals_of(Trials("tabletop", 1, tmp_path), store)
    assert isinstance(found, ExpertGoals)
    assert found.image_size == 32
