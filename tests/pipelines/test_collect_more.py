"""More demonstrations in a folder that has some, and other ones in their place."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipelines.collect import libero_parts
from stores.errors import UsageError
from tests.pipelines.test_collect_interrupted import cut
from tests.pipelines.test_collect_libero import World, run, world

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
