"""A policy drives, the expert takes over: what is recorded, how it is executed, and what is refused."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from cli import app
from pipelines.collect.libero_driver import LEAST
from statevla.observation import ObsSpec, libero_spec
from statevla.policies.execution import Execution
from statevla.systems.acting import Acted
from stores.errors import ObsSpecMismatch, StoreMissing, UsageError
from tests.pipelines.test_collect_libero import INIT_STATES, STEPS_TO_SUCCESS, World, run, world  # noqa: F401


@dataclass
class Driver:
    """Drives in chunks of four; succeeds by itself from some initial states."""

    identity: str = "d" * 64
    obs_spec: ObsSpec = field(default_factory=lambda: libero_spec(4))
    chunk: int = 4
    refuses: str = ""
    draws: list[Any] = field(default_factory=list)

    def act(self, observations: Any, draws: Any = None) -> Acted:
        self.draws += draws
        return Acted(torch.full((1, 4, 7), 0.25), None)

    def vector(self, instruction: str) -> int:
        if instruction == self.refuses:
            raise StoreMissing(f"{instruction!r} was not trained on")
        return 0


def test_a_policy_drives_and_what_the_expert_does_then_is_recorded(world: World, tmp_path: Path) -> None:  # noqa: F811
    driver = Driver()
    summary = run(tmp_path, tasks=[0], from_policy=driver, image_size=4)
    assert summary.episodes == 3
    with h5py.File(tmp_path / "task_0_demo.hdf5") as file:
        told = [str(file[f"data/demo_{i}"].attrs["made_by"]) for i in range(3)]
        steps = [int(file[f"data/demo_{i}"].attrs["driven_steps"]) for i in range(3)]
        assert json.loads(file["data"].attrs["collected_with"])["from_policy"] == "d" * 64
    executed = " (replan 1, ensemble 0.01)"  # as LIBERO's evaluations have it
    assert set(told) == {f"scripted expert, taking over from policy dddddddddddd{executed}"}
    assert world.driven == steps
    assert min(steps) >= LEAST
    assert len(set(steps)) == 3
    assert len(set(driver.draws)) == len(driver.draws)
    assert len({taken for taken in world.taken if taken is not None}) == 3
    before = (tmp_path / "task_0_demo.hdf5").read_bytes()
    run(tmp_path / "again", tasks=[0], from_policy=Driver(), image_size=4, workers=2)
    assert (tmp_path / "again" / "task_0_demo.hdf5").read_bytes() == before


def test_how_a_driving_policys_chunks_are_executed_can_be_said(world: World, tmp_path: Path) -> None:  # noqa: F811
    few, many = Driver(), Driver()
    run(tmp_path / "few", tasks=[0], from_policy=few, image_size=4, execution=Execution(4))
    run(tmp_path / "many", tasks=[0], from_policy=many, image_size=4)
    assert 3 * len(few.draws) < len(many.draws) == sum(world.driven[len(world.driven) // 2 :])
    with h5py.File(tmp_path / "few" / "task_0_demo.hdf5") as file:
        assert str(file["data/demo_0"].attrs["made_by"]).endswith("(replan 4)")
        assert json.loads(file["data"].attrs["collected_with"])["execution"]["replan"] == 4
    with pytest.raises(UsageError, match="was collected with"):
        run(tmp_path / "few", tasks=[0], from_policy=Driver(), image_size=4)


def test_the_command_passes_on_how_chunks_are_executed(
    world: World,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("statevla.systems.find.find_policy", lambda run: run)
    monkeypatch.setattr("statevla.policies.policy.Policy.load", lambda folder: Driver(obs_spec=libero_spec(16)))
    command = "collect libero_object --tasks 0 --episodes 1 --image-size 16 --workers 1 --from-policy RUN --out"
    for name, more, told in (
        ("four", ("--replan", "4"), "(replan 4)"),
        ("two", ("--replan", "2", "--ensemble", "0.5"), "(replan 2, ensemble 0.5)"),
        ("usual", (), "(replan 1, ensemble 0.01)"),
    ):
        app([*command.split(), str(tmp_path / name), *more], standalone_mode=False)
        with h5py.File(tmp_path / name / "task_0_demo.hdf5") as file:
            assert str(file["data/demo_0"].attrs["made_by"]).endswith(told)


def test_a_driving_policy_sees_what_it_was_trained_on(world: World, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(ObsSpecMismatch, match="orientation"):
        run(tmp_path, from_policy=Driver(obs_spec=replace(libero_spec(4), orientation="opengl")), image_size=4)
    assert not world.seeds


def test_a_policy_that_succeeds_by_itself_teaches_nothing(world: World, tmp_path: Path) -> None:  # noqa: F811
    world.solved = {1}
    summary = run(tmp_path, tasks=[0], from_policy=Driver(), image_size=4)
    assert (summary.episodes, summary.failures) == (3, 1)
    world.solved = set(range(INIT_STATES))
    with pytest.raises(UsageError, match="needs no demonstrations"):
        run(tmp_path / "all", tasks=[0], from_policy=Driver(), image_size=4, episodes=1)


def test_a_policy_that_cannot_drive_is_refused(world: World, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(UsageError, match="sees 4 pixels a side, the collection has 128"):
        run(tmp_path, from_policy=Driver())
    with pytest.raises(UsageError, match="'do 1' was not trained on"):
        run(tmp_path, from_policy=Driver(refuses="do 1"), image_size=4)
    run(tmp_path / "a", tasks=[0])
    with pytest.raises(
        UsageError,
        match=r"was collected with execution not set .*, from_policy not set \(now \w+\), image_size 128 \(now 4\)\.",
    ):
        run(tmp_path / "a", tasks=[0], from_policy=Driver(), image_size=4)
