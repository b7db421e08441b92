"""Where an evaluation starts, by the initial states that a policy was trained on."""

from dataclasses import dataclass, field

import pytest

from statevla.evaluators.start import first_start, overlap
from statevla.evaluators.trials import Trial
from statevla.sims.suites import Suite
from statevla.sims.tabletop.suite import TabletopSuite
from statevla.sims.world import Task
from stores.errors import UsageError
from stores.init_states import first_free, init_states_by_task


@dataclass
class Trained:
    init_states: dict[str, list[str]] = field(default_factory=dict)


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

    def __init__(self, states: int | None) -> None:
        self.states = states

    def available(self, task: Task) -> int | None:
        return self.states


def suite(available: int | None) -> Suite:
    return Numbered(available)


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
        overlap(policy, trials(task, 0, 1, 2))
    )
    assert overlap(policy, trials(task, 2, 3)) is None
    assert overlap(object(), trials(task, 0)) is None


def test_states_of_a_manifest_by_task() -> None:
    sources = [
        {"file": "a_demo.hdf5", "init_states": {"a": {"demo_0": "10", "demo_1": "2"}}},
        {"file": "a_demo.h5", "init_states": {"a": {"demo_0": "2", "demo_9": "sha256:ff"}}},
        {"file": "old_demo.hdf5"},
    ]
    assert init_states_by_task(sources) == {"a": ["2", "10", "sha256:ff"]}
    assert first_free(["2", "10", "sha256:ff"]) == 11
