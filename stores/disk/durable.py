"""The only door to the disk: every byte of a store, checkpoint or report is written here.

A file appears under its name complete or not at all, and stays after a power loss: content goes to a temporary name
(``.tmp-…``) in the same folder, is fsynced, renamed, and the folder fsynced. A folder is committed the same way. What a
killed writer left behind is removed by the next writer, under its lock (`stores.disk.lock`).

Every operation that changes the disk is announced *before* it happens (`stores.disk.seam`); crash tests enumerate the
operations and kill, tear or refuse each of them.

``STATEVLA_UNSAFE_NO_FSYNC=1`` (or `unsafe_without_fsync`) skips every fsync. It exists for one purpose: to measure in
the ingest benchmark what durability costs. A store written so may be lost in a power loss.
"""

import contextlib
import functools
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from stores.disk import sync
from stores.disk.exchange import exchange
from stores.disk.seam import Operation as Operation
from stores.disk.seam import announce
from stores.disk.seam import set_hook as set_hook
from stores.disk.sync import NO_FSYNC as NO_FSYNC
from stores.disk.sync import unsafe_without_fsync as unsafe_without_fsync

TEMP_PREFIX: Final = ".tmp-"
OLD_PREFIX: Final = ".old-"
WRITE_AHEAD: Final = 4 * 2**20
"""Bytes of one file after which the disk is told to begin with them."""
_TEMP: Final = re.compile(re.escape(TEMP_PREFIX) + r"[0-9a-f]{12}-.+", re.DOTALL)
_OLD: Final = re.compile(re.escape(OLD_PREFIX) + r"[0-9a-f]{12}-(.+)", re.DOTALL)


def fsync_dir(path: Path | str) -> None:
    """Make the names in folder `path` (creations, renames, removals) survive a power loss."""
    fsync_dirs([path])


def fsync_dirs(paths: Iterable[Path | str]) -> None:
    """`fsync_dir` of many folders at once; inside `Together`, at its end."""
    group = sync.current()
    if group is None:
        sync.sync_all(map(Path, paths), "fsync_dir")
    else:
        for path in paths:
            group.add_folder(Path(path))


def make_dir(path: Path | str) -> None:
    """Create folder `path` and its parents, each durably. No error when it is there."""
    path = Path(path)
    if path.is_dir():
        return
    make_dir(path.parent)
    announce("mkdir", path)
    path.mkdir(exist_ok=True)
    fsync_dir(path.parent)


def temp_name(final: Path) -> Path:
    """A fresh temporary name beside `final`, recognised by `is_leftover`."""
    return final.with_name(f"{TEMP_PREFIX}{os.urandom(6).hex()}-{final.name[:120]}")


def is_temporary(name: str) -> bool:
    """Whether `temp_name` gave this name."""
    return _TEMP.fullmatch(name) is not None


def replaced_by(name: str) -> str | None:
    """Which folder `name` was set aside for by `replace_dir`; None where it is no such name."""
    found = _OLD.fullmatch(name)
    return None if found is None else found[1]


def is_leftover(name: str) -> bool:
    """Whether only an interrupted writer leaves a file or folder of this name."""
    return replaced_by(name) is not None or is_temporary(name)


class Writer:
    """Append-only, unbuffered handle of a file that is being written; hand it large pieces."""

    def __init__(self, path: Path, handle: BinaryIO) -> None:
        self.path = path
        self.bytes = 0
        self._handle = handle
        self._begun = 0

    def write(self, data: bytes | memoryview) -> int:
        """Append all of `data`."""
        try:
            announce("write", self.path, None, self._handle, data)
            rest = memoryview(data)
            while rest:
                rest = rest[self._handle.write(rest) :]
        except OSError as error:
            error.filename = error.filename or str(self.path)  # of a handle's errors, the system names no path
            raise
        self.bytes += len(data)
        if self.bytes - self._begun >= WRITE_AHEAD:  # the disk works while the next bytes are being made
            sync.begin_writing(self._handle.fileno())
            self._begun = self.bytes
        return len(data)

    def tell(self) -> int:
        """Bytes written so far."""
        return self.bytes

    def flush(self) -> None:
        """Nothing is buffered here."""


@contextlib.contextmanager
def atomic(path: Path | str, durable_name: bool = True) -> Iterator[Writer]:
    """Write `path` whole or not at all: yields a `Writer`; on a clean exit the file is durable under its name.

    Parents are created. On an exception the temporary is removed and `path` is what it was. durable_name: False leaves
    it to the caller to make the name durable (`fsync_dir`); the content is. Inside `sync.Together`: both, at its sync.
    """
    path = Path(path)
    group = sync.current()
    make_dir(path.parent)
    temp = temp_name(path)
    try:
        announce("create", temp)
        with temp.open("xb", buffering=0) as handle:
            writer = Writer(temp, handle)
            yield writer
            if group is None:
                announce("fsync", temp)
                sync.sync_handle(handle.fileno())
        announce("rename", temp, path)
        temp.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)
        raise
    if group is not None:
        group.add_file(path)
    elif durable_name:
        fsync_dir(path.parent)


def write_bytes(path: Path | str, data: bytes | memoryview) -> None:
    """Write `data` as the whole content of `path`, atomically and durably."""
    with atomic(path) as writer:
        writer.write(data)


def put_aside(path: Path, data: bytes | memoryview) -> None:
    """Write `path` whole or not at all, but not durably: for what spares work while it is there, and is missed by
    nobody (`stores.cloud.cache`). Nothing is announced: it is no part of a store. `drop_aside` removes it.
    """
    temp = temp_name(path)
    try:
        try:
            temp.write_bytes(data)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            temp.write_bytes(data)
        temp.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)
        raise


def drop_aside(path: Path) -> bool:
    """Remove what `put_aside` wrote; whether it is gone now. No error when it was not there, or may not be removed."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def write_text(path: Path | str, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def json_bytes(value: Any) -> bytes:
    """The one JSON form on disk: sorted keys, indent 1, UTF-8, final newline. Raises ValueError on NaN or infinity."""
    return (_json(value, 0) + "\n").encode()


_PLAIN: Final = frozenset({str, int, float, bool, type(None)})


def _json(value: Any, depth: int) -> str:
    """What ``json.dumps`` gives with these options; many times as fast for a long list of small objects, because its
    own indentation is written in Python.
    """
    inside, end = "\n" + " " * (depth + 1), "\n" + " " * depth
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    if not parts:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    if _PLAIN.issuperset(map(type, parts)):
        flat = _encoder("," + inside).encode(value)
        return f"{flat[0]}{inside}{flat[1:-1]}{end}{flat[-1]}"
    if isinstance(value, dict):
        rows = [f"{_key(key)}: {_json(value[key], depth + 1)}" for key in sorted(value)]
        return "{" + inside + ("," + inside).join(rows) + end + "}"
    if all(type(part) is dict and part and _PLAIN.issuperset(map(type, part.values())) for part in value):
        deeper = inside + " "  # all in one call; a line break is never inside text, where it is escaped
        flat = _encoder("," + deeper).encode(value).replace("}," + deeper + "{", inside + "}," + inside + "{" + deeper)
        return "[" + inside + "{" + deeper + flat[2:-2] + inside + "}" + end + "]"
    return "[" + inside + ("," + inside).join(_json(part, depth + 1) for part in value) + end + "]"


@functools.cache
def _encoder(separator: str) -> json.JSONEncoder:
    return json.JSONEncoder(sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(separator, ": "))


def _key(key: Any) -> str:
    """A key as ``json.dumps`` writes it: numbers, booleans and None become text."""
    return json.dumps({key: 0}, ensure_ascii=False, allow_nan=False)[1:-4]


def write_json(path: Path | str, value: Any) -> None:
    """`write_bytes` of `json_bytes(value)`."""
    write_bytes(path, json_bytes(value))


def remove(path: Path | str) -> None:
    """Remove a file or a folder with all it holds, durably. No error when it is not there; that it is not is then made
    durable: who removed it may have died before.
    """
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        announce("remove_tree", path)
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():
        announce("remove", path)
        path.unlink()
    if path.parent.is_dir():
        fsync_dir(path.parent)


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of `folders` that hold nothing, one after the other; what is not removed is no error."""
    for folder in folders:
        announce("remove", folder)
        with contextlib.suppress(OSError):
            folder.rmdir()


def settle(root: Path | str, names: Iterable[str]) -> None:
    """Make files `names` (paths below `root`) durable, and every folder on the way to them, whoever wrote them.

    An fsync of what is durable already costs next to nothing. Folders above `root` that may not be opened are left out.
    """
    root = Path(os.path.abspath(root))
    paths = [root / name for name in names]
    holding = {path.parent for path in paths}
    inside = {each for folder in holding for each in (folder, *folder.parents) if each.is_relative_to(root)} | {root}
    sync.sync_all(paths, "fsync")
    sync.sync_all(sorted(inside, reverse=True), "fsync_dir")
    for folder in root.parents:
        with contextlib.suppress(PermissionError):
            sync.sync_all([folder], "fsync_dir")


@contextlib.contextmanager
def staging_file(final: Path | str) -> Iterator[Path]:
    """Yields a temporary path for a library that insists on writing its file itself (HDF5); on a clean exit that file
    becomes `final`, durably. On an exception it is removed.
    """
    final = Path(final)
    make_dir(final.parent)
    temp = temp_name(final)
    try:
        yield temp
        sync.sync_all([temp], "fsync")
        announce("rename", temp, final)
        temp.replace(final)
    except BaseException:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)
        raise
    fsync_dir(final.parent)


def rename(path: Path | str, final: Path | str) -> None:
    """Give the file `path` the name `final`, atomically and durably; its content is durable already, or, inside
    `sync.Together`, at its sync. From another folder, a power loss may leave both names.
    """
    path, final = Path(path), Path(final)
    announce("rename", path, final)
    path.replace(final)
    group = sync.current()
    if group is None:
        fsync_dir(final.parent)
    else:
        group.add_file(final)


@contextlib.contextmanager
def staging_dir(final: Path | str) -> Iterator[Path]:
    """Build folder `final` under a temporary name; on a clean exit it replaces `final` whole and durably.

    For libraries that insist on writing files themselves. On an exception the temporary is removed.
    """
    final = Path(final)
    make_dir(final.parent)
    temp = temp_name(final)
    try:
        announce("mkdir", temp)
        temp.mkdir()
        yield temp
        replace_dir(temp, final)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise


def replace_dir(temp: Path | str, final: Path | str) -> None:
    """Make folder `temp` durable and give it the name `final`; an old `final` is replaced in one atomic exchange.

    Where the file system has no exchange, the old folder is set aside as ``.old-<12 hex digits>-<name>`` for a moment;
    the next writer puts it back if this one dies in that moment.
    """
    temp, final = Path(temp), Path(final)
    group = sync.current()
    for folder, _, names in os.walk(temp, topdown=False):
        for path in (Path(folder, name) for name in sorted(names)):
            sync.sync_all([path], "fsync") if group is None else group.add_file(path)
        fsync_dir(folder)
    if group is not None:
        group.moved(temp, final)
    if not final.exists():
        announce("rename", temp, final)
        temp.rename(final)
    elif exchange(temp, final):
        fsync_dir(final.parent)
        remove(temp)
    else:
        aside = final.with_name(f"{OLD_PREFIX}{os.urandom(6).hex()}-{final.name}")
        announce("rename", final, aside)
        final.rename(aside)
        announce("rename", temp, final)
        temp.rename(final)
        fsync_dir(final.parent)
        remove(aside)
    fsync_dir(final.parent)


class LineLog:
    """Append-only text log, one record a line (metrics as JSONL). A line torn by a crash is dropped on reopening.

    Each line reaches the operating system at once (survives the process); `close` fsyncs (survives the machine).
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        make_dir(self.path.parent)
        announce("create", self.path)
        self._handle: BinaryIO = self.path.open("a+b", buffering=0)
        self._handle.seek(0)
        content = self._handle.read()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            announce("truncate", self.path)
            self._handle.truncate(whole)

    def append(self, line: str) -> None:
        """Append one line. Raises ValueError when `line` holds a newline."""
        if "\n" in line:
            raise ValueError(f"{self.path}: a record is one line, got {line!r}")
        Writer(self.path, self._handle).write(line.encode() + b"\n")

    def close(self) -> None:
        """Make the log durable."""
        if not self._handle.closed:
            announce("fsync", self.path)
            sync.sync_handle(self._handle.fileno())
            self._handle.close()
            fsync_dir(self.path.parent)

    def __enter__(self) -> "LineLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def append_line(path: Path | str, line: str) -> None:
    """Append one line durably; for a log that is written often, keep a `LineLog` open."""
    with LineLog(path) as log:
        log.append(line)
