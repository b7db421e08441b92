"""Making durable what was written: one file or folder at a time, or many together (`Together`).

An fsync waits for the disk, and most of it is one commit of the file system's journal: twenty files synced at once cost
little more than one. So who writes many files that mean nothing before a last one (an ingest before its manifest)
writes them inside `Together` and syncs once.
"""

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Final

from stores.disk.seam import announce

NO_FSYNC: Final = "STATEVLA_UNSAFE_NO_FSYNC"
THREADS: Final = 16
_WRITE: Final = 2
"""Of ``sync_file_range``: begin to write what is not being written, and wait for nothing."""
_sync_file_range: Final = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


@contextlib.contextmanager
def unsafe_without_fsync() -> Iterator[None]:
    """Skip fsync inside, also in processes started inside. For the ingest benchmark only."""
    before = os.environ.get(NO_FSYNC)
    os.environ[NO_FSYNC] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[NO_FSYNC]
        else:
            os.environ[NO_FSYNC] = before


def switched_off() -> bool:
    """Whether fsync is skipped."""
    return os.environ.get(NO_FSYNC) == "1"


def kernel() -> str:
    """Names the running kernel. Processes of one kernel, containers too, share what is written and not yet on the disk:
    the fsync of one covers what another wrote.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        return platform.node()


def sync_handle(descriptor: int) -> None:
    """fsync of an open file; announce it before."""
    if not switched_off():
        os.fsync(descriptor)


def begin_writing(descriptor: int) -> bool:
    """Have the system begin to write what it holds of an open file, and not wait for its end; whether it does. A later
    fsync then waits for less. Nothing is durable by this, and an error of the disk is left for that fsync to tell.
    """
    if switched_off() or _sync_file_range is None:
        return False
    return bool(_sync_file_range(descriptor, 0, 0, _WRITE) == 0)


def sync_all(paths: Iterable[Path], kind: str) -> None:
    """fsync files (`kind` "fsync") or folders ("fsync_dir"), in no particular order; returns when all are durable."""
    paths = list(paths)
    for path in paths:
        announce(kind, path)
    if switched_off():
        return
    if len(paths) == 1:
        _sync(paths[0])
    elif paths:
        with ThreadPoolExecutor(min(THREADS, len(paths))) as pool:
            list(pool.map(_sync, paths))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Together:
    """Files that become durable together, at `sync`.

    What `durable` writes inside ``with group:`` is whole under its name at once, but before `sync` a power loss
    may leave it empty, old or absent. So it is for what nothing relies on until then: files that no manifest names yet,
    or whose content is checked before it is used.
    """

    def __init__(self) -> None:
        self._files: dict[Path, None] = {}
        self._folders: dict[Path, None] = {}

    def __enter__(self) -> "Together":
        self._outer = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.reset(self._outer)

    def add_file(self, path: Path) -> None:
        """`path` was written and is not yet durable, nor is its name."""
        self._files[path] = None
        self._folders[path.parent] = None

    def add_folder(self, path: Path) -> None:
        """Names in folder `path` changed."""
        self._folders[path] = None

    def moved(self, temp: Path, final: Path) -> None:
        """Folder `temp` and what is in it now have the name `final`."""
        for known in (self._files, self._folders):
            for path in [path for path in known if path.is_relative_to(temp)]:
                del known[path]
                known[final / path.relative_to(temp)] = None
        self._folders[final.parent] = None

    def sync(self) -> None:
        """Make durable what was written so far: contents, then names."""
        files, folders = list(self._files), sorted(self._folders, reverse=True)
        sync_all(files, "fsync")
        sync_all(folders, "fsync_dir")
        self._files.clear()
        self._folders.clear()


_current: ContextVar[Together | None] = ContextVar("together", default=None)


def current() -> Together | None:
    """The group that is written in here, if any."""
    return _current.get()
