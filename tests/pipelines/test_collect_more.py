"""More demonstrations in a folder that has some, and other ones in their place."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from pipelines.collect import libero as module
from pipelines.collect import libero_parts
from pipelines.collect.libero_trial import try_expert
from statevla.sims.libero import memory
from stores.errors import StateVLAError, UsageError
from tests.pipelines.test_collect_interrupted import cut
from tests.pipelines.test_collect_libero import World, run, world
from tests.stores.faults import read_tree

__all__ = ["world"]  # a fixture


def contents(folder: Path) -> dict[str, Any]:
    """All that a task's file holds, by its name in there."""
    found: dict[str, Any] = {}
    with h5py.File(folder / "task_0_demo.hdf5") as file:

        def note(name: str, item: Any) -> None:
            found[name] = dict(sorted(item.attrs.items()))
            if isinstance(item, h5py.Dataset):
                found[name + "[]"] = (item.dtype, item[()].tobytes())

        file.visititems(note)
    return {name: str(held) if isinstance(held, dict) else held for name, held in found.items()}


@pytest.mark.parametrize("workers", [1, 3])
def test_more_episodes_go_on_with_a_file_as_if_all_had_been_asked_for_at_once(
    world: World, tmp_path: Path, workers: int
) -> None:
    world.fail = {1}  # an attempt that is passed over
    options: dict[str, Any] = {"tasks": [0], "noise": 0.3, "noise_share": 0.5}
    run(tmp_path / "once", episodes=6, **options)
    run(tmp_path / "twice", episodes=2, workers=workers, **options)
    first = contents(tmp_path / "twice")
    world.seeds.clear()
    world.drawings.clear()
    summary = run(tmp_path / "twice", episodes=6, workers=workers, **options)
    assert contents(tmp_path / "twice") == contents(tmp_path / "once") != first
    assert (summary.episodes, len(world.drawings)) == (6, 4)
    assert [seed[2:] for seed in world.seeds] == [(3, 0), (4, 0), (0, 1), (1, 1), (2, 1)]
    assert not list((tmp_path / "twice").glob(".*.parts"))


def test_parts_of_fewer_episodes_are_gone_on_with(world: World, tmp_path: Path) -> None:
    run(tmp_path / "once", tasks=[0], episodes=5)
    world.seeds.clear()
    world.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", tasks=[0], episodes=3)
    world.stop_after = None
    run(tmp_path / "cut", tasks=[0], episodes=5)
    assert contents(tmp_path / "cut") == contents(tmp_path / "once")
    assert len(world.seeds) == 5


def test_parts_that_outlived_their_file_are_not_taken_twice(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(libero_parts.durable, "remove", cut)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", tasks=[0], episodes=2)
    run(tmp_path / "cut", tasks=[0], episodes=4)
    run(tmp_path / "once", tasks=[0], episodes=4)
    assert contents(tmp_path / "cut") == contents(tmp_path / "once")


@pytest.mark.parametrize("replace", [False, True])
def test_what_is_there_is_no_beginning(world: World, tmp_path: Path, replace: bool) -> None:
    run(tmp_path, tasks=[0], episodes=3)
    file = tmp_path / "task_0_demo.hdf5"
    for options in ({"episodes": 2}, {"episodes": 4, "seed": 1}):
        if not replace:
            with pytest.raises(UsageError, match=r"task_0_demo\.hdf5 was collected with .*--replace"):
                run(tmp_path, tasks=[0], **options)
            continue
        assert run(tmp_path, tasks=[0], replace=True, **options).episodes == options["episodes"]
        with h5py.File(file) as now:
            told = json.loads(now["data"].attrs["collected_with"])
            assert told | options == told
            assert len(now["data"]) == options["episodes"]


def test_a_file_whose_attempts_are_not_numbered_is_no_beginning(world: World, tmp_path: Path) -> None:
    run(tmp_path, tasks=[0], episodes=2)
    with h5py.File(tmp_path / "task_0_demo.hdf5", "r+") as file:
        assert np.array(file["data/demo_1"].attrs["attempt"]) == 1
        del file["data/demo_1"].attrs["attempt"]
    with pytest.raises(UsageError, match="was collected with"):
        run(tmp_path, tasks=[0], episodes=4)
    world.seeds.clear()
    assert run(tmp_path, tasks=[0], episodes=2).episodes == 2  # it is whole all the same
    assert world.seeds == []


def test_more_workers_than_memory_holds_are_refused_and_nothing_is_begun(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_gib", lambda: 6.0)
    with pytest.raises(UsageError, match=r"--workers 3: .* 6\.0 GiB are free\. --workers 2 fits"):
        run(tmp_path, workers=3)
    assert list(tmp_path.iterdir()) == []
    assert run(tmp_path, workers=3, episodes=1).episodes == 2  # two tasks of one attempt keep no third worker busy
    assert run(tmp_path, workers=3, episodes=1).episodes == 2  # nor does what is done
    monkeypatch.setattr(memory, "free_gib", lambda: 3.5)
    with pytest.raises(UsageError, match=r"--workers 2: .* 3\.5 GiB are free\. --workers 1 fits"):
        try_expert("libero_object", episodes=3, workers=2)


def test_parts_of_other_settings_are_refused_and_replaced_only_by_what_there_is_room_for(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.stop_drawing = 2  # of them there are pictures too
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    world.stop_drawing = None
    before = read_tree(tmp_path)
    with pytest.raises(UsageError, match=r"part of a collection with seed 0 \(now 7\)\. .*--replace"):
        run(tmp_path, seed=7)
    with monkeypatch.context() as full:
        full.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
        with pytest.raises(StateVLAError, match="Make room"):
            run(tmp_path, seed=7, replace=True)
    assert read_tree(tmp_path) == before
    world.stop_after = len(world.seeds) + 1  # and gone on with, without --replace: nothing of the other is there
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, seed=7, replace=True, first_init=1)
    world.stop_after = None
    run(tmp_path, seed=7, first_init=1)
    run(tmp_path / "fresh", seed=7, first_init=1)
    assert contents(tmp_path) == contents(tmp_path / "fresh")


def test_a_file_that_this_command_did_not_make_is_refused(world: World, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "task_0_demo.hdf5", "w") as file:
        file.create_group("data/demo_0")
    with pytest.raises(UsageError, match=r"task_0_demo\.hdf5 was collected with no settings of this command"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["task_0_demo.hdf5"]
