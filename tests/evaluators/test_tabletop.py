"""Closed loop in the tabletop with policies whose outcome is known: expert, zero, replays, and worlds that break."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from cli import app
from statevla.evaluators.evaluate import evaluate
from statevla.evaluators.intervals import wilson
from statevla.evaluators.results import Results
from statevla.observation import Observation, ObsSpec, libero_spec
from statevla.policies.controls import ExpertControl, ReplayDemo, ReplayDemos, ZeroPolicy
from statevla.policies.execution import Execution
from statevla.policies.noise import Draw, normal_rows
from statevla.sims.libero import memory
from statevla.sims.libero.errors import SimulatorFailed
from statevla.sims.suites import SUITES
from statevla.sims.tabletop.environment import TASKS, TabletopEnv
from statevla.sims.tabletop.expert import TabletopExpert
from statevla.sims.tabletop.suite import EVALUATION_SEEDS, TabletopSuite, TabletopTask, evaluation_seed
from statevla.systems.acting import Acted
from stores.errors import ObsSpecMismatch, StateVLAError, UsageError
from stores.progress import ProgressEvent

SPEC = libero_spec(32)


class Recorder:
    """Counts calls and observations; acts as told."""

    def __init__(self, chunk: NDArray[np.float32], spec: ObsSpec = SPEC) -> None:
        self.actions, self.obs_spec = torch.from_numpy(chunk), spec
        self.chunk, self.identity = len(chunk), "recorder"
        self.seen: list[Observation] = []
        self.draws: list[Draw] = []
        self.made_by: dict[str, int] = {}

    def act(self, observations: Sequence[Observation], draws: Sequence[Draw] | None = None) -> Acted:
        self.seen += observations
        self.draws += draws or []
        return Acted(self.actions.expand(len(observations), -1, -1), None)


class Wanders(Recorder):
    """Acts by its noise."""

    def act(self, observations: Sequence[Observation], draws: Sequence[Draw] | None = None) -> Acted:
        return Acted(normal_rows(draws or [], tuple(self.actions.shape)), None)


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


def run(policy: Any, out: Path, **options: Any) -> Results:
    return evaluate(policy, "tabletop", out=out, name="p", **options)


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Evaluate in other environments."""
    return lambda env: monkeypatch.setitem(SUITES, "tabletop", TabletopSuite(env))


def test_the_expert_succeeds_and_zero_fails_on_the_same_layouts(tmp_path: Path) -> None:
    expert = run(ExpertControl(), tmp_path / "expert", episodes=12, seed=3)
    zero = run(ZeroPolicy(SPEC), tmp_path / "zero", episodes=12, seed=3, max_steps=20)
    assert expert.success == 1.0
    assert expert.interval == wilson(12, 12)
    assert expert.steps is not None
    assert 5 < expert.steps < TabletopEnv.max_steps
    assert zero.success == 0.0
    assert zero.steps is None
    assert [(r.task, r.start) for r in expert.records] == [(r.task, r.start) for r in zero.records]
    assert {r.steps for r in zero.records} == {20}
    assert list(expert.instructions.values()) == list(TASKS)
    assert all(task.trials == 3 for task in expert.per_task.values())


def test_worlds_are_not_counted_as_simulators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_gib", lambda: 0.5)
    assert run(ExpertControl(), tmp_path, episodes=3, workers=3).trials == 3


def test_results_do_not_depend_on_how_many_worlds_there_are(tmp_path: Path) -> None:
    policies = {"wander": Wanders(np.zeros((6, 7), np.float32)), "expert": ExpertControl()}
    for name, policy in policies.items():
        told = []
        for workers in (1, 3):
            results = run(policy, tmp_path / f"{name}{workers}", episodes=5, workers=workers, max_steps=30)
            told.append([(r.key, r.outcome, r.steps, r.actions) for r in results.records])
        assert told[0] == told[1]
        assert len({actions for *_, actions in told[0]}) == 5
    other = run(policies["wander"], tmp_path / "seed", episodes=5, seed=1, max_steps=30)
    assert not {r.actions for r in other.records} & {
        json.loads(line)["actions"] for line in (tmp_path / "wander1" / "trials.jsonl").read_text().splitlines()
    }


def test_a_crash_is_an_error_and_no_trial(worlds: Any, tmp_path: Path) -> None:
    worlds(Crashing)
    results = run(ExpertControl(), tmp_path, episodes=12)
    assert results.errors == 3
    assert results.trials == results.successes == 9
    assert results.success == 1.0
    (broken,) = [result for result in results.per_task.values() if result.errors]
    assert (broken.errors, broken.trials, broken.success, broken.interval) == (3, 0, None, (0.0, 1.0))
    errors = [r for r in results.records if r.outcome == "error"]
    assert {r.instruction for r in errors} == {TASKS[1]}
    assert all("RuntimeError: simulation diverged" in r.message for r in errors)


def test_worlds_that_cannot_begin_end_the_evaluation_with_the_reason(worlds: Any, tmp_path: Path) -> None:
    worlds(Unresettable)
    with pytest.raises(SimulatorFailed, match=r"no trial finished.*no renderer"):
        run(ZeroPolicy(SPEC), tmp_path, episodes=2)


@pytest.mark.parametrize(("replan", "calls"), [(None, 6), (4, 3), (1, 12), (3, 4)])
def test_replanning_asks_again_after_that_many_actions(replan: int | None, calls: int, tmp_path: Path) -> None:
    policy = Recorder(np.zeros((4, 7), np.float32))
    results = run(policy, tmp_path, episodes=2, execution=Execution(replan), max_steps=12)
    assert len(set(policy.draws)) == len(policy.draws) == 2 * calls
    assert {draw.call for draw in policy.draws} == set(range(calls))
    assert results.latency is not None
    assert results.latency.calls == 2 * calls


def test_actions_of_a_chunk_are_executed_in_order(worlds: Any, tmp_path: Path) -> None:
    chunk = np.zeros((3, 7), np.float32)
    chunk[:, 2] = [0.2, -0.4, 0.6]
    chunk[:, 6] = -1
    seen: list[NDArray[Any]] = []

    class Spy(TabletopEnv):
        def step(self, action: NDArray[Any]) -> tuple[dict[str, NDArray[Any]], float, bool, dict[str, bool]]:
            seen.append(np.array(action))
            return super().step(action)

    worlds(Spy)
    run(Recorder(chunk), tmp_path, episodes=1, execution=Execution(2), max_steps=4)
    np.testing.assert_array_equal(seen, chunk[[0, 1, 0, 1]])


def test_the_policy_sees_upright_pictures_and_the_instruction(tmp_path: Path) -> None:
    policy = Recorder(np.zeros((1, 7), np.float32))
    run(policy, tmp_path, episodes=2, seed=1, max_steps=1)
    for episode, seen in enumerate(policy.seen):
        env = TabletopEnv(32)
        env.reset(task=episode, seed=evaluation_seed(1, episode))
        np.testing.assert_array_equal(seen.images, np.stack(env.render_upright()))
        assert seen.instruction == TASKS[episode]


def test_a_demonstration_is_replayed_from_its_state(tmp_path: Path) -> None:
    env = TabletopEnv(32)
    env.reset(task=2, seed=5)
    state, actions, done = env.get_state(), [], False
    expert = TabletopExpert(env, np.random.default_rng(0))
    while not done:
        actions.append(expert.act({}))
        done = env.step(actions[-1])[2]
    demo = ReplayDemo("made", state, np.array(actions))
    results = run(ReplayDemos({TabletopTask(2).name: (demo,)}), tmp_path)
    assert (results.successes, results.trials) == (1, 1)
    assert results.records[0].steps == len(actions)


def test_episodes_are_the_demonstrations_replayed_in_all(tmp_path: Path) -> None:
    env = TabletopEnv(32)
    env.reset(task=0, seed=5)
    demo = ReplayDemo("made", env.get_state(), np.zeros((1, 7)))
    demos = ReplayDemos({TabletopTask(0).name: (demo,), TabletopTask(2).name: (demo,) * 9})
    results = run(demos, tmp_path, episodes=4)
    assert [record.start for record in results.records] == [0, 0, 1, 2]


def test_results_say_how_demonstrations_were_made(tmp_path: Path) -> None:
    policy = Recorder(np.zeros((4, 7), np.float32))
    silent = run(policy, tmp_path / "silent", tasks=[0], num_trials=1, max_steps=2)
    assert not any("demonstrations:" in fact for fact in silent.facts())
    policy.made_by = {"scripted expert": 2, "scripted expert, noise 0.3 on its actions": 7}
    results = run(policy, tmp_path / "said", tasks=[0], num_trials=1, max_steps=2)
    said = "The store it was trained on has 9 demonstrations: 7 scripted expert, noise 0.3 on its actions; 2 scripted"
    assert said in (tmp_path / "said/results.md").read_text()
    assert json.loads((tmp_path / "said/results.json").read_text())["made_by"] == results.made_by == policy.made_by


def test_evaluation_seeds_are_fresh() -> None:
    seeds = [evaluation_seed(s, e) for s in range(3) for e in range(60)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= EVALUATION_SEEDS >= 2**63  # collection draws its seeds below 2**63
    with pytest.raises(UsageError, match="seed"):
        evaluation_seed(-1, 0)


def test_another_observation_is_refused(tmp_path: Path) -> None:
    for number, spec in enumerate((libero_spec(32, 48), dataclasses.replace(SPEC, orientation="opengl"))):
        with pytest.raises(ObsSpecMismatch):
            run(ZeroPolicy(spec), tmp_path / str(number), episodes=1)


def test_a_policy_that_diverged_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateVLAError, match="NaN"):
        run(Recorder(np.full((2, 7), np.nan, np.float32)), tmp_path, episodes=1)
    with pytest.raises(StateVLAError, match="expected chunks"):
        run(Recorder(np.zeros((2, 6), np.float32)), tmp_path, episodes=1)
    told_otherwise = Recorder(np.zeros((2, 7), np.float32))
    told_otherwise.chunk = 3
    with pytest.raises(StateVLAError, match=r"expected chunks \[1, 3, 7\], got \[1, 2, 7\]"):
        run(told_otherwise, tmp_path / "other", episodes=1)
    with pytest.raises(UsageError, match="replan"):
        run(Recorder(np.zeros((2, 7), np.float32)), tmp_path, episodes=1, execution=Execution(3))
    with pytest.raises(UsageError, match="episodes"):
        run(ZeroPolicy(SPEC), tmp_path, episodes=0)
    with pytest.raises(UsageError, match="tasks 0-3"):
        run(ZeroPolicy(SPEC), tmp_path, tasks="4")


def test_an_outcome_is_kept_whose_film_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "videos").write_text("no folder")
    with pytest.raises(FileExistsError, match="videos"):
        run(ZeroPolicy(SPEC), tmp_path, episodes=2, max_steps=4, videos=1)
    (tmp_path / "videos").unlink()
    results = run(ZeroPolicy(SPEC), tmp_path, episodes=2, max_steps=4, videos=1)
    assert [record.outcome for record in results.records] == ["failure", "failure"]
    assert [bool(record.video) for record in results.records] == [False, True]
    assert "1 trial was run without a film" in " ".join(results.notes)


@pytest.mark.parametrize("name", ["../evil", "tabletop/", "Tabletop", "libero_objects"])
def test_a_suite_is_a_name_of_the_table(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no suite .*Suites: tabletop, libero_spatial"):
        evaluate(ZeroPolicy(SPEC), name, out=tmp_path / "out", name="p")
    assert not (tmp_path / "out").exists()


def test_films_and_progress(tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    results = run(ZeroPolicy(SPEC), tmp_path, episodes=3, max_steps=4, videos=1, progress=events.append)
    assert (events[-1].done, events[-1].total) == (3, 3)
    files = sorted((tmp_path / "videos").iterdir())
    assert [file.name for file in files] == [f"{i:02d}-{i:03d}-failure.gif" for i in range(3)]
    assert [tmp_path / record.video for record in results.records] == files
    with Image.open(files[0]) as gif:
        assert gif.n_frames == 3  # observations 0, 2, 4 of five
    written = {p.name for p in tmp_path.iterdir()}
    assert written == {"run.json", "trials.jsonl", "results.json", "results.md", "index.html", "videos"}


@pytest.mark.parametrize("replan", [1, 3, 5])
def test_a_film_keeps_time_however_many_actions_a_chunk_gives(replan: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"episodes": 1, "max_steps": 12, "videos": 1, "execution": Execution(replan)}
    (record,) = run(ZeroPolicy(SPEC), tmp_path, **options).records
    with Image.open(tmp_path / record.video) as gif:
        assert gif.n_frames == 7  # the first, and one after every second of twelve steps


def test_films_of_trials_that_were_run_without_are_not_passed_over_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "tabletop", "--policy", "zero", "--max-steps", "4", "--tasks", "0", "--out", str(tmp_path)]

    def told(*options: str) -> tuple[list[str], str]:
        app([*command, *options, "--json"], standalone_mode=False)
        said = capsys.readouterr()
        return json.loads(said.out)["notes"], said.err

    assert told("--episodes", "2", "--videos", "0") == ([], ANY)
    (note,), error = told("--episodes", "4", "--videos", "3")  # one of the three is run now
    assert note.startswith("2 trials were run without films and are not run anew")
    assert f"warning: {note}" in error
    assert len(list((tmp_path / "videos").iterdir())) == 1
    assert note in json.loads((tmp_path / "results.json").read_text())["notes"]
    assert told("--episodes", "4", "--videos", "0") == ([], ANY)
