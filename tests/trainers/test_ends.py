"""How a run ends where it hardly began: a signal before the first step, an end at the step where it stands, a tracker
or a checkpoint that is not there, a validation that does not fit.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from statevla.runs import layout
from statevla.runs.listing import list_runs
from statevla.runs.state import read_state
from statevla.trainers.outcome import NonFiniteLoss, OutOfMemory
from statevla.trainers.run import Run
from statevla.trainers.trainer import train
from stores.errors import UsageError
from tests.trainers.micro import at_step, micro_config, micro_store
from tests.trainers.together import checkpoint, lines

JEPA = "temporal_jepa"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_store(tmp_path_factory.mktemp("micro") / "store")


def interrupt(*given: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.resume
def test_a_signal_before_the_first_step_leaves_a_run_that_goes_on(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, begin = micro_config("training.max_steps=3"), Run._steps

    def signalled(self: Run, *given: Any) -> Any:
        interrupt()
        return begin(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "_steps", signalled)
        stopped = train(JEPA, config, store, tmp_path / "run")
    assert (stopped.steps, stopped.signal) == (1, signal.SIGTERM)
    train(JEPA, config, store, tmp_path / "run", resume=True)
    train(JEPA, config, store, tmp_path / "whole")
    run, whole = (read_state(checkpoint(tmp_path / name, JEPA)).files for name in ("run", "whole"))
    assert run == whole


def test_a_stopped_run_can_be_ended_where_it_stands(store: Path, tmp_path: Path) -> None:
    train(JEPA, micro_config("training.max_steps=9"), store, tmp_path, progress=at_step(4, interrupt))
    assert [row.state for row in list_runs(tmp_path)] == ["stopped"]
    ended = train(JEPA, micro_config("training.max_steps=4"), store, tmp_path, resume=True)
    assert (ended.steps, ended.began, ended.stopped) == (4, 4, False)
    assert [(row.state, row.step, row.steps) for row in list_runs(tmp_path)] == [("finished", 4, 4)]


def test_going_back_to_where_the_run_is_to_end_leaves_that_as_the_latest(store: Path, tmp_path: Path) -> None:
    """Its metrics end there, and so must the checkpoint that evaluations take."""
    train(JEPA, micro_config("training.max_steps=10", "training.save_interval=1"), store, tmp_path)
    back = checkpoint(tmp_path, JEPA, layout.epoch_name(1))
    step = read_state(back).step
    assert step < 10
    train(JEPA, micro_config(f"training.max_steps={step}"), store, tmp_path, resume=back)
    assert lines(tmp_path, JEPA, "train")[-1]["step"] == step
    latest = read_state(checkpoint(tmp_path, JEPA))
    assert (latest.step, latest.finished, latest.files) == (step, True, read_state(back).files)


def test_a_tracker_that_is_not_there_is_said_before_anything_is_written(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UsageError, match=r"pip install 'statevla\[trackio\]'"):
        train(JEPA, micro_config("training.tracker=trackio"), store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("saved", [False, True])
def test_a_loss_that_is_not_finite_promises_no_checkpoint_that_there_is_not(
    store: Path, tmp_path: Path, saved: bool
) -> None:
    if saved:
        train(JEPA, micro_config("training.max_steps=1"), store, tmp_path)
        checkpoint(tmp_path, JEPA).rename(checkpoint(tmp_path, JEPA, layout.epoch_name(1)))
    wild = micro_config("training.phase1.learning_rate=1e18", "training.max_steps=5")
    with pytest.raises(NonFiniteLoss) as caught:
        train(JEPA, wild, store, tmp_path)
    assert ("no checkpoint had been saved yet" in str(caught.value)) != saved
    assert ("holds the checkpoints saved before" in str(caught.value)) == saved


def test_a_validation_that_does_not_fit_says_what_to_lower(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Micro-batches, which make a step smaller, are no help there."""

    def full(*given: Any) -> Any:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("statevla.trainers.run.validate", full)
    with pytest.raises(OutOfMemory) as caught:
        train(JEPA, micro_config("training.max_steps=2"), store, tmp_path)
    text = str(caught.value)
    assert "in a validation, of 8 rows at a time: [enforce fail]" in text
    assert "a smaller training.batch_size or model.image_size" in text
    assert "accumulate" not in text
