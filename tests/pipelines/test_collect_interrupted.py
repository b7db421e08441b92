"""Collections that end early, at any point: the same command goes on, and the files are those of one that did not."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.collect import libero_parts
from stores.errors import StateVLAError
from tests.pipelines.test_collect_libero import FakeSimulator, World, run, world

__all__ = ["world"]  # a fixture


def contents(folder: Path) -> list[bytes]:
    return [(folder / f"task_{i}_demo.hdf5").read_bytes() for i in (0, 1)]


def files_of(world: World, folder: Path) -> list[bytes]:
    """Of a collection that nothing interrupts; what the world has counted is forgotten."""
    run(folder)
    world.drawings.clear()
    world.seeds.clear()
    return contents(folder)


def cut(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_collection_goes_on_and_gives_the_same_bytes(world: World, tmp_path: Path, workers: int) -> None:
    whole = files_of(world, tmp_path / "whole")
    world.stop_after = 4
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", workers=workers)
    world.stop_after = None
    run(tmp_path / "cut", workers=workers)
    assert contents(tmp_path / "cut") == whole
    assert len(world.seeds) <= 6 + workers  # only what was under way was done again
    world.seeds.clear()
    run(tmp_path / "cut", workers=workers)
    assert world.seeds == []
    assert not list((tmp_path / "cut").glob("*.parts"))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_collection_interrupted_while_drawing_draws_the_rest(world: World, tmp_path: Path, workers: int) -> None:
    whole = files_of(world, tmp_path / "whole")
    world.stop_drawing = 4
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", workers=workers)
    world.stop_drawing = None
    run(tmp_path / "cut", workers=workers)
    assert contents(tmp_path / "cut") == whole
    assert len(world.drawings) <= 6 + workers
    assert len(world.seeds) == 6  # nothing was recorded twice


@pytest.mark.parametrize("workers", [1, 2])
def test_one_that_ends_between_the_last_picture_and_the_file_still_writes_it(
    world: World, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = files_of(world, tmp_path / "whole")

    with monkeypatch.context() as patched:
        patched.setattr(libero_parts, "write_demos", cut)
        for _ in range(2):  # now for one of the tasks, now for the other
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / "cut", workers=workers)
    run(tmp_path / "cut", workers=workers)
    assert contents(tmp_path / "cut") == whole
    assert len(world.drawings) <= 6 + 2 * workers
    assert not list((tmp_path / "cut").glob(".*.parts"))


def test_one_simulator_is_enough_for_a_file_that_only_wants_writing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(libero_parts, "write_demos", cut)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, tasks=[0])
    begin, begun = FakeSimulator.__init__, list[str]()

    def counted(self: FakeSimulator, task: Any, **options: Any) -> None:
        begun.append(task.name)
        begin(self, task, **options)

    monkeypatch.setattr(FakeSimulator, "__init__", counted)
    run(tmp_path, tasks=[0], workers=4)
    assert begun == ["task_0"]
    assert (tmp_path / "task_0_demo.hdf5").is_file()


def test_a_part_that_was_damaged_since_is_named(world: World, tmp_path: Path) -> None:
    world.stop_drawing = 1
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tasks=[0])
    world.stop_drawing = None
    part = tmp_path / ".task_0.parts/00001.npz"
    part.write_bytes(part.read_bytes()[:-40])
    with pytest.raises(StateVLAError, match=rf"{part}: part of an interrupted collection cannot be .*; remove it$"):
        run(tmp_path, tasks=[0])
    part.unlink()
    assert run(tmp_path, tasks=[0]).episodes == 3
