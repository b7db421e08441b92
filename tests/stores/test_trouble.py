"""What the system refuses is one line with the path, the reason and what to do, from any process."""

import errno
import os
import pickle
import sys
from pathlib import Path

import pytest

import cli
from stores.disk import durable
from stores.disk.lock import LOCK_NAME, lock
from stores.disk.trouble import describe


def refusal(number: int, path: Path | None) -> OSError:
    return OSError(number, os.strerror(number), None if path is None else str(path))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, ["MB are free", "make room", "same command again"]),
        (errno.EDQUOT, ["quota", "same command again"]),
        (errno.EFBIG, ["ulimit -f"]),
        (errno.EROFS, ["read-only", "another folder"]),
        (errno.EACCES, ["no rights for user", "belongs to"]),
        (errno.EPERM, ["no rights for user"]),
        (errno.EMFILE, ["ulimit -n"]),
        (errno.EIO, ["the disk reports an error"]),
        (errno.ENOENT, ["is not there"]),
        (errno.ELOOP, ["symbolic links"]),
    ],
)
def test_each_refusal_is_one_line(tmp_path: Path, number: int, words: list[str]) -> None:
    path = tmp_path / "shards" / "000000.tar"
    line = describe(pickle.loads(pickle.dumps(refusal(number, path))))  # noqa: S301  as from a worker process
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    for word in words:
        assert word in line
    assert describe(refusal(number, None))


def test_the_file_in_the_way_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "taken"
    blocker.write_text("")
    with pytest.raises(OSError, match="") as caught:
        durable.make_dir(blocker / "store" / "shards")
    assert f"{blocker} is a file" in describe(caught.value)


def test_a_disk_without_room_for_a_lock_is_named_and_the_lock_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise refusal(errno.ENOSPC, None)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space") as caught, lock(tmp_path, "nobody"):
        pytest.fail("no lock was written")
    assert describe(caught.value).startswith(f"{tmp_path / LOCK_NAME}: no space left")
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_full_disk_names_the_file_under_its_final_name(tmp_path: Path) -> None:
    def full(operation: durable.Operation) -> None:
        if operation.kind == "write":
            raise refusal(errno.ENOSPC, None)

    durable.set_hook(full)
    try:
        with pytest.raises(OSError, match="No space") as caught:
            durable.write_bytes(tmp_path / "manifest.json", b"x")
    finally:
        durable.set_hook(None)
    assert describe(caught.value).startswith(f"{tmp_path / 'manifest.json'}: no space left to write it")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_prints_it_and_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocker = tmp_path / "taken"
    blocker.write_text("")
    command = ["statevla", "collect", "tabletop", "--episodes", "1", "--out", str(blocker / "raw")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert f"{blocker} is a file" in last
