"""Where an evaluation starts, by the initial states that a policy was trained on."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from statevla.evaluators.start import first_start, overlap, untold
from statevla.evaluators.trials import Trial
from statevla.sims.libero import suites
from statevla.sims.libero.row import LiberoSuite
from statevla.sims.suites import Suite
from statevla.sims.tabletop.suite import TabletopSuite
from statevla.sims.world import Task
from stores.errors import UsageError
from stores.init_states import first_free, init_state_hash, init_states_by_task, numbers_of


@dataclass
class Trained:
    init_states: dict[str, list[str]] = field(default_factory=dict)
    trained: dict[str, int] = field(default_factory=lambda: {"do it": 0})


@dataclass(frozen=True)
class Named:
    """A task of that name."""

    name: str
    index: int = 0
    suite: str = "suite"
    instruction: str = "do it"


def tasks(*names: str) -> list[Task]:
    return [Named(name, number) for number, name in enumerate(names)]


class Numbered(TabletopSuite):
    """A suite with so many initial states."""

    def __init__(self, states: int | None, hashes: tuple[str, ...] = ()) -> None:
        self.states, self.hashes = states, hashes

    def available(self, task: Task) -> int | None:
        return self.states

    def state_hashes(self, task: Task) -> tuple[str, ...]:
        return self.hashes


def suite(available: int | None, *hashes: str) -> Suite:
    return Numbered(available, hashes)


def trials(task: Task, *starts: int) -> list[Trial]:
    return [Trial(task, start) for start in starts]


def test_an_evaluation_starts_past_the_states_of_all_its_tasks() -> None:
    policy = Trained({"a": ["0", "1", "sha256:ff"], "b": ["0", "4"], "c": ["30"]})
    assert first_start(policy, suite(50), tasks("a", "b"), 20) == 5
    assert first_start(policy, suite(50), tasks("a"), 20) == 2
    assert first_start(policy, suite(50), tasks("other"), 20) == 0
    assert first_start(object(), suite(50), tasks("a"), 20) == 0  # a control has no training
    assert first_start(policy, suite(None), tasks("c"), 99) == 31


def test_too_few_states_left_says_what_to_do() -> None:
    policy = Trained({"a": [str(n) for n in range(40)]})
    with pytest.raises(UsageError, match=r"up to 39; 10 are left, 50 are.*--num-trials 10, or --first-init 0"):
        first_start(policy, suite(50), tasks("a"), 50)


def test_an_overlap_is_said() -> None:
    (task,) = tasks("a")
    policy = Trained({"a": ["0", "1", "sha256:ff"]})
    assert "2 of 3 trials start from initial states that the policy was trained on (0, 1)" in str(
        overlap(policy, suite(50), trials(task, 0, 1, 2))
    )
    assert overlap(policy, suite(50), trials(task, 2, 3)) is None
    assert overlap(object(), suite(50), trials(task, 0)) is None


def test_states_of_a_manifest_by_task() -> None:
    sources = [
        {"file": "a_demo.hdf5", "init_states": {"a": {"demo_0": "10", "demo_1": "2"}}},
        {"file": "a_demo.h5", "init_states": {"a": {"demo_0": "2", "demo_9": "sha256:ff"}}},
        {"file": "old_demo.hdf5"},
    ]
    assert init_states_by_task(sources) == {"a": ["2", "10", "sha256:ff"]}
    assert first_free(["2", "10", "sha256:ff"]) == 11
    assert first_free(["2", "sha256:ff"], ["sha256:00", "sha256:aa", "sha256:bb", "sha256:ff"]) == 4
    assert numbers_of(["sha256:ff", "1"], ["sha256:ff", "sha256:00", "sha256:ff"]) == {0, 1, 2}  # two equal states


def test_states_that_are_known_by_hash_are_found_among_the_suites() -> None:
    (task,) = tasks("a")
    policy = Trained({"a": ["sha256:1", "sha256:3"]})
    five = suite(5, *(f"sha256:{n}" for n in range(5)))
    assert first_start(policy, five, [task], 1) == 4
    assert "2 of 3 trials start from initial states that the policy was trained on (1, 3)" in str(
        overlap(policy, five, trials(task, 1, 2, 3))
    )
    assert untold(policy, five, [task]) is None
    every = Trained({"a": [f"sha256:{n}" for n in range(5)]})
    with pytest.raises(UsageError, match=r"up to 4; 0 are left, 1 are asked for. Pass --first-init 0 to start"):
        first_start(every, five, [task], 1)


def test_liberos_states_are_hashed_as_ingest_does(monkeypatch: pytest.MonkeyPatch) -> None:
    states = np.arange(12.0).reshape(4, 3)
    monkeypatch.setattr(suites, "init_states", lambda task: states)
    task = suites.Task("libero_object", 0, "a", "do it", Path(), Path())
    policy = Trained({"a": [init_state_hash(states[2].astype(np.float32))]})  # numbers that float32 has
    assert first_start(policy, LiberoSuite("libero_object"), [task], 1) == 3


def test_what_cannot_be_known_is_said() -> None:
    a, b = tasks("a", "b")
    two = suite(2, "sha256:0", "sha256:1")
    assert untold(Trained({"a": ["0"], "b": ["1"]}), two, [a, b]) is None
    assert untold(Trained({"a": ["0"]}), two, [a, b]) == (
        "of 1 of 2 tasks the store does not say from where its demonstrations start: whether trials start from "
        "trained ones is not known"
    )
    assert "2 initial states of demonstrations of 1 of 2 tasks are known by a hash that none of" in str(
        untold(Trained({"a": ["sha256:7", "sha256:8", "sha256:1"], "b": ["1"]}), two, [a, b])
    )
    assert untold(Trained(trained={}), two, [a, b]) is None  # it was trained on other tasks
    assert untold(object(), two, [a, b]) is None
    assert untold(Trained({"a": ["sha256:7"]}), suite(None), [a, b]) is None  # endless: layouts of its own
