"""Other instructions with simulators that are not: who listens, who does not, and that it is said."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from statevla.evaluators import runner
from statevla.evaluators.conditions import Conditions
from statevla.evaluators.language import (
    CHANGES,
    KINDS,
    WRONG,
    change,
    evaluate_language,
    instructions_of,
    paraphrase,
)
from statevla.observation import Observation
from statevla.policies.controls import ExpertControl
from statevla.policies.noise import Draw
from statevla.sims.libero import worker
from statevla.sims.libero.protocol import Reply, Reset, Run
from statevla.systems.acting import Acted
from stores.errors import StoreMissing, UsageError
from tests.evaluators.test_libero import TASKS, FakeSimulator, Pushes, World, world  # noqa: F401

ORDER = [task.instruction for task in TASKS]


class StrictSimulator(FakeSimulator):
    """Its task goes on only while the second action component names it."""

    def send(self, request: Any) -> None:
        if isinstance(request, Run):
            actions = request.actions.copy()
            actions[:, 0] = np.where(np.rint(10 * actions[:, 1]) == self.task.index, actions[:, 0], -1.0)
            request = Run(actions, request.look, request.film, request.through)
        super().send(request)

    def receive(self) -> Reply:
        return super().receive()


@dataclass
class Listens(Pushes):
    """Does the task that it is told; anything else is the first one to it."""

    refuses: tuple[str, ...] = ()

    def act(self, observations: Sequence[Observation], draws: Sequence[Draw] | None = None) -> Acted:
        self.seen += [o.instruction for o in observations]
        chunk = torch.full((len(observations), self.chunk, 7), 0.5)
        for row, seen in enumerate(observations):
            words = [text for text in ORDER if text in seen.instruction]
            chunk[row, :, 1] = 0.1 * ORDER.index(words[0]) if words else 0.9
        return Acted(chunk, None)

    def vector(self, instruction: str) -> int:
        if instruction in self.refuses:
            raise StoreMissing(f"{instruction!r} is not one of {sorted(self.language)}")
        return 0


class Deaf(Listens):
    """Knows its task from nowhere: the first one's in every scene."""

    def act(self, observations: Sequence[Observation], draws: Sequence[Draw] | None = None) -> Acted:
        return Acted(torch.full((len(observations), self.chunk, 7), 0.5), None)


@pytest.fixture
def strict(world: World, monkeypatch: pytest.MonkeyPatch) -> World:  # noqa: F811
    monkeypatch.setattr(worker, "Simulator", StrictSimulator)
    return world


def measure(policy: Any, out: Path, **options: Any) -> Any:
    return evaluate_language(policy, "libero_object", out=out, name="p", **({"num_trials": 3} | options))


def test_a_policy_that_listens_loses_where_it_is_told_otherwise(strict: World, tmp_path: Path) -> None:
    found = measure(Listens(), tmp_path, max_steps=20)
    rows = {row.kind: row for row in found.rows}
    assert [row.kind for row in found.rows] == list(KINDS)
    assert {kind: row.results.successes for kind, row in rows.items()} == {
        "right": 6, "paraphrased": 6, "swapped": 0, "wrong": 0, "empty": 0,
    }  # fmt: skip
    assert rows["swapped"].lost[0] == 1.0
    assert rows["paraphrased"].lost[0] == 0.0
    assert rows["swapped"].change > 0.05
    assert rows["paraphrased"].change == 0.0
    assert found.noise == 0.0
    assert "listens: with another task's instruction 100 points are lost" in found.verdict
    assert "100 %" in (tmp_path / "language.md").read_text()


def test_a_policy_that_ignores_its_instruction_is_named(world: World, tmp_path: Path) -> None:  # noqa: F811
    found = measure(Deaf(), tmp_path)
    assert {row.results.successes for row in found.rows} == {6}
    assert "IGNORES its instruction" in found.verdict
    assert "IGNORES" in (tmp_path / "language.md").read_text()


def test_success_that_does_not_need_the_instruction_is_told(world: World, tmp_path: Path) -> None:  # noqa: F811
    found = measure(Listens(), tmp_path)  # its actions change, and any of them succeeds here
    assert "NOT DEPEND" in found.verdict


def test_each_task_is_told_its_own_other_text(strict: World, tmp_path: Path) -> None:
    measure(Listens(), tmp_path, max_steps=5)
    files = {kind: (tmp_path / kind / "trials.jsonl").read_text() for kind in KINDS}
    assert "do thing 1" in files["swapped"]
    assert WRONG in files["wrong"]
    assert "please do thing 0" in files["paraphrased"]


def test_it_goes_on_where_it_stopped(strict: World, tmp_path: Path) -> None:
    first = measure(Listens(), tmp_path, max_steps=20)
    strict.requests.clear()
    again = measure(Listens(), tmp_path, max_steps=20)
    assert not [r for r in strict.requests if isinstance(r, Reset)]
    assert again.to_dict() == first.to_dict()
    assert again.compared == len((tmp_path / "right" / CHANGES).read_text().splitlines()) > 0


@dataclass
class Interrupted(Listens):
    """Somebody presses Ctrl-C at its fortieth decision, in the middle of a trial."""

    left: int = 40

    def act(self, observations: Sequence[Observation], draws: Sequence[Draw] | None = None) -> Acted:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().act(observations, draws)


def test_what_is_compared_is_a_matter_of_the_trials_alone(strict: World, tmp_path: Path) -> None:
    """The calls 0, 5 and 10 of twelve of each of six trials, with any workers and after any interruption."""
    whole = measure(Listens(), tmp_path / "whole", max_steps=20)
    assert whole.compared == 6 * 3
    strict.order = lambda simulators: simulators[::-1]
    assert measure(Listens(), tmp_path / "two", max_steps=20, workers=2).to_dict() == whole.to_dict()
    with pytest.raises(KeyboardInterrupt):
        measure(Interrupted(), tmp_path / "cut", max_steps=20)
    assert measure(Listens(), tmp_path / "cut", max_steps=20).to_dict() == whole.to_dict()


def test_tasks_can_be_added_and_fewer_are_not_told_what_the_others_changed(strict: World, tmp_path: Path) -> None:
    both = measure(Listens(), tmp_path / "whole", max_steps=20)
    measure(Listens(), tmp_path / "both", max_steps=20, tasks="0")
    assert measure(Listens(), tmp_path / "both", max_steps=20).to_dict() == both.to_dict()
    alone = measure(Listens(), tmp_path / "alone", max_steps=20, tasks="1")
    assert measure(Listens(), tmp_path / "both", max_steps=20, tasks="1").to_dict() == alone.to_dict()


def test_another_policy_after_the_trials_were_removed_is_not_told_the_firsts_changes(
    strict: World, tmp_path: Path
) -> None:
    measure(Listens(), tmp_path, max_steps=20)
    for kind in KINDS:  # as each refusal says
        shutil.rmtree(tmp_path / kind)
    found = measure(Deaf(identity="b" * 64), tmp_path, max_steps=20)
    assert found.to_dict() == measure(Deaf(identity="b" * 64), tmp_path / "fresh", max_steps=20).to_dict()
    assert {row.change for row in found.rows if row.kind != "right"} == {0.0}
    assert "IGNORES its instruction" in found.verdict


def test_the_trials_under_the_right_instructions_are_an_evaluation_like_any(
    strict: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says how the demonstrations were made, and the other questions are not in the time of a call."""
    now = [0.0]

    class Slow(Listens):
        made_by: ClassVar = {"by hand": 3}

        def act(self, observations: Sequence[Observation], draws: Sequence[Draw] | None = None) -> Acted:
            now[0] += 1.0
            return super().act(observations, draws)

    monkeypatch.setattr(runner, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    (right, *_) = (row.results for row in measure(Slow(), tmp_path).rows)
    assert right.made_by == {"by hand": 3}
    assert (right.latency.p50_ms, right.latency.p95_ms) == (1000.0, 1000.0)


def test_an_instruction_that_is_refused_costs_its_row_only(strict: World, tmp_path: Path) -> None:
    found = measure(Listens(refuses=(WRONG,)), tmp_path, max_steps=20)
    row = next(row for row in found.rows if row.kind == "wrong")
    assert (row.results, row.change) == (None, None)
    assert WRONG in row.error
    with pytest.raises(UsageError, match="do thing 1"):
        measure(Listens(refuses=("do thing 1",)), tmp_path / "other")


def test_a_control_sees_no_instruction(strict: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sees no instruction"):
        measure(ExpertControl(), tmp_path)


def test_other_words() -> None:
    assert paraphrase("pick the milk and place it in the basket") == "please grab the milk and set it in the basket"
    assert paraphrase("turn on the stove") == "please switch on the stove"
    told = instructions_of("swapped", TASKS[1:], TASKS)
    assert told == {"task_1": "do thing 0"}
    with pytest.raises(UsageError, match="none to swap"):
        instructions_of("swapped", TASKS[:1], TASKS[:1])


def test_change_is_a_share_of_the_actions() -> None:
    usual, other = np.full((5, 7), 0.5, np.float32), np.full((5, 7), 0.4, np.float32)
    other[:, 6] = -1.0  # the gripper is not counted
    assert change(usual, other) == pytest.approx(0.2)
    assert change(np.zeros((5, 7), np.float32), other) == 1.0


def test_conditions_say_what_is_not_as_usual() -> None:
    assert Conditions().told() == {}
    assert Conditions(fixtures="drawn", instructions={"task_0": ""}).told() == {
        "fixtures": "drawn",
        "instructions": {"task_0": ""},
    }
