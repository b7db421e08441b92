"""What the operating system refused, in one line: the path, what was the matter, what is free, and what to do."""

import errno
import getpass
import os
import re
import resource
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

_TEMP_NAME: Final = re.compile(r"\.tmp-[0-9a-f]{12}-")
AGAIN: Final = "what is finished stays; then run the same command again"


def describe(error: OSError) -> str:
    """One line about `error` for a person, whichever process it comes from."""
    path = final_path(error)
    where = "" if path is None else f"{path}: "
    told = _TOLD.get(error.errno or 0)
    if told is not None and path is not None:
        return where + told(path)
    text = error.strerror or str(error) or type(error).__name__
    return f"{where}{text[:1].lower()}{text[1:]}".replace("\n", " ")


def final_path(error: OSError) -> Path | None:
    """The path that an error names, under the name that it was to get."""
    name = error.filename
    if not isinstance(name, str | bytes | os.PathLike):
        return None
    return Path(_TEMP_NAME.sub("", os.fsdecode(name)))


def nearest(path: Path) -> Path:
    """The first of `path` and its parents that is there."""
    return next((place for place in (path, *path.parents) if os.path.lexists(place)), Path("."))


def free_text(path: Path) -> str:
    """What is free where `path` would be."""
    try:
        usage = shutil.disk_usage(nearest(path))
    except OSError:
        return "what is free cannot be told"
    return f"{usage.free / 1e6:,.1f} MB of {usage.total / 1e6:,.1f} MB are free"


def _full(path: Path) -> str:
    return f"no space left to write it ({free_text(path)}); make room or name another folder; {AGAIN}"


def _quota(path: Path) -> str:
    return f"your disk quota does not allow writing it; remove files of yours or name another folder; {AGAIN}"


def _limit(path: Path) -> str:
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return f"larger than a file may be here (`ulimit -f`: {allowed:,} bytes, or the file system's own limit); {AGAIN}"


def _read_only(path: Path) -> str:
    return "cannot be written: its file system is read-only; name another folder, or mount it writable"


def _no_rights(path: Path) -> str:
    place = nearest(path)
    try:
        user, status = getpass.getuser(), place.stat()
        whose = f"{place} has rights {stat.filemode(status.st_mode)} and belongs to user number {status.st_uid}"
    except (OSError, KeyError):
        user, whose = str(os.getuid()), "its folder cannot be looked into"
    return f"no rights for user {user}: {whose}; change its rights or name another folder"


def _file_in_the_way(path: Path) -> str:
    place = next((place for place in (path, *path.parents) if place.exists() and not place.is_dir()), path)
    return f"a folder is needed, and {place} is a file; name another folder, or move the file away"


def _folder_in_the_way(path: Path) -> str:
    return "a file is needed, and a folder has this name; name another file, or move the folder away"


def _absent(path: Path) -> str:
    return f"is not there ({nearest(path)} is)"


def _too_many_open(path: Path) -> str:
    return f"too many files are open (`ulimit -n`: {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}); raise the limit"


def _broken_disk(path: Path) -> str:
    return f"the disk reports an error in reading or writing; look at the system's log; {AGAIN}"


_TOLD: Final[dict[int, Callable[[Path], str]]] = {
    errno.ENOSPC: _full,
    errno.EDQUOT: _quota,
    errno.EFBIG: _limit,
    errno.EROFS: _read_only,
    errno.EACCES: _no_rights,
    errno.EPERM: _no_rights,
    errno.ENOTDIR: _file_in_the_way,
    errno.EEXIST: _file_in_the_way,
    errno.EISDIR: _folder_in_the_way,
    errno.ENOENT: _absent,
    errno.EMFILE: _too_many_open,
    errno.EIO: _broken_disk,
}
