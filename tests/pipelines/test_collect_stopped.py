"""What a collection that ends early leaves in its folder: whole files, and nothing of what was under way."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cli
from pipelines.collect.stop import TERMINATED, clean_on_terminate
from pipelines.collect.tabletop import collect_tabletop
from statevla.sims.tabletop.environment import TASKS, task_name
from stores.disk.durable import temp_name
from stores.disk.lock import lock
from stores.errors import StoreLocked
from tests.pipelines.test_collect_libero import World, run, world

__all__ = ["world"]  # a fixture


def terminate(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_what_a_killed_collection_left_is_removed_by_the_next(tmp_path: Path) -> None:
    left = temp_name(tmp_path / f"{task_name(0)}_demo.hdf5")
    mine = tmp_path / ".tmp-mine.hdf5"
    for path in (left, mine):
        path.write_bytes(b"\x89HDF\r\n\x1a\n")
    (file,) = collect_tabletop(tmp_path, 1, image_size=16).files
    assert sorted(tmp_path.iterdir()) == sorted([file, mine])


def test_a_second_collection_into_the_folder_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    with lock(tmp_path, "collection of tabletop"):
        theirs = temp_name(tmp_path / f"{task_name(0)}_demo.hdf5")
        theirs.write_bytes(b"half")
        with pytest.raises(StoreLocked, match="being written by collection of tabletop"):
            collect_tabletop(tmp_path, 1, image_size=16)
        assert theirs.read_bytes() == b"half"


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_leaves_whole_files_only(tmp_path: Path, workers: int) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, clean_on_terminate():
        collect_tabletop(tmp_path / "cut", 3 * len(TASKS), image_size=16, workers=workers, progress=terminate)
    assert ended.value.code == TERMINATED == 143
    assert signal.getsignal(signal.SIGTERM) == before
    there = {path.name for path in (tmp_path / "cut").iterdir()}
    assert there < {f"{task_name(task)}_demo.hdf5" for task in range(len(TASKS))}


def test_sigterm_ends_a_collection_in_libero_as_ctrl_c_does(world: World, tmp_path: Path) -> None:
    with pytest.raises(SystemExit), clean_on_terminate():
        run(tmp_path, progress=terminate)
    assert not (tmp_path / ".lock").exists()


def test_the_command_cleans_up_on_sigterm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.collect.tabletop.collect_task", terminate)
    done = CliRunner().invoke(cli.app, ["collect", "tabletop", "--episodes", "1", "--out", str(tmp_path / "raw")])
    assert done.exit_code == TERMINATED
    assert list((tmp_path / "raw").iterdir()) == []
