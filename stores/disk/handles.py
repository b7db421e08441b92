"""Files that stay open from read to read: the system reads ahead of a descriptor that is read on, and forgets at its
close how far it had come (a file that is not in memory is read a fifth faster, docs/log.md).
"""

import errno
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

KEPT: Final = 32
"""Files of a folder that stay open at once; a process may have 1,024."""

STALE: Final = frozenset({errno.ESTALE, errno.EIO})
"""What a network's file system says of a file that was replaced on the server, or whose server was away."""


class NotAFile(ValueError):
    """What has the name is a folder, a pipe, a device."""


class _Handle:
    """A descriptor, closed when nobody reads from it any more: a thread that does holds it."""

    __slots__ = ("number",)

    def __init__(self, path: str) -> None:
        self.number = open_file(path)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class Handles:
    """Open files of one folder by name, the ones last used; for any number of threads.

    A file that is removed or replaced meanwhile is read on as it was.
    """

    def __init__(self, root: str, kept: int = KEPT) -> None:
        self._root, self._most = root, kept
        self._kept: OrderedDict[str, _Handle] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, name: str, read: Callable[[int], int]) -> int:
        """What `read` answers to the descriptor of file `name`. Raises as `open_file`, or what `read` raises."""
        handle = self._get(name)  # held until the end: its last holder closes it
        try:
            return read(handle.number)
        except OSError as error:
            if error.errno not in STALE:
                raise
        with self._lock:
            self._kept.pop(name, None)
        handle = self._get(name)
        return read(handle.number)

    def _get(self, name: str) -> _Handle:
        with self._lock:
            if (found := self._kept.get(name)) is not None:
                self._kept.move_to_end(name)
                return found
        opened = _Handle(os.path.join(self._root, name))
        with self._lock:
            found = self._kept.setdefault(name, opened)
            forgotten = self._kept.popitem(last=False) if len(self._kept) > self._most else None
        del forgotten  # outside the lock: a close may take a while
        return found


def open_file(path: Path | str) -> int:
    """A descriptor for reading. Raises OSError, or NotAFile: reading from a pipe would wait for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotAFile(str(path))
    return descriptor
