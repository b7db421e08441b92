"""What is written together is whole at once, and durable after `sync`, not before."""

import os
import sys
from pathlib import Path

import pytest

from stores.disk import durable, sync
from stores.disk.sync import Together
from tests.stores.faults import every_crash, operations, read_tree

pytestmark = pytest.mark.crash


def work(disk: Path) -> None:
    group = Together()
    with group:
        durable.write_bytes(disk / "a/one", b"1")
        durable.write_bytes(disk / "two", b"2")
        with durable.staging_dir(disk / "folder") as folder:
            durable.write_bytes(folder / "in/three", b"3")
    group.sync()


@pytest.mark.parametrize("before", ["nothing", "an older folder"])
def test_after_sync_everything_survives_a_power_loss(tmp_path: Path, before: str) -> None:
    def prepare(disk: Path) -> None:
        if before != "nothing":
            durable.write_bytes(disk / "folder/old", b"old")

    lost = 0
    for crash, disk in every_crash(tmp_path, prepare, work, ["power", "power_data"]):
        whole = read_tree(disk) == read_tree(tmp_path / "undisturbed")
        if crash.at == crash.total:
            assert whole, crash
        lost += not whole
    assert lost > 0


def test_nothing_is_synced_before_and_names_come_after_contents(tmp_path: Path) -> None:
    kinds = [step.split()[0] for step in operations(work, tmp_path)]
    first = kinds.index("fsync")
    assert not any(kind.startswith("fsync") for kind in kinds[:first])
    assert set(kinds[first:]) == {"fsync", "fsync_dir"}
    assert kinds[first:] == sorted(kinds[first:])


def test_outside_a_group_everything_is_durable_at_once(tmp_path: Path) -> None:
    group = Together()
    with group:
        pass
    kinds = [step.split()[0] for step in operations(lambda disk: durable.write_bytes(disk / "a", b"1"), tmp_path)]
    assert kinds == ["create", "write", "fsync", "rename", "fsync_dir"]


def test_the_disk_begins_with_a_large_file_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    monkeypatch.setattr(durable, "WRITE_AHEAD", 100)
    monkeypatch.setattr(sync, "begin_writing", lambda descriptor: begun.append(os.fstat(descriptor).st_size))
    with Together(), durable.atomic(tmp_path / "file") as writer:
        for _ in range(7):
            writer.write(bytes(40))
    assert begun == [120, 240]


@pytest.mark.skipif(sys.platform != "linux", reason="sync_file_range is Linux's")
def test_beginning_is_taken_by_the_system_and_is_no_fsync(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb", buffering=0) as handle:
        handle.write(bytes(10_000))
        assert sync.begin_writing(handle.fileno())
        with sync.unsafe_without_fsync():
            assert not sync.begin_writing(handle.fileno())
    assert not sync.begin_writing(-1)  # no file: nothing is done, and nothing raised
