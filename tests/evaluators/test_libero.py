"""Evaluation in LIBERO with simulators that are not: outcomes, errors, resume, batches, what is asked of a policy."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from statevla.evaluators import runner
from statevla.evaluators.evaluate import evaluate
from statevla.observation import Observation, ObsSpec, libero_spec
from statevla.policies.controls import ExpertControl, ReplayDemo, ReplayDemos
from statevla.policies.execution import Execution
from statevla.policies.noise import Draw, normal_rows
from statevla.sims.libero import experts, memory, paths, suites, worker
from statevla.sims.libero.errors import SimulatorFailed
from statevla.sims.libero.protocol import IMAGE_KEYS, Reply, Request, Reset, Run, RunExpert
from statevla.systems.acting import Acted
from stores.errors import ObsSpecMismatch, StateVLAError, StoreMissing, UsageError

SIZE = 16
INIT_STATES = 6
NEEDED = 12
"""Steps with a positive first action that a fake episode needs to succeed."""


def fake_task(index: int) -> suites.Task:
    return suites.Task("libero_object", index, f"task_{index}", f"do thing {index}", Path("x.bddl"), Path("x.init"))


TASKS = (fake_task(0), fake_task(1))


@dataclass
class World:
    """What the fake simulators of one test do and what was asked of them."""

    crash_at: dict[tuple[str, int], int] = field(default_factory=dict)
    """(task, initial state) -> number of crashes left."""
    broken: bool = False
    requests: list[Request] = field(default_factory=list)
    alive: int = 0
    most_alive: int = 0
    order: Callable[[list[Any]], list[Any]] = field(default=lambda simulators: simulators)
    """Which of the simulators that were asked have answered, as a busy machine would decide."""


class FakeSimulator:
    """Counts steps whose first action component is positive; succeeds at the twelfth."""

    world = World()

    def __init__(self, task: suites.Task, **_: Any) -> None:
        self.task = task
        self.starting = True
        self._start = 0
        self._progress = 0
        self._steps = 0
        self._request: Request | None = None
        self.world.alive += 1
        self.world.most_alive = max(self.world.most_alive, self.world.alive)
        self._closed = False

    @property
    def scenery(self) -> None:
        if self.world.broken:
            raise SimulatorFailed("no OpenGL here")
        self.starting = False

    def send(self, request: Request) -> None:
        self.world.requests.append(request)
        self._request = request

    def receive(self) -> Reply:
        request = self._request
        if isinstance(request, Reset):
            self._start, self._progress, self._steps = int(request.state[0]), 0, 0
            return self._reply(np.zeros((0, 7)), None, [])
        assert isinstance(request, Run | RunExpert)
        left = self.world.crash_at.get((self.task.name, self._start), 0)
        if left:
            self.world.crash_at[self.task.name, self._start] = left - 1
            raise SimulatorFailed("died of signal 11")
        actions = request.actions if isinstance(request, Run) else np.full((request.steps, 7), 0.5)
        done: list[NDArray[np.float64]] = []
        success = None
        for action in actions:
            done.append(action)
            self._progress += action[0] > 0
            if self._progress >= NEEDED:
                success = len(done) - 1
                break
        before, self._steps = self._steps, self._steps + len(done)
        count = self._steps // request.film - before // request.film if request.film else 0
        film = [self._observation() for _ in range(count)]
        return self._reply(np.array(done), success, film)

    def _observation(self) -> dict[str, NDArray[Any]]:
        images = {key: np.full((SIZE, SIZE, 3), self._progress, np.uint8) for key in IMAGE_KEYS}
        return images | {"robot0_joint_pos": np.zeros(7), "robot0_gripper_qpos": np.zeros(2)}

    def _reply(self, actions: NDArray[np.float64], success: int | None, film: list[dict[str, NDArray[Any]]]) -> Reply:
        return Reply(self._observation(), np.zeros(3), actions, success, success is not None, film=film)

    def close(self) -> None:
        self.world.alive -= not self._closed
        self._closed = True

    kill = close


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    fresh = World()
    monkeypatch.setattr(FakeSimulator, "world", fresh)
    monkeypatch.setattr(worker, "Simulator", FakeSimulator)
    monkeypatch.setattr(memory, "free_gib", lambda: float("inf"))
    monkeypatch.setattr(worker, "ready", lambda simulators, timeout: fresh.order(simulators))
    monkeypatch.setattr(paths, "prepare", lambda: Path())
    monkeypatch.setattr(paths, "installed_version", lambda package: "1")
    monkeypatch.setattr(suites, "tasks", lambda suite: TASKS)
    monkeypatch.setattr(suites, "fixtures", lambda task: ())
    monkeypatch.setattr(suites, "init_states", lambda task: np.arange(INIT_STATES * 3.0).reshape(-1, 3) // 3)
    yield fresh
    assert fresh.alive == 0, "a simulator was left running"


@dataclass
class Pushes:
    """A policy whose first action component is ``value``, in chunks of 5."""

    value: float = 0.5
    obs_spec: ObsSpec = field(default_factory=lambda: libero_spec(SIZE))
    language: dict[str, int] = field(default_factory=lambda: {t.instruction: 0 for t in TASKS})
    identity: str = "a" * 64
    chunk: int = 5
    draws: list[Draw] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def act(self, observations: Sequence[Observation], draws: Sequence[Draw] | None = None) -> Acted:
        self.draws += draws or []
        self.seen += [o.instruction for o in observations]
        return Acted(torch.full((len(observations), self.chunk, 7), self.value), None)

    def vector(self, instruction: str) -> int:
        if instruction not in self.language:
            raise StoreMissing(f"{instruction!r} is not one of {sorted(self.language)}")
        return self.language[instruction]


class Wanders(Pushes):
    """Acts by its noise alone; nine of ten of its steps go forwards, so that trials are of different lengths."""

    def act(self, observations: Sequence[Observation], draws: Sequence[Draw] | None = None) -> Acted:
        return Acted(normal_rows(draws or [], (self.chunk, 7)) + self.value, None)


def run(policy: Any, out: Path, **options: Any) -> Any:
    return evaluate(policy, "libero_object", out=out, name="p", **({"num_trials": 3} | options))


@dataclass
class Prepared(Pushes):
    """Needs a second a call, and a hundred for each trial's goal; tells the time of its own clock."""

    now: float = 0.0
    ready: int | None = None

    def prepare(self, draw: Draw) -> None:
        if self.ready != draw.trial:
            self.ready, self.now = draw.trial, self.now + 100.0

    def act(self, observations: Sequence[Observation], draws: Sequence[Draw] | None = None) -> Acted:
        for draw in draws or []:
            self.prepare(draw)
        self.now += 1.0
        return super().act(observations, draws)


def test_what_a_trial_needs_before_the_first_call_is_in_no_calls_time(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Prepared()
    monkeypatch.setattr(runner, "time", SimpleNamespace(perf_counter=lambda: policy.now))
    latency = run(policy, tmp_path).latency
    assert (latency.p50_ms, latency.p95_ms, latency.calls) == (1000.0, 1000.0, 6 * NEEDED)


def told(results: Any) -> dict[tuple[str, int], tuple[str, int, str]]:
    """Outcome, steps and actions of every trial."""
    return {record.key: (record.outcome, record.steps, record.actions) for record in results.records}


def test_outcomes_are_counted_by_task(world: World, tmp_path: Path) -> None:
    policy = Pushes()
    results = run(policy, tmp_path)
    assert (results.successes, results.trials, results.errors, results.success) == (6, 6, 0, 1.0)
    assert set(results.per_task) == {"task_0", "task_1"}
    assert results.interval[0] == pytest.approx(0.61, abs=0.01)  # Wilson, 6 of 6
    assert set(policy.seen) == {"do thing 0", "do thing 1"}
    assert {record.steps for record in results.records} == {NEEDED}
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["per_task"]["task_0"]["successes"] == 3
    assert "100 %" in (tmp_path / "results.md").read_text()
    assert "do thing 1" in (tmp_path / "index.html").read_text()


def test_running_out_of_steps_is_a_failure(world: World, tmp_path: Path) -> None:
    results = run(Pushes(-0.5), tmp_path, max_steps=23)
    assert (results.successes, results.trials) == (0, 6)
    assert {record.steps for record in results.records} == {23}  # not rounded up to a chunk


def test_trials_start_from_the_numbered_states_and_settle(world: World, tmp_path: Path) -> None:
    run(Pushes(), tmp_path, tasks="1", num_trials=2, first_init=3)
    resets = [r for r in world.requests if isinstance(r, Reset)]
    assert [int(r.state[0]) for r in resets] == [3, 4]
    assert {r.settle for r in resets} == {suites.SETTLE_STEPS}


def test_trials_are_the_same_for_any_workers_and_timing(world: World, tmp_path: Path) -> None:
    world.crash_at = {("task_1", 1): 1}
    one = run(Wanders(0.3), tmp_path / "1", num_trials=5)
    assert one.errors == 1
    one = run(Wanders(0.3), tmp_path / "1", num_trials=5)  # the crashed trial again, by itself
    assert len({(steps, actions) for _, steps, actions in told(one).values()}) == 10
    world.order = lambda simulators: simulators[-1:]
    two = run(Wanders(0.3), tmp_path / "2", num_trials=5, workers=2)
    world.order = lambda simulators: simulators[::-1]
    three = run(Wanders(0.3), tmp_path / "3", num_trials=5, workers=3)
    assert world.most_alive == 3
    assert told(one) == told(two) == told(three)
    second = run(Wanders(0.3), tmp_path / "4", num_trials=5, seed=1)
    assert not set(told(second).values()) & set(told(one).values())


def test_a_draw_is_of_its_trial_and_call(world: World, tmp_path: Path) -> None:
    policy = Pushes()
    run(policy, tmp_path, workers=2, seed=7, execution=Execution(5))
    assert len(set(policy.draws)) == len(policy.draws) == 6 * 3  # twelve steps in chunks of five
    assert {draw.seed for draw in policy.draws} == {7}
    assert {draw.call for draw in policy.draws} == {0, 1, 2}
    assert len({draw.trial for draw in policy.draws}) == 6


def test_without_any_finished_trial_the_reason_is_told(world: World, tmp_path: Path) -> None:
    world.crash_at = {(t.name, start): 1 for t in TASKS for start in range(INIT_STATES)}
    with pytest.raises(SimulatorFailed, match=r"the first 3 trials .*signal 11.*statevla doctor"):
        run(Pushes(), tmp_path / "many", num_trials=5)
    world.crash_at = {("task_0", 0): 1}
    with pytest.raises(SimulatorFailed, match=r"no trial finished.*signal 11.*statevla doctor"):
        run(Pushes(), tmp_path / "one", tasks="0", num_trials=1)
    assert "signal 11" in (tmp_path / "one" / "index.html").read_text()


def test_simulators_that_do_not_start_end_the_evaluation(world: World, tmp_path: Path) -> None:
    world.broken = True
    with pytest.raises(SimulatorFailed, match=r"no OpenGL here.*statevla doctor"):
        run(Pushes(), tmp_path, workers=2)


def test_an_unknown_instruction_is_an_error_before_anything_runs(world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'do thing 1'.*\['do thing 0'\]"):
        run(Pushes(language={"do thing 0": 0}), tmp_path)
    assert world.requests == []


def test_other_observations_are_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ObsSpecMismatch, match="orientation"):
        run(Pushes(obs_spec=dataclasses.replace(libero_spec(SIZE), orientation="opengl")), tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_actions_that_are_not_finite_are_refused(world: World, tmp_path: Path, value: float) -> None:
    with pytest.raises(StateVLAError, match="NaN or infinite"):
        run(Pushes(value), tmp_path)


@pytest.mark.parametrize(
    "options",
    [{"num_trials": 0}, {"num_trials": INIT_STATES + 1}, {"workers": 0}, {"execution": Execution(6)}, {"tasks": "7"}],
)
def test_what_cannot_be_is_refused(world: World, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        run(Pushes(), tmp_path, **options)


def test_workers_that_memory_has_no_room_for_are_refused_before_anything_runs(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_gib", lambda: 6.0)
    with pytest.raises(UsageError, match=r"--workers 3: .*2\.4 GiB .*6\.0 GiB are free\. --workers 2 fits"):
        run(Pushes(), tmp_path / "three", workers=3)
    assert (world.requests, (tmp_path / "three").exists()) == ([], False)
    assert run(Pushes(), tmp_path / "two", workers=2).errors == 0
    assert run(Pushes(), tmp_path / "few", workers=9, tasks="0", num_trials=2).errors == 0  # two simulators, not nine
    monkeypatch.setattr(memory, "free_gib", lambda: 0.5)
    assert run(Pushes(), tmp_path / "one").errors == 0


def test_demonstrations_are_replayed_from_their_own_state(world: World, tmp_path: Path) -> None:
    good = ReplayDemo("good", np.array([7.0, 0, 0]), np.full((NEEDED, 7), 0.5))
    short = ReplayDemo("short", np.array([8.0, 0, 0]), np.full((NEEDED - 3, 7), 0.5))
    results = run(ReplayDemos({"task_0": (good, short)}), tmp_path)
    assert (results.successes, results.trials) == (1, 2)
    resets = [r for r in world.requests if isinstance(r, Reset)]
    assert [(int(r.state[0]), r.restore_again) for r in resets] == [(7, True), (8, True)]
    sent = np.concatenate([r.actions for r in world.requests if isinstance(r, Run)][-1:])
    assert (sent[NEEDED - 3 :, :6] == 0).all()  # patience: no motion, the last gripper command held
    assert (sent[NEEDED - 3 :, 6] == 0.5).all()


def test_the_expert_is_asked_for_in_the_simulator(world: World, tmp_path: Path) -> None:
    results = run(ExpertControl(seed=4), tmp_path, tasks="1", num_trials=1)
    assert results.success == 1.0
    reset = next(r for r in world.requests if isinstance(r, Reset))
    assert reset.expert_seed == (4, 1, 0)


def test_chosen_trials_are_filmed(world: World, tmp_path: Path) -> None:
    results = run(Pushes(), tmp_path, videos=1)
    filmed = [r for r in results.records if r.video]
    assert [(r.task, r.start) for r in filmed] == [("task_0", 0), ("task_1", 0)]
    assert all((tmp_path / r.video).read_bytes()[:6] == b"GIF89a" for r in filmed)
    assert filmed[0].video in (tmp_path / "index.html").read_text()


def test_a_suite_without_expert_is_a_wrong_use_and_starts_no_simulator(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experts, "EXPERTS", {"libero_object": experts.EXPERTS["libero_object"]})
    with pytest.raises(UsageError, match="libero_90 has no scripted expert; there is one for libero_object"):
        evaluate(ExpertControl(), "libero_90", out=tmp_path, name="expert", num_trials=1, first_init=0)
    assert list(tmp_path.iterdir()) == []
