"""Evaluation in LIBERO that goes on in a folder: what is run again, and what is refused. The simulators are not."""

from pathlib import Path

import numpy as np
import pytest

from statevla.evaluators.trials import LOG, load_records
from statevla.policies.controls import ReplayDemo, ReplayDemos
from statevla.policies.execution import Execution
from statevla.sims.libero.protocol import Reset
from stores.errors import StoreCorrupt, UsageError
from tests.evaluators.test_libero import NEEDED, Pushes, World, run, world

__all__ = ["world"]  # a fixture


def test_a_crash_is_an_error_and_no_failure_and_runs_again_on_resume(world: World, tmp_path: Path) -> None:
    world.crash_at = {("task_0", 1): 1}
    first = run(Pushes(), tmp_path)
    assert (first.successes, first.trials, first.errors) == (5, 5, 1)
    assert "signal 11" in next(r.message for r in first.records if r.outcome == "error")
    world.requests.clear()
    second = run(Pushes(), tmp_path)
    assert (second.successes, second.trials, second.errors) == (6, 6, 0)
    assert [int(r.state[0]) for r in world.requests if isinstance(r, Reset)] == [1]


def test_only_missing_trials_run(world: World, tmp_path: Path) -> None:
    run(Pushes(), tmp_path, tasks=[0], num_trials=2)
    world.requests.clear()
    results = run(Pushes(), tmp_path, num_trials=3)
    assert results.trials == 6
    assert sum(isinstance(r, Reset) for r in world.requests) == 4


def test_a_torn_line_is_no_trial_and_a_broken_one_is_an_error(world: World, tmp_path: Path) -> None:
    run(Pushes(), tmp_path, tasks=[0], num_trials=2)
    log = tmp_path / LOG
    whole = log.read_text()
    log.write_text(whole[:-20])
    assert len(load_records(tmp_path)) == 1
    assert run(Pushes(), tmp_path, tasks=[0], num_trials=2).trials == 2
    log.write_text("nonsense\n" + whole)
    with pytest.raises(StoreCorrupt, match="line 1"):
        load_records(tmp_path)


@pytest.mark.parametrize("chosen", [[0], [1], None])
def test_an_evaluation_of_tasks_numbered_otherwise_is_not_gone_on_with(
    world: World, tmp_path: Path, chosen: list[int] | None
) -> None:
    """As those of LIBERO-PRO's ``*_with_*`` were once: `--tasks 0` was another task, and its noise another's."""
    run(Pushes(), tmp_path, tasks=[0], num_trials=1)
    log = tmp_path / LOG
    log.write_text(log.read_text().replace('"task": "task_0"', '"task": "task_1"'))
    before = log.read_text()
    with pytest.raises(UsageError, match=r"trials of task 0 as 'task_1'.* --out, or remove"):
        run(Pushes(), tmp_path, tasks=chosen, num_trials=2)
    assert log.read_text() == before


def test_another_evaluation_does_not_resume_here(world: World, tmp_path: Path) -> None:
    run(Pushes(), tmp_path, execution=Execution(2))
    with pytest.raises(UsageError, match="replan = 2, this one has 3"):
        run(Pushes(), tmp_path, execution=Execution(3))


def test_a_policy_that_was_trained_on_is_another_policy(world: World, tmp_path: Path) -> None:
    run(Pushes(), tmp_path)
    with pytest.raises(UsageError, match=r"policy \(weights.*\) = aaaaaaaaaaaa…, this one has bbbbbbbbbbbb…"):
        run(Pushes(identity="b" * 64), tmp_path)
    with pytest.raises(UsageError, match="seed = 0, this one has 1"):
        run(Pushes(), tmp_path, seed=1)
    with pytest.raises(
        UsageError,
        match=r"ensemble = 0.01, .* latency_steps = 0, this one has 1; .* vote = False, this one has True",
    ):
        run(Pushes(), tmp_path, execution=Execution(vote=True, latency_steps=1))
    again = Pushes()
    assert run(again, tmp_path).trials == 6
    assert again.seen == []


def test_replayed_demonstrations_are_known_by_what_they_hold(world: World, tmp_path: Path) -> None:
    demo = ReplayDemo("a file", np.array([7.0, 0, 0]), np.full((NEEDED, 7), 0.5))
    moved = ReplayDemo("the same, elsewhere", demo.state.copy(), demo.actions.copy())
    other = ReplayDemo("a file", demo.state, demo.actions * 0.9)
    run(ReplayDemos({"task_0": (demo,)}), tmp_path)
    world.requests.clear()
    assert run(ReplayDemos({"task_0": (moved,)}), tmp_path).successes == 1
    assert world.requests == []
    with pytest.raises(UsageError, match="policy"):
        run(ReplayDemos({"task_0": (other,)}), tmp_path)
