"""Another suite is one row: a toy one, added here, goes the whole way to results."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from statevla.evaluators.evaluate import evaluate
from statevla.observation import SIMULATOR_IMAGE_KEYS, Observation, ObsSpec, libero_spec
from statevla.policies.controls import ExpertControl, ReplayDemo, ReplayDemos, ZeroPolicy
from statevla.policies.noise import Draw
from statevla.sims.suites import SUITES, Suite
from statevla.sims.world import Frame, Seen, Start, Task, World
from statevla.systems.acting import Acted
from stores.errors import UsageError

SIDE = 8
GOAL = 3.0


@dataclass(frozen=True)
class ToyTask:
    """Move a point along x until it has gone three metres, or three back."""

    index: int
    suite: str = "line"

    @property
    def name(self) -> str:
        return f"go_{self.instruction}"

    @property
    def instruction(self) -> str:
        return ("right", "left")[self.index]


@dataclass
class ToyWorld:
    task: ToyTask
    starting: bool = False
    x: float = 0.0
    steps: int = 0
    asked: tuple[NDArray[np.float64], int] = (np.zeros((0, 7)), 0)

    def come_up(self) -> None: ...

    def begin(self, start: Start) -> None:
        self.steps = 0
        self.x = 0.1 * start.number if start.state is None else float(start.state[0])
        self.asked = np.zeros((0, 7)), 0

    def run(self, actions: NDArray[np.float64], *, look: bool, film: int) -> None:
        self.asked = actions, film

    def run_expert(self, steps: int, *, look: bool, film: int) -> None:
        self.asked = np.tile([1.0 if self.task.index == 0 else -1.0, *[0.0] * 6], (steps, 1)), film

    def receive(self) -> Seen:
        done, film = [], []
        for action in self.asked[0]:
            self.x += action[0]
            done.append(action)
            self.steps += 1
            if self.asked[1] and self.steps % self.asked[1] == 0:
                film.append(self.frame())
            if self.x * (1 if self.task.index == 0 else -1) >= GOAL:
                return Seen(self.frame(), np.array(done), len(done) - 1, film)
        return Seen(self.frame(), np.array(done).reshape(-1, 7), None, film)

    def frame(self) -> Frame:
        pictures = {key: np.full((SIDE, SIDE, 3), 100, np.uint8) for key in SIMULATOR_IMAGE_KEYS.values()}
        return {**pictures, "robot0_joint_pos": np.full(7, self.x), "robot0_gripper_qpos": np.zeros(2)}

    def close(self) -> None: ...

    kill = close


@dataclass(frozen=True)
class ToySuite:
    name: str = "line"
    max_steps: int = 12
    settle_steps: int = 0
    image_size: int = SIDE

    def prepare(self) -> dict[str, str]:
        return {}

    def tasks(self, chosen: Sequence[int] | str | None) -> list[ToyTask]:
        return [ToyTask(0), ToyTask(1)]

    def number(self, task: Task, repetition: int) -> int:
        return repetition

    def check_expert(self, tasks: Sequence[Task]) -> None:
        """Both have one."""

    def available(self, task: Task) -> int:
        return 4

    def state_hashes(self, task: Task) -> tuple[str, ...]:
        return ()

    def open(self, task: Task, image_size: int, threads: int) -> ToyWorld:
        return ToyWorld(ToyTask(task.index))

    def ready(self, worlds: Sequence[World], timeout: float | None) -> Sequence[World]:
        return worlds


@dataclass(frozen=True)
class GoesRight:
    """A policy that always goes right, half a metre a step."""

    obs_spec: ObsSpec = field(default_factory=lambda: libero_spec(SIDE))
    chunk: int = 4
    identity: str = "right"

    def act(self, observations: Sequence[Observation], draws: Sequence[Draw] | None = None) -> Acted:
        chunk = torch.zeros(len(observations), self.chunk, 7)
        chunk[..., 0] = 0.5
        return Acted(chunk, None)


@pytest.fixture(autouse=True)
def row(monkeypatch: pytest.MonkeyPatch) -> None:
    suite: Suite = ToySuite()
    monkeypatch.setitem(SUITES, "line", suite)


def test_a_policy_and_every_control_act_in_it(tmp_path: Path) -> None:
    right = evaluate(GoesRight(), "line", out=tmp_path / "right", name="right", num_trials=3, videos=1)
    assert {name: (r.successes, r.trials) for name, r in right.per_task.items()} == {
        "go_right": (3, 3),
        "go_left": (0, 3),
    }
    assert [r.steps for r in right.records if r.task == "go_right"] == [6, 6, 6]
    assert (tmp_path / "right" / right.records[0].video).is_file()
    assert "go_right" in (tmp_path / "right" / "results.json").read_text()
    assert evaluate(ExpertControl(), "line", out=tmp_path / "expert", name="expert", num_trials=2).success == 1.0
    zero = evaluate(ZeroPolicy(libero_spec(SIDE)), "line", out=tmp_path / "zero", name="zero", num_trials=2)
    assert zero.success == 0.0
    demo = ReplayDemo("made", np.array([2.0]), np.tile([0.5, *[0.0] * 6], (2, 1)))
    assert evaluate(ReplayDemos({"go_right": (demo,)}), "line", out=tmp_path / "re", name="replay").successes == 1


def test_its_limits_hold(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has 4 initial states"):
        evaluate(GoesRight(), "line", out=tmp_path, name="right", num_trials=5)


def test_every_row_is_a_suite() -> None:
    for name, suite in SUITES.items():
        assert isinstance(suite, Suite)
        assert suite.name == name
        assert suite.max_steps > 0


def test_no_task_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match=r"tasks 0-3, each to be named once; got \[\]"):
        SUITES["tabletop"].tasks([])
