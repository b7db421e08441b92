"""Closed loop with policies whose outcome is known: expert, zero, and worlds that break."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from statevla.evaluators.intervals import wilson
from statevla.evaluators.rollout import (
    EVALUATION_SEEDS,
    ExpertPolicy,
    ZeroPolicy,
    evaluate_tabletop,
    evaluation_seed,
)
from statevla.observation import Observation, ObsSpec, libero_spec
from statevla.sims.tabletop import TASKS, TabletopEnv
from stores.errors import ObsSpecMismatch, StateVLAError, UsageError
from stores.progress import ProgressEvent

SPEC = libero_spec(32)


class Recorder:
    """Counts calls and observations; acts as told."""

    def __init__(self, chunk: NDArray[np.float32], spec: ObsSpec = SPEC) -> None:
        self.chunk, self.obs_spec = chunk, spec
        self.calls: list[list[Observation]] = []
        self.seeds: list[int] = []

    def act(self, observations: list[Observation], seed: int = 0) -> NDArray[np.float32]:
        self.calls.append(observations)
        self.seeds.append(seed)
        return np.repeat(self.chunk[None], len(observations), axis=0)


class Crashing(TabletopEnv):
    """Raises in step 3 of every world of task 1."""

    def step(self, action: NDArray[Any]) -> tuple[dict[str, NDArray[Any]], float, bool, dict[str, bool]]:
        if self.task == 1 and self.steps == 2:
            raise RuntimeError("simulation diverged")
        return super().step(action)


class Unresettable(TabletopEnv):
    """Cannot begin."""

    def reset(self, task: int | None = None, seed: int | None = None) -> dict[str, NDArray[Any]]:
        raise RuntimeError("no renderer")


def test_the_expert_succeeds_and_zero_fails_on_the_same_layouts() -> None:
    expert = evaluate_tabletop(ExpertPolicy(SPEC), episodes=12, seed=3)
    zero = evaluate_tabletop(ZeroPolicy(SPEC), episodes=12, seed=3, max_steps=20)
    assert expert.success == 1.0
    assert expert.interval == wilson(12, 12)
    assert expert.steps is not None
    assert 5 < expert.steps < TabletopEnv.max_steps
    assert zero.success == 0.0
    assert zero.steps is None
    assert [e.seed for e in expert.episodes] == [e.seed for e in zero.episodes]
    assert {e.steps for e in zero.episodes} == {20}
    assert list(expert.per_task) == list(TASKS)
    assert all(task.trials == 3 for task in expert.per_task.values())


def test_results_do_not_depend_on_how_many_worlds_run_in_lockstep() -> None:
    one = evaluate_tabletop(ExpertPolicy(SPEC), episodes=4, batch=1)
    many = evaluate_tabletop(ExpertPolicy(SPEC), episodes=4, batch=3)
    assert one.episodes == many.episodes


def test_a_crash_is_an_error_and_no_trial() -> None:
    results = evaluate_tabletop(ExpertPolicy(SPEC), episodes=12, make_world=Crashing)
    assert results.errors == 3
    assert results.trials == results.successes == 9
    assert results.success == 1.0
    broken = results.per_task[TASKS[1]]
    assert (broken.errors, broken.trials, broken.success, broken.interval) == (3, 0, None, (0.0, 1.0))
    messages = [e.message for e in results.episodes if e.outcome == "error"]
    assert messages == ["RuntimeError: simulation diverged"] * 3
    assert [e.steps for e in results.episodes if e.outcome == "error"] == [2, 2, 2]


def test_worlds_that_cannot_begin_are_errors() -> None:
    results = evaluate_tabletop(ZeroPolicy(SPEC), episodes=2, make_world=Unresettable)
    assert (results.errors, results.trials, results.success) == (2, 0, None)
    assert results.latency is None


@pytest.mark.parametrize(("replan", "calls"), [(None, 6), (4, 3), (1, 12), (3, 4)])
def test_replanning_asks_again_after_that_many_actions(replan: int | None, calls: int) -> None:
    policy = Recorder(np.zeros((4, 7), np.float32))
    results = evaluate_tabletop(policy, episodes=2, replan=replan, max_steps=12)
    assert len(policy.calls) == len(set(policy.seeds)) == calls
    assert results.latency is not None
    assert (results.latency.calls, results.latency.batch) == (calls, 2)


def test_actions_of_a_chunk_are_executed_in_order() -> None:
    chunk = np.zeros((3, 7), np.float32)
    chunk[:, 2] = [0.2, -0.4, 0.6]
    chunk[:, 6] = -1
    seen: list[NDArray[Any]] = []

    class Spy(TabletopEnv):
        def step(self, action: NDArray[Any]) -> tuple[dict[str, NDArray[Any]], float, bool, dict[str, bool]]:
            seen.append(np.array(action))
            return super().step(action)

    evaluate_tabletop(Recorder(chunk), episodes=1, replan=2, max_steps=4, make_world=Spy)
    np.testing.assert_array_equal(seen, chunk[[0, 1, 0, 1]])


def test_the_policy_sees_upright_pictures_and_the_instruction() -> None:
    policy = Recorder(np.zeros((1, 7), np.float32))
    evaluate_tabletop(policy, episodes=2, seed=1, max_steps=1)
    for episode, seen in enumerate(policy.calls[0]):
        env = TabletopEnv(32)
        env.reset(task=episode, seed=evaluation_seed(1, episode))
        np.testing.assert_array_equal(seen.images, np.stack(env.render_upright()))
        assert seen.instruction == TASKS[episode]


def test_evaluation_seeds_are_fresh() -> None:
    seeds = [evaluation_seed(s, e) for s in range(3) for e in range(60)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= EVALUATION_SEEDS >= 2**63  # collection draws its seeds below 2**63
    with pytest.raises(UsageError, match="seed"):
        evaluation_seed(-1, 0)


def test_another_observation_is_refused() -> None:
    for spec in (libero_spec(32, 48), dataclasses.replace(SPEC, orientation="opengl")):
        with pytest.raises(ObsSpecMismatch):
            evaluate_tabletop(ZeroPolicy(spec), episodes=1)


def test_a_policy_that_diverged_is_named() -> None:
    with pytest.raises(StateVLAError, match="NaN"):
        evaluate_tabletop(Recorder(np.full((2, 7), np.nan, np.float32)), episodes=1)
    with pytest.raises(StateVLAError, match="expected chunks"):
        evaluate_tabletop(Recorder(np.zeros((2, 6), np.float32)), episodes=1)
    with pytest.raises(UsageError, match="replan"):
        evaluate_tabletop(Recorder(np.zeros((2, 7), np.float32)), episodes=1, replan=3)
    with pytest.raises(UsageError, match="episodes"):
        evaluate_tabletop(ZeroPolicy(SPEC), episodes=0)


def test_clips_and_progress(tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    results = evaluate_tabletop(ZeroPolicy(SPEC), episodes=3, max_steps=4, videos=2, progress=events.append)
    assert (events[-1].done, events[-1].total) == (3, 3)
    assert [len(clip.observations) for clip in results.clips] == [5, 5]
    assert "clips" not in results.to_dict()
    for _ in range(2):
        results.save(tmp_path / "eval")
        files = sorted((tmp_path / "eval" / "videos").iterdir())
        names = [f"{i:02d}-{TASKS[i].replace(' ', '_')}-failure.gif" for i in range(2)]
        assert [file.name for file in files] == names
    with Image.open(files[0]) as gif:
        assert gif.n_frames == 3  # observations 0, 2, 4 of five
    assert {p.name for p in (tmp_path / "eval").iterdir()} == {"tabletop.json", "tabletop.md", "videos"}
