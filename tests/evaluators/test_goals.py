"""Goals of trials: the expert's last picture of the same layout, and one clear line where there is none."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cli import app
from statevla.config.load import load_config
from statevla.evaluators.choose import choose_policy
from statevla.evaluators.conditions import Conditions
from statevla.evaluators.evaluate import evaluate
from statevla.evaluators.goals import ExpertGoals, WithGoals, told_in_words, with_goals
from statevla.evaluators.robustness import at
from statevla.observation import Observation
from statevla.policies.controls import ExpertControl
from statevla.policies.noise import Draw
from statevla.policies.policy import Policy
from statevla.sims.libero.errors import SimulatorFailed
from statevla.sims.libero.row import LiberoSuite
from statevla.sims.suites import find_suite
from statevla.sims.tabletop.environment import TabletopEnv
from statevla.sims.tabletop.suite import TabletopSuite, TabletopWorld, evaluation_seed
from statevla.systems.acting import Acted
from statevla.systems.table import sections
from statevla.trainers.trainer import train
from stores.errors import UsageError
from tests.trainers.micro import SETTINGS, micro_store

SUITE = find_suite("tabletop")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("goal")
    config = load_config("tiny", None, (*SETTINGS, "training.max_steps=1"), sections())
    train("goal", config, micro_store(folder / "store"), folder / "run")
    return folder / "run"


def test_the_goal_is_the_solved_layout_of_that_very_trial() -> None:
    task = SUITE.tasks([2])[0]
    source = ExpertGoals(SUITE, 32)
    goal = source.of(Draw(seed=1, trial=2 * 2**32 + 6, call=4))
    env = TabletopEnv(32)
    start = env.reset(task=2, seed=evaluation_seed(1, 6))
    assert goal.instruction == task.instruction
    assert goal.images[0].shape == (32, 32, 3)
    begun = np.ascontiguousarray(start["agentview_image"][::-1])
    assert not np.array_equal(goal.images[0], begun)
    changed = (np.abs(goal.images[0].astype(int) - begun).max(axis=-1) > 12).mean()
    other = source.of(Draw(seed=1, trial=2 * 2**32 + 10))
    elsewhere = (np.abs(goal.images[0].astype(int) - other.images[0]).max(axis=-1) > 12).mean()
    assert changed < elsewhere  # the same layout but for what was moved
    again = ExpertGoals(SUITE, 32).of(Draw(seed=1, trial=2 * 2**32 + 6, call=9))
    np.testing.assert_array_equal(again.images[0], goal.images[0])


def test_it_is_made_once_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    source, solve = ExpertGoals(SUITE, 32), ExpertGoals._solve
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(ExpertGoals, "_solve", lambda self, *key: (made.append(key), solve(self, *key))[1])
    for trial, call in ((4, 0), (4, 1), (8, 0), (8, 1)):
        source.of(Draw(0, trial, call))
    assert made == [(0, 4), (0, 8)]


def test_an_expert_that_fails_at_first_tries_again_at_the_same_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    able, starts = TabletopWorld._expert, []

    def expert(world: TabletopWorld, steps: int) -> Any:
        starts.append(world._start)
        return iter(np.zeros((steps, 7))) if len(starts) < 3 else able(world, steps)

    monkeypatch.setattr(TabletopWorld, "_expert", expert)
    goal = ExpertGoals(SUITE, 32).of(Draw(seed=1, trial=6))
    assert [start.attempt for start in starts] == [0, 1, 2]
    assert {(start.number, start.seed) for start in starts} == {(6, 1)}
    begun = np.ascontiguousarray(TabletopEnv(32).reset(task=0, seed=evaluation_seed(1, 6))["agentview_image"][::-1])
    assert not np.array_equal(goal.images[0], begun)


def test_an_expert_that_fails_gives_no_goal() -> None:
    impatient = TabletopSuite(max_steps=3)
    with pytest.raises(SimulatorFailed, match="put_the_red_block_in_the_blue_bowl from start 0: the expert did not"):
        ExpertGoals(impatient, 32).of(Draw())


def test_a_goal_policy_must_be_told_how(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="by language or by a picture; say --goals language or image") as told:
        choose_policy("checkpoint", "tabletop", checkpoint=run)
    assert "\n" not in str(told.value)
    by_language = choose_policy("checkpoint", "tabletop", checkpoint=run, goals="language")
    by_image = choose_policy("checkpoint", "tabletop", checkpoint=run, goals="image")
    assert isinstance(by_image.policy, WithGoals)
    assert by_language.policy.identity != by_image.policy.identity  # type: ignore[union-attr]
    assert by_image.name.endswith("told by image")
    with pytest.raises(UsageError, match="goals: expected language or image, got 'smell'"):
        choose_policy("checkpoint", "tabletop", checkpoint=run, goals="smell")
    with pytest.raises(UsageError, match="goals: image makes sense for a checkpoint only"):
        choose_policy("zero", "tabletop", goals="image")


def test_other_policies_take_no_goals(run: Path) -> None:
    film = told(run, ("language",))
    assert with_goals(film, None, SUITE, "film") is film
    with pytest.raises(UsageError, match="film: it was trained to be told by language, not by image"):
        with_goals(film, "image", SUITE, "film")
    with pytest.raises(UsageError, match="it is told what to reach by a picture, and there is none; say --goals image"):
        with_goals(told(run, ("image",)), None, SUITE, "p")


def test_a_goal_shows_the_layout_of_its_trial(run: Path) -> None:
    drawn = Conditions(fixtures="drawn")
    chosen = choose_policy("checkpoint", "libero_object", checkpoint=run, goals="image", conditions=drawn).policy
    assert isinstance(chosen, WithGoals)
    assert chosen.source.suite == drawn.of(LiberoSuite("libero_object"))
    usual = choose_policy("checkpoint", "libero_object", checkpoint=run, goals="image").policy
    moved = at(usual, "libero_object", drawn)
    assert isinstance(moved, WithGoals)
    assert moved.source.suite == chosen.source.suite
    assert moved.identity == usual.identity  # type: ignore[union-attr]
    control = ExpertControl()
    assert at(control, "libero_object", drawn) is control


def test_language_is_measured_of_a_policy_that_takes_pictures_too(run: Path, tmp_path: Path) -> None:
    options = ["--suite", "tabletop", "--checkpoint", str(run), "--num-trials", "1", "--out", str(tmp_path / "out")]
    with pytest.raises(UsageError, match="not trained on"):  # asked of its instructions, not of --goals
        app(["eval", "language", *options], standalone_mode=False)
    policy = Policy.load(run / "checkpoints" / "goal" / "checkpoint_latest")
    assert "told what to reach by language here" in str(told_in_words(policy, "p"))
    assert told_in_words(told(run, ("language",)), "p") is None
    with pytest.raises(UsageError, match="p: it is told what to reach by a picture alone"):
        told_in_words(told(run, ("image",)), "p")


def test_the_goals_reach_the_policy(run: Path, tmp_path: Path) -> None:
    policy = Policy.load(run / "checkpoints" / "goal" / "checkpoint_latest")
    suite = TabletopSuite()
    world = suite.open(suite.tasks([0])[0], 32, 1)
    goal = ExpertGoals(suite, 32).of(Draw())
    now = Observation(goal.images, goal.robot_state, policy_instruction(policy))
    goal, other = (Observation(images, goal.robot_state, now.instruction) for images in (goal.images, flipped(goal)))
    chunks = [policy.act([now], None, goals).chunk for goals in (None, [goal], [other])]
    assert not torch.equal(chunks[1], chunks[2])
    assert not torch.equal(chunks[0], chunks[1])
    with pytest.raises(UsageError, match="expected a goal for each of 1 observations, got 2"):
        policy.act([now], None, [goal, goal])
    world.close()


def test_a_whole_evaluation_by_pictures(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bytes]] = []

    def act(self: Policy, observations: Any, draws: Any, goals: Any) -> Acted:
        seen.append((draws[0].trial, goals[0].images[0].tobytes()))
        return Acted(torch.zeros(1, self.chunk, 7), None)

    monkeypatch.setattr(Policy, "act", act)
    policy = with_goals(told(run, ("image",)), "image", SUITE, "looks")
    monkeypatch.setattr(Policy, "vector", lambda self, text: None)
    trials = {"episodes": 3, "tasks": "0", "max_steps": 10}
    evaluate(policy, "tabletop", out=tmp_path / "out", name="looks", unknown_instructions=True, **trials)
    assert len({trial for trial, _ in seen}) == 3
    assert len(set(seen)) == 3  # one goal a trial, however many calls
    assert len(seen) > 3


def test_a_trial_without_a_goals_picture_is_an_error_and_the_others_go_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    able = TabletopWorld._expert

    def expert(world: TabletopWorld, steps: int) -> Any:
        return iter(np.zeros((steps, 7))) if world._start.number == 4 else able(world, steps)

    monkeypatch.setattr(TabletopWorld, "_expert", expert)
    policy = with_goals(told(run, ("image",)), "image", SUITE, "looks")
    monkeypatch.setattr(Policy, "vector", lambda self, text: None)
    monkeypatch.setattr(Policy, "act", lambda self, *_: Acted(torch.zeros(1, self.chunk, 7), None))
    trials = {"episodes": 3, "tasks": "0", "max_steps": 10, "unknown_instructions": True}
    evaluate(policy, "tabletop", out=tmp_path / "out", name="looks", **trials)
    records = [json.loads(line) for line in (tmp_path / "out" / "trials.jsonl").read_text().splitlines()]
    assert {record["start"]: record["outcome"] for record in records} == {0: "failure", 4: "error", 8: "failure"}
    assert "the expert did not solve it in 5 attempts" in next(r["message"] for r in records if r["start"] == 4)


def told(run: Path, kinds: tuple[str, ...]) -> Policy:
    """A policy that was trained to be told so."""
    policy = Policy.load(run / "checkpoints" / "goal" / "checkpoint_latest")
    share = {("language",): 0.0, ("image",): 1.0}[kinds]
    policy.model.options = dataclasses.replace(policy.model.options, image_share=share)  # type: ignore[attr-defined]
    return policy


def policy_instruction(policy: Policy) -> str:
    return next(iter(policy.language))


def flipped(goal: Observation) -> tuple[np.ndarray, ...]:
    return tuple(255 - frames for frames in goal.images)
