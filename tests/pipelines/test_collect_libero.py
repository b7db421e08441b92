"""Collection in LIBERO with simulators that are not: files, failures, crashes, interruption, settings."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipelines.collect import libero as module
from pipelines.collect import libero_trial as trial_module
from pipelines.collect.libero import collect_libero
from pipelines.collect.libero_parts import HOLD
from statevla.sims.libero import experts, suites
from statevla.sims.libero.errors import SimulatorFailed
from statevla.sims.libero.protocol import IMAGE_KEYS, Demonstrate, Draw, Reply, Request, Reset, Run, Scenery, Track
from stores.errors import StateVLAError, UsageError
from stores.progress import ProgressEvent

INIT_STATES = 5
STEPS_TO_SUCCESS = 7
SITE = Path("/site-packages")


def fake_task(index: int) -> suites.Task:
    return suites.Task("libero_object", index, f"task_{index}", f"do {index}", SITE / "libero/x.bddl", Path("x.init"))


TASKS = (fake_task(0), fake_task(1))


@dataclass
class World:
    """fail: initial states from which the expert never succeeds. brief: from which success does not hold.
    crash: simulators to crash, in all. solved: from which a policy that drives succeeds. driven: its steps, by attempt
    that the expert took over. taken: with which seeds. stop_after: episodes, or drawings, until the user interrupts."""

    fail: set[int] = field(default_factory=set)
    brief: set[int] = field(default_factory=set)
    crash: int = 0
    stop_after: int | None = None
    stop_drawing: int | None = None
    seeds: list[tuple[int, ...]] = field(default_factory=list)
    noises: list[float] = field(default_factory=list)
    scattered: list[Any] = field(default_factory=list)
    solved: set[int] = field(default_factory=set)
    driven: list[int] = field(default_factory=list)
    taken: list[Any] = field(default_factory=list)
    drawings: list[tuple[int, int]] = field(default_factory=list)
    alive: int = 0


def track_of(init: int, fail: bool, brief: bool, noise: float) -> Track:
    """An episode that counts up; what a camera would see is what was counted."""
    steps = STEPS_TO_SUCCESS + HOLD - 1
    succeeded = np.arange(1, steps + 1) >= STEPS_TO_SUCCESS
    succeeded &= not fail
    if brief:
        succeeded[-2] = False
    count = np.arange(steps + 1.0)
    states = np.stack([np.full(steps + 1, init), count, 0 * count], 1)
    seen = {"robot0_joint_pos": np.repeat(count[:, None] + 0.5, 7, 1), "robot0_gripper_qpos": np.zeros((steps + 1, 2))}
    seen |= {"robot0_eef_pos": np.ones((steps + 1, 3)), "robot0_eef_quat": np.tile([0.0, 0, 0, 1], (steps + 1, 1))}
    labels = np.repeat(count[1:, None], 7, 1)
    return Track(
        states, states, np.zeros((steps + 1, 1, 4), np.float32), seen, labels + noise, labels, succeeded,
        ("carry",) * steps,
    )  # fmt: skip


class FakeSimulator:
    """Answers as a worker does, from what :func:`track_of` says."""

    world = World()

    def __init__(self, task: suites.Task, **_: Any) -> None:
        self.task, self.starting = task, True
        self._init = 0
        self._request: Request | None = None
        self._closed = False
        self._driven = 0
        self.world.alive += 1

    @property
    def scenery(self) -> Scenery:
        self.starting = False
        info = {"problem_name": "p", "domain_name": "robosuite", "language_instruction": self.task.instruction}
        return Scenery("Env", info, {"bddl_file_name": str(self.task.bddl), "camera_heights": 4}, "(define)", "opengl")

    def send(self, request: Request) -> None:
        world = self.world
        if isinstance(request, Reset):
            if world.stop_after is not None and len(world.seeds) >= world.stop_after:
                raise KeyboardInterrupt
            self._init, self._driven = int(request.state[0]), 0
            world.seeds.append(request.expert_seed or ())
            world.scattered.append(request.scatter)
        elif isinstance(request, Draw):
            if world.stop_drawing is not None and len(world.drawings) >= world.stop_drawing:
                raise KeyboardInterrupt
            world.drawings.append((self.task.index, int(request.drawn[0, 0])))
        elif isinstance(request, Demonstrate):
            world.noises.append(request.noise)
            world.taken.append(request.take_over)
            if self._driven:
                world.driven.append(self._driven)
        self._request = request

    def receive(self) -> Reply:
        request, world = self._request, self.world
        empty = np.zeros((0, 7))
        seen = {key: np.zeros((4, 4, 3), np.uint8) for key in IMAGE_KEYS}
        seen |= {"robot0_joint_pos": np.zeros(7), "robot0_gripper_qpos": np.zeros(2)}
        if isinstance(request, Reset):
            return Reply(seen, np.zeros(3), empty, None, False, model=f'<mujoco file="{SITE}/libero/mesh.msh"/>')
        if isinstance(request, Run):
            self._driven += len(request.actions)
            success = 0 if self._init in world.solved else None
            return Reply(seen, np.zeros(3), request.actions, success, success is not None)
        if isinstance(request, Draw):
            frames = [np.full((4, 4, 3), row[1] % 256, np.uint8) for row in request.drawn]
            return Reply({}, np.zeros(3), empty, None, False, film=[dict.fromkeys(IMAGE_KEYS, f) for f in frames])
        assert isinstance(request, Demonstrate)
        if world.crash:
            world.crash -= 1
            raise SimulatorFailed("died")
        track = track_of(self._init, self._init in world.fail, self._init in world.brief, request.noise)
        return Reply({}, np.zeros(3), track.executed, None, bool(track.succeeded[-1]), track=track)

    def close(self) -> None:
        self.world.alive -= not self._closed
        self._closed = True

    kill = close


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    fresh = World()
    monkeypatch.setattr(FakeSimulator, "world", fresh)
    monkeypatch.setattr(module, "Simulator", FakeSimulator)
    monkeypatch.setattr(module, "ready", lambda simulators: simulators)
    monkeypatch.setattr(module.paths, "prepare", lambda: Path())
    monkeypatch.setattr(module.paths, "package_root", lambda: SITE / "libero/libero")
    monkeypatch.setattr(suites, "tasks", lambda suite: TASKS)
    monkeypatch.setattr(suites, "init_states", lambda task: np.arange(INIT_STATES * 3.0).reshape(-1, 3) // 3)
    yield fresh
    assert fresh.alive == 0, "a simulator was left running"


def run(out: Path, **options: Any) -> Any:
    return collect_libero("libero_object", out, **({"episodes": 3} | options))


def test_files_have_what_was_seen_where_it_belongs(world: World, tmp_path: Path) -> None:
    summary = run(tmp_path)
    steps = STEPS_TO_SUCCESS + HOLD - 1
    assert (summary.episodes, summary.steps, summary.failures) == (6, 6 * steps, 0)
    assert sorted(f.name for f in tmp_path.iterdir() if f.suffix == ".hdf5") == ["task_0_demo.hdf5", "task_1_demo.hdf5"]
    with h5py.File(tmp_path / "task_1_demo.hdf5") as file:
        data = file["data"]
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == "do 1"
        assert json.loads(data.attrs["init_states_used"]) == [0, 1, 2]
        assert [int(data[f"demo_{i}"].attrs["init_state_index"]) for i in range(3)] == [0, 1, 2]
        told = data["demo_0"].attrs["model_file"] + data.attrs["env_args"] + data.attrs["bddl_file_name"]
        assert str(SITE) not in told
        demo = data["demo_2"]
        assert demo["actions"][:, 0].tolist() == list(range(1, steps + 1))
        assert demo["states"][:, 1].tolist() == list(range(steps))  # before the action
        assert demo["obs/joint_states"][:, 0].tolist() == [t + 1.5 for t in range(steps)]  # after it
        assert demo["robot_states"][0].tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 1]
        assert demo["obs/agentview_rgb"][:, 0, 0, 0].tolist() == list(range(1, steps + 1))
        assert demo.attrs["made_by"] == "scripted expert"
        assert "executed_actions" not in demo


def test_observations_before_the_action(world: World, tmp_path: Path) -> None:
    run(tmp_path, align="before", tasks=[0], episodes=1)
    with h5py.File(tmp_path / "task_0_demo.hdf5") as file:
        joints, states = file["data/demo_0/obs/joint_states"][:, 0], file["data/demo_0/states"][:, 1]
    assert (joints == states + 0.5).all()


def test_failures_are_not_written_and_their_states_not_used(world: World, tmp_path: Path) -> None:
    world.fail = {1}
    summary = run(tmp_path, tasks=[0])
    assert (summary.episodes, summary.failures) == (3, 1)
    with h5py.File(tmp_path / "task_0_demo.hdf5") as file:
        assert json.loads(file["data"].attrs["init_states_used"]) == [0, 2, 3]


def test_a_success_that_does_not_hold_is_none(world: World, tmp_path: Path) -> None:
    world.brief = {0}
    summary = run(tmp_path, tasks=[0])
    assert summary.failures == 1
    with h5py.File(tmp_path / "task_0_demo.hdf5") as file:
        assert json.loads(file["data"].attrs["init_states_used"]) == [1, 2, 3]


def test_only_demonstrations_are_drawn_and_each_once(world: World, tmp_path: Path) -> None:
    world.fail = {1}
    run(tmp_path, workers=3)
    assert sorted(world.drawings) == [(0, 0), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3)]


def test_noise_is_executed_and_not_learned(world: World, tmp_path: Path) -> None:
    run(tmp_path, tasks=[0], episodes=4, noise=0.25, noise_share=0.5)
    assert world.noises == [0, 0.25, 0, 0.25]
    with h5py.File(tmp_path / "task_0_demo.hdf5") as file:
        plain, noisy = file["data/demo_0"], file["data/demo_1"]
        assert "executed_actions" not in plain
        assert (noisy["executed_actions"][:] == noisy["actions"][:] + 0.25).all()
        assert noisy["actions"][0, 0] == 1
        assert noisy.attrs["made_by"] == "scripted expert, noise 0.25 on its actions"
        assert json.loads(file["data"].attrs["collected_with"])["noise"] == 0.25


def test_things_are_scattered_in_a_share_of_the_attempts(world: World, tmp_path: Path) -> None:
    run(tmp_path, tasks=[0], scatter=0.5, init_states=4, episodes=12)
    told = [seed is not None for seed in world.scattered]
    assert 0 < sum(told) < 12
    with h5py.File(tmp_path / "task_0_demo.hdf5") as file:
        made_by = [file[f"data/demo_{k}"].attrs["made_by"] for k in range(12)]
        assert json.loads(file["data"].attrs["collected_with"])["scatter"] == 0.5
    assert [text == "scripted expert, things scattered" for text in made_by] == told
    again = world.scattered.copy()
    run(tmp_path / "again", tasks=[0], scatter=0.5, init_states=4, episodes=12, workers=2)
    assert world.scattered[12:] == again
    run(tmp_path / "not", tasks=[0])
    assert world.scattered[24:] == [None] * 3
    with h5py.File(tmp_path / "not" / "task_0_demo.hdf5") as file:
        assert "scatter" not in json.loads(file["data"].attrs["collected_with"]), "older collections are gone on with"


def test_a_full_disk_is_foreseen(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10 * 2**20})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StateVLAError, match=r"need about .* GiB .* are free.*--tasks"):
        run(tmp_path, episodes=50)


def test_an_expert_that_always_fails_ends_the_collection(world: World, tmp_path: Path) -> None:
    world.fail = set(range(INIT_STATES))
    with pytest.raises(UsageError, match="failed 10 times in a row"):
        run(tmp_path)


def test_a_crash_is_tried_again_from_the_same_state(world: World, tmp_path: Path) -> None:
    world.crash = 2
    assert run(tmp_path, tasks=[0]).failures == 0
    assert [seed[2] for seed in world.seeds] == [0, 0, 0, 1, 2]


def test_crash_after_crash_ends_the_collection(world: World, tmp_path: Path) -> None:
    world.crash = 100
    with pytest.raises(SimulatorFailed):
        run(tmp_path)


def test_more_demonstrations_than_states_vary_by_seed(world: World, tmp_path: Path) -> None:
    run(tmp_path, tasks=[0], episodes=5, first_init=2, init_states=2)
    assert [seed[2:] for seed in world.seeds] == [(2, 0), (3, 0), (2, 1), (3, 1), (2, 2)]


def test_other_settings_do_not_mix(world: World, tmp_path: Path) -> None:
    run(tmp_path, tasks=[0])
    with pytest.raises(UsageError, match=r"task_0_demo\.hdf5 was collected with seed 0 \(now 1\)\. Choose"):
        run(tmp_path, seed=1)


@pytest.mark.parametrize(
    "options",
    [
        {"episodes": 0},
        {"workers": 0},
        {"first_init": INIT_STATES},
        {"init_states": 9},
        {"align": "x"},
        {"tasks": "4"},
        {"noise": -0.1},
        {"noise_share": 1.5},
        {"scatter": -0.5},
    ],
)
def test_what_cannot_be_is_refused(world: World, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        run(tmp_path, **options)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_expert_is_tried_without_drawing_or_writing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(trial_module, "Simulator", FakeSimulator)
    monkeypatch.setattr(trial_module, "ready", lambda simulators: simulators)
    monkeypatch.chdir(tmp_path)
    world.fail, world.brief = {1}, {2}
    found = trial_module.try_expert("libero_object", episodes=4, workers=workers)
    assert [(t.task, t.init_state, t.held) for t in found.trials] == [
        (task, init, init in (0, 3)) for task in (0, 1) for init in range(4)
    ]
    assert {t.first_success for t in found.trials if t.held} == {STEPS_TO_SUCCESS}
    assert found.held() == 4
    assert "4 of 8 held" in found.to_markdown()
    assert (world.drawings, list(tmp_path.iterdir())) == ([], [])
    world.crash = 1
    crashed = trial_module.try_expert("libero_object", episodes=2, workers=1)
    assert [t.error for t in crashed.trials] == ["died", "died", "", ""]


def test_a_trial_of_states_that_are_not_there_is_refused(world: World) -> None:
    with pytest.raises(UsageError, match="initial states within 0-4"):
        trial_module.try_expert("libero_object", episodes=3, first_init=3)


def test_a_suite_without_expert_is_refused(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "EXPERTS", {})
    with pytest.raises(UsageError, match="libero_90 has no scripted expert"):
        collect_libero("libero_90", tmp_path)


def test_the_pace_of_drawing_does_not_count_what_came_before_the_first(world: World, tmp_path: Path) -> None:
    told: list[ProgressEvent] = []
    run(tmp_path, progress=told.append)
    before = [event.task for event in told].index("demonstrations")
    assert {event.task for event in told[:before]} == {"states"}
    assert {event.task for event in told[before:]} == {"demonstrations"}
    assert told[before].done == 1
    assert told[-1].done == told[-1].total
