"""What is replayed of a demonstration: what was executed, even where something else is to be learned."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.collect.writer import Demo, FileHeader, write_demos
from pipelines.replay import replay_of_files
from statevla.sims.libero import suites
from stores.errors import UsageError

STEPS = 3


def demo(executed: bool) -> Demo:
    pictures = np.zeros((STEPS + 1, 2, 2, 3), np.uint8)
    numbers = {"joints": 7, "fingers": 2, "ee_pos": 3, "ee_axis_angle": 3}
    return Demo(
        actions=np.ones((STEPS, 7)),
        states=np.arange(STEPS * 4.0).reshape(STEPS, 4),
        agentview=pictures,
        eye_in_hand=pictures,
        model_file="<mujoco/>",
        executed=np.full((STEPS, 7), 0.5) if executed else None,
        **{name: np.zeros((STEPS + 1, width)) for name, width in numbers.items()},
    )


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    task = suites.Task("libero_object", 0, "soup", "pick the soup", Path("x.bddl"), Path("x.init"))
    monkeypatch.setattr(suites, "select", lambda suite, tasks: [task])
    header = FileHeader("pick the soup", "Env", {}, "tag", "problem")
    write_demos(tmp_path / "soup_demo.hdf5", header, [demo(executed=False), demo(executed=True)])
    return tmp_path


def test_what_was_executed_is_replayed(source: Path) -> None:
    plain, noisy = replay_of_files(source, "libero_object").demos["soup"]
    assert (plain.actions == 1).all()
    assert (noisy.actions == 0.5).all()
    assert noisy.state.tolist() == [0, 1, 2, 3]


def test_no_demonstration_of_the_tasks_is_said(tmp_path: Path, source: Path) -> None:
    with pytest.raises(UsageError, match="no libero_object demonstrations"):
        replay_of_files(tmp_path / "nowhere", "libero_object")
