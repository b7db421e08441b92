"""Atomic files and folders, locks and logs, crashed at every operation."""

import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from stores.disk import durable
from stores.disk.lock import LOCK_NAME, clean, lock
from stores.disk.seam import announce
from stores.errors import StoreLocked, UsageError
from tests.stores.faults import FAULTS, every_crash, operations, read_tree

pytestmark = pytest.mark.crash

HOLDER = """
import sys
from stores.disk.lock import lock
with lock(sys.argv[1], "ingest of libero_object"):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault model decides what is durable; the test machine's own disk need not be waited for."""
    monkeypatch.setenv(durable.NO_FSYNC, "1")


def _locked(work):
    def run(disk: Path) -> None:
        with lock(disk / "store", "test"):
            work(disk / "store")

    return run


def _write_new(store: Path) -> None:
    durable.write_bytes(store / "deep/er/file", b"new content" * 100)


def _write_old(disk: Path) -> None:
    (disk / "store/deep/er").mkdir(parents=True)
    (disk / "store/deep/er/file").write_bytes(b"old")


def test_a_file_is_old_or_new_after_any_crash_and_new_after_a_rerun(tmp_path: Path) -> None:
    done = Counter()
    for crash, disk in every_crash(tmp_path, _write_old, _locked(_write_new)):
        content = (disk / "store/deep/er/file").read_bytes()
        assert content in (b"old", b"new content" * 100), crash
        if crash.operation == "end":
            assert content != b"old", crash
        _locked(_write_new)(disk)
        assert read_tree(disk) == read_tree(tmp_path / "undisturbed"), crash
        done[crash.fault] += 1
    assert set(done) == set(FAULTS)
    assert min(done.values()) >= 1


def test_a_file_in_new_folders_survives_a_power_loss_right_after_the_write(tmp_path: Path) -> None:
    for crash, disk in every_crash(tmp_path, lambda disk: None, _locked(_write_new)):
        if crash.operation == "end":
            assert (disk / "store/deep/er/file").read_bytes() == b"new content" * 100, crash
        _locked(_write_new)(disk)
        assert read_tree(disk) == read_tree(tmp_path / "undisturbed"), crash


def _commit_folder(store: Path) -> None:
    with durable.staging_dir(store / "checkpoint") as staging:
        (staging / "inner").mkdir()
        (staging / "inner/weights").write_bytes(b"new weights")
        (staging / "state").write_bytes(b"new state")


def _old_folder(disk: Path) -> None:
    (disk / "store/checkpoint/inner").mkdir(parents=True)
    (disk / "store/checkpoint/inner/weights").write_bytes(b"old weights")
    (disk / "store/checkpoint/state").write_bytes(b"old state")


@pytest.mark.parametrize("prepare", [_old_folder, lambda disk: None], ids=["over an old one", "fresh"])
def test_a_folder_is_wholly_old_or_wholly_new_after_any_crash(tmp_path: Path, prepare) -> None:
    old = {"inner": None, "inner/weights": b"old weights", "state": b"old state"}
    new = {"inner": None, "inner/weights": b"new weights", "state": b"new state"}
    for crash, disk in every_crash(tmp_path, prepare, _locked(_commit_folder)):
        folder = disk / "store/checkpoint"
        if prepare is _old_folder or folder.exists():
            assert read_tree(folder) in (old, new), crash
        if crash.operation == "end":
            assert read_tree(folder) == new, crash
        _locked(_commit_folder)(disk)
        assert read_tree(disk) == read_tree(tmp_path / "undisturbed"), crash


def _commit_library_file(store: Path) -> None:
    with durable.staging_file(store / "deep/er/file") as temp:
        temp.write_bytes(b"new content" * 100)


def test_a_file_written_by_a_library_is_old_or_new_after_any_crash(tmp_path: Path) -> None:
    for crash, disk in every_crash(tmp_path, _write_old, _locked(_commit_library_file)):
        content = (disk / "store/deep/er/file").read_bytes()
        assert content in (b"old", b"new content" * 100), crash
        _locked(_commit_library_file)(disk)
        assert read_tree(disk) == read_tree(tmp_path / "undisturbed"), crash


def test_without_an_exchange_the_next_writer_restores_the_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(durable, "exchange", lambda a, b: False)
    for crash, disk in every_crash(tmp_path, _old_folder, _locked(_commit_folder)):
        with lock(disk / "store", "next writer"):
            state = (disk / "store/checkpoint/state").read_bytes()
            assert state in (b"old state", b"new state"), crash
        assert sorted(p.name for p in (disk / "store").iterdir()) == ["checkpoint"], crash


def test_the_power_model_catches_a_writer_that_forgets_to_fsync(tmp_path: Path) -> None:
    def forgetful(disk: Path) -> None:
        announce("create", disk / ".tmp-x")
        (disk / ".tmp-x").write_bytes(b"new")
        announce("rename", disk / ".tmp-x", disk / "file")
        (disk / ".tmp-x").rename(disk / "file")
        durable.fsync_dir(disk)

    contents = {
        (disk / "file").read_bytes()
        for crash, disk in every_crash(tmp_path, lambda d: None, forgetful)
        if (disk / "file").exists()
    }
    assert b"" in contents


def test_an_exception_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    durable.write_text(tmp_path / "file", "old")

    def fail_half_way() -> None:
        with durable.atomic(tmp_path / "file") as writer:
            writer.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail_half_way()
    assert read_tree(tmp_path) == {"file": b"old"}


def test_json_is_sorted_and_refuses_nan(tmp_path: Path) -> None:
    durable.write_json(tmp_path / "a.json", {"b": 1, "a": [1.5]})
    assert (tmp_path / "a.json").read_text() == '{\n "a": [\n  1.5\n ],\n "b": 1\n}\n'
    with pytest.raises(ValueError):
        durable.write_json(tmp_path / "a.json", {"a": float("nan")})
    assert (tmp_path / "a.json").read_text().startswith('{\n "a"')


def test_the_second_writer_is_refused_by_the_firsts_name_and_let_in_when_it_is_killed(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "store"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"locked\n"
        with (
            pytest.raises(StoreLocked, match=rf"ingest of libero_object \(pid {holder.pid} on "),
            lock(tmp_path / "store", "second"),
        ):
            pass
        os.kill(holder.pid, signal.SIGKILL)
    finally:
        holder.communicate()
    assert (tmp_path / "store" / LOCK_NAME).exists()
    (tmp_path / "store/shards").mkdir()
    (tmp_path / "store/shards/.tmp-0123456789ab-x.tar").write_bytes(b"half")
    with lock(tmp_path / "store", "second"):
        assert list((tmp_path / "store/shards").iterdir()) == []
    assert read_tree(tmp_path / "store") == {"shards": None}


def test_the_lock_is_refused_inside_one_process_too(tmp_path: Path) -> None:
    with lock(tmp_path, "first"), pytest.raises(StoreLocked, match="first"), lock(tmp_path, "second"):
        pass
    with lock(tmp_path, "third"):
        pass


def test_one_that_waits_says_for_whom_and_comes_next(tmp_path: Path) -> None:
    said = []
    with contextlib.ExitStack() as first:
        first.enter_context(lock(tmp_path, "first"))

        def end(message: str) -> None:
            said.append(message)
            first.close()

        with lock(tmp_path, "second", end), pytest.raises(StoreLocked, match="second"), lock(tmp_path, "third"):
            pass
    (line,) = said
    assert line.startswith(f"waits: {tmp_path} is being written by first (pid {os.getpid()} on ")
    assert read_tree(tmp_path) == {}


def test_a_lock_removed_by_hand_lets_one_more_in_and_not_a_third(tmp_path: Path) -> None:
    """Who ends removes its own lock file, not that of the writer which came after the removal."""
    with contextlib.ExitStack() as first:
        first.enter_context(lock(tmp_path, "first"))
        (tmp_path / LOCK_NAME).unlink()
        with lock(tmp_path, "second"):
            first.close()
            assert (tmp_path / LOCK_NAME).exists()
            with pytest.raises(StoreLocked, match="second"), lock(tmp_path, "third"):
                pass
    assert read_tree(tmp_path) == {}


@pytest.mark.parametrize("what", ["dangling link", "link", "pipe", "folder"])
def test_what_is_no_file_under_the_locks_name_is_one_error_and_stays(tmp_path: Path, what: str) -> None:
    root, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    root.mkdir()
    if what == "pipe":
        os.mkfifo(root / LOCK_NAME)
    elif what == "folder":
        (root / LOCK_NAME).mkdir()
    else:
        (root / LOCK_NAME).symlink_to(elsewhere)
    if what == "link":
        elsewhere.write_text("theirs")
    with pytest.raises(UsageError, match=r"store/\.lock: expected the lock of a writer"), lock(root, "first"):
        pass
    assert os.path.lexists(root / LOCK_NAME)
    assert elsewhere.exists() == (what == "link")


def test_only_what_this_code_leaves_behind_is_cleaned(tmp_path: Path) -> None:
    for name in (".tmp-notes", ".tmp-12-x", "deep/.tmp-0123456789ab"):
        durable.write_bytes(tmp_path / name, b"theirs")
    durable.write_bytes(tmp_path / "deep" / durable.temp_name(Path("x")).name, b"ours")
    for name in (".old-photos", "photos", ".old-0123456789abc", ".old-0123456789ab"):
        durable.write_bytes(tmp_path / name / "picture", b"theirs")
    before = len(read_tree(tmp_path))
    assert len(clean(tmp_path)) == 1
    assert len(read_tree(tmp_path)) == before - 1


def test_what_a_writer_below_is_writing_is_not_cleaned(tmp_path: Path) -> None:
    with lock(tmp_path / "run/checkpoints", "train"), durable.atomic(tmp_path / "run/checkpoints/deep/state") as writer:
        writer.write(b"half of it, ")
        with lock(tmp_path, "demo"):
            writer.write(b"and the rest")
    assert (tmp_path / "run/checkpoints/deep/state").read_bytes() == b"half of it, and the rest"


def test_an_absence_is_made_durable(tmp_path: Path) -> None:
    """Who removed it may have died before its folder was synced."""
    seen = operations(lambda disk: durable.remove(disk / "gone"), tmp_path)
    assert [step.split()[0] for step in seen] == ["fsync_dir"]


def test_a_line_log_drops_a_torn_line_and_goes_on(tmp_path: Path) -> None:
    with durable.LineLog(tmp_path / "logs/metrics.jsonl") as log:
        log.append('{"step": 1}')
    with (tmp_path / "logs/metrics.jsonl").open("ab") as handle:
        handle.write(b'{"step": 2, "lo')
    durable.append_line(tmp_path / "logs/metrics.jsonl", '{"step": 2}')
    assert (tmp_path / "logs/metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    with pytest.raises(ValueError, match="one line"):
        durable.append_line(tmp_path / "logs/metrics.jsonl", "a\nb")


def test_fsync_is_called_unless_switched_off(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv(durable.NO_FSYNC)
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", calls.append)
    durable.write_bytes(tmp_path / "a", b"x")
    assert len(calls) == 2  # the file and its folder
    with durable.unsafe_without_fsync():
        durable.write_bytes(tmp_path / "b", b"x")
    assert len(calls) == 2
    durable.write_bytes(tmp_path / "c", b"x")
    assert len(calls) == 4


def test_operations_are_announced_in_order(tmp_path: Path) -> None:
    seen = operations(lambda disk: durable.write_bytes(disk / "a", b"x"), tmp_path)
    assert [step.split()[0] for step in seen] == ["create", "write", "fsync", "rename", "fsync_dir"]


def test_remove_takes_files_folders_and_nothing(tmp_path: Path) -> None:
    durable.write_bytes(tmp_path / "folder/file", b"x")
    durable.write_bytes(tmp_path / "file", b"x")
    for name in ("folder", "file", "never"):
        durable.remove(tmp_path / name)
    assert read_tree(tmp_path) == {}
