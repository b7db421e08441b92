"""Files that stay open between reads: which file is read, how many stay open, what is done about stale ones."""

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from stores.cloud.storage import LocalStorage
from stores.disk.handles import Handles
from stores.errors import StoreCorrupt, StoreMissing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        (tmp_path / f"file{number}").write_bytes(bytes([number]) * 4096)
    return tmp_path


def first_byte(descriptor: int) -> int:
    return os.pread(descriptor, 1, 0)[0]


def opened_below(folder: Path) -> int:
    names = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return sum(os.path.lexists(name) and os.readlink(name).startswith(str(folder)) for name in names)


def test_a_file_is_opened_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    real = os.open

    def watched(path: str, *rest: int) -> int:
        opened.append(path)
        return real(path, *rest)

    monkeypatch.setattr(os, "open", watched)
    handles = Handles(str(folder))
    assert [handles.read("file1", first_byte) for _ in range(5)] == [1] * 5
    assert opened == [str(folder / "file1")]


def test_one_that_is_read_stays_open_when_others_take_its_place(folder: Path) -> None:
    """Its number would be another file's by then."""
    handles = Handles(str(folder), kept=1)

    def slow(descriptor: int) -> int:
        assert [handles.read(f"file{number}", first_byte) for number in (2, 3, 4)] == [2, 3, 4]
        return first_byte(descriptor)

    assert handles.read("file1", slow) == 1


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are counted where the system lists them")
def test_few_stay_open_and_none_is_left(folder: Path) -> None:
    handles = Handles(str(folder), kept=2)
    for number in (0, 1, 2, 3, 1, 4, 1, 5):
        assert handles.read(f"file{number}", first_byte) == number
        assert opened_below(folder) <= 2
    del handles
    assert opened_below(folder) == 0


def test_threads_read_what_they_ask_for(folder: Path) -> None:
    handles = Handles(str(folder), kept=2)
    wrong: list[tuple[int, int]] = []

    def work(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 6, 2000).tolist():
            if (got := handles.read(f"file{number}", first_byte)) != number:
                wrong.append((number, got))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_stale_file_is_opened_anew_once(folder: Path, number: int) -> None:
    handles = Handles(str(folder))
    assert handles.read("file1", first_byte) == 1
    calls: list[int] = []

    def stale(descriptor: int) -> int:
        calls.append(descriptor)
        if len(calls) == 1:
            (folder / "new").write_bytes(b"\x09" * 10)
            os.replace(folder / "new", folder / "file1")
            raise OSError(number, "stale")
        return first_byte(descriptor)

    assert handles.read("file1", stale) == 9
    assert len(calls) == 2

    def never(descriptor: int) -> int:
        raise OSError(number, "stale")

    with pytest.raises(OSError, match="stale"):
        handles.read("file1", never)


def test_other_errors_are_passed_on_at_once(folder: Path) -> None:
    handles, calls = Handles(str(folder)), 0

    def denied(descriptor: int) -> int:
        nonlocal calls
        calls += 1
        raise PermissionError(errno.EACCES, "no")

    with pytest.raises(PermissionError):
        handles.read("file1", denied)
    assert calls == 1


def test_what_is_no_file_is_refused_without_waiting(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "sub").mkdir()
    storage, into = LocalStorage(folder), [memoryview(bytearray(1))]
    for name in ("pipe", "sub"):
        with pytest.raises(StoreCorrupt, match=f"{name} is not an ordinary file"):
            storage.read_into(name, 0, into)
    with pytest.raises(StoreMissing):
        storage.read_into("absent", 0, into)
    # One that is cut while it is open is told.
    storage.read_into("file1", 0, into)
    os.truncate(folder / "file1", 100)
    with pytest.raises(StoreCorrupt, match="the file is shorter"):
        storage.read_into("file1", 200, into)
