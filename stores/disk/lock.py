"""One writer at a time: a lock that its holder's death frees, and the leftovers of dead writers, removed under it."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from stores.disk import durable
from stores.disk.seam import announce
from stores.errors import StoreLocked, UsageError

LOCK_NAME: Final = ".lock"


def clean(root: Path | str) -> list[Path]:
    """Remove what interrupted writers left anywhere below `root`; returns the paths removed. Call it under `lock`.

    Folders with a lock of their own are left to their own next writer: somebody may be writing there now.
    """
    removed: list[Path] = []
    for folder, folders, files in os.walk(Path(root)):
        if LOCK_NAME in files and Path(folder) != Path(root):
            folders.clear()
            continue
        for name in sorted(folders):
            final = durable.replaced_by(name)
            if final is not None and Path(folder, final).exists():
                durable.remove(Path(folder, name))
                removed.append(Path(folder, name))
            elif final is not None:
                durable.rename(Path(folder, name), Path(folder, final))
        for name in sorted(folders + files):
            if durable.is_temporary(name):
                durable.remove(Path(folder, name))
                removed.append(Path(folder, name))
        folders[:] = [name for name in folders if not durable.is_leftover(name)]
    return removed


@contextlib.contextmanager
def lock(root: Path | str, holder: str, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Be the only writer of `root` (created when absent); leftovers of dead writers are removed on entry.

    The lock file is removed by its holder only, and only while it is the holder's own: somebody may have removed it by
    hand, and another writer made a new one. `holder` says in words who writes, for the other's error. The kernel frees
    the lock when the holder dies.
    waiting: told once who holds it, and then the holder's end is waited for. A process that waits for itself waits for
    ever. None: raises StoreLocked naming the holder.
    """
    root = Path(root)
    durable.make_dir(root)
    path = root / LOCK_NAME
    descriptor = _take_lock(path, root, waiting)
    try:
        who = {"holder": holder, "pid": os.getpid(), "host": socket.gethostname(), "command": " ".join(sys.argv)}
        announce("truncate", path)
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, durable.json_bytes(who), 0)
        except OSError as error:
            error.filename = error.filename or str(path)  # of a descriptor's errors, the system names no path
            raise
        clean(root)
        yield
    finally:
        try:
            if _is_held(descriptor, path):
                announce("remove", path)  # before the lock is freed, so that nobody waits on a removed file unknowingly
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _take_lock(path: Path, root: Path, waiting: Callable[[str], None] | None) -> int:
    told = False
    while True:
        announce("create", path)
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            try:
                who = _holder(os.pread(descriptor, 65536, 0))
                if waiting is None:
                    raise StoreLocked(f"{root} is being written by {who}; wait until it ends, or stop it") from error
                if not told:
                    waiting(f"waits: {root} is being written by {who}")
                    told = True
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except BaseException:
                os.close(descriptor)
                raise
        except BaseException:
            os.close(descriptor)
            raise
        # A holder that ended between our open and our flock has removed the file we locked: lock the new one.
        if _is_held(descriptor, path):
            return descriptor
        os.close(descriptor)


def _open(path: Path) -> int:
    """The lock file, made where there is none. Raises UsageError where something else has its name."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            raise _no_file(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_file(path)
    return descriptor


def _no_file(path: Path) -> UsageError:
    return UsageError(f"{path}: expected the lock of a writer, a file, or nothing; it is something else: remove it")


def _is_held(descriptor: int, path: Path) -> bool:
    """Whether the file at `path` is the one that `descriptor` has open."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _holder(text: bytes) -> str:
    try:
        who = json.loads(text)
        return f"{who['holder']} (pid {who['pid']} on {who['host']}: {who['command']})"
    except (ValueError, KeyError, TypeError):
        return "another process, which has not named itself yet"
