"""Swap the names of two folders in one atomic step, where the system can (Linux's ``renameat2``)."""

import ctypes
import errno
import os
import sys
from pathlib import Path
from typing import Final

from stores.disk.seam import announce

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2  # renameat2(2)


def exchange(a: Path, b: Path) -> bool:
    """Swap two names atomically; False where the kernel or file system cannot."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    announce("exchange", a, b)
    if renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(a), None, str(b))
