"""Ranges of remote objects, kept on this machine: a folder of bounded size that all processes share.

A range is known by its object's sha256, its place and its size: by content, wherever it came from. It is taken only
while it matches the checksum that a sealed index has of it, when it is kept and every time it is read; what does not
match is fetched again. So nothing that happens to the folder, its removal in the middle of a run included, changes what
a reader gets.

What was used last stays: reading renews a file's time, and the oldest go first. A process looks at the whole folder
when what it has added since could break the limit, and at the latest after a sixteenth of it: the folder holds at most
the limit, and a sixteenth of it for each further process.

A folder is a cache by its mark (`MARK`), or by holding ranges and nothing else; any other one is refused. Nothing is
counted or removed that has not the name of a range, at the range's place.
"""

import contextlib
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from stores.cloud.storage import Sound, Storage
from stores.disk import durable
from stores.errors import StoreError, UsageError

ROOM: Final = 8
"""When there is no room, an eighth of the limit is made."""
ABANDONED: Final = 3600.0
"""Seconds after which a temporary file is nobody's."""
MARK: Final = ".statevla-cache"
"""File that says whose the folder is."""
_MARK: Final = b"Ranges of remote stores, kept by statevla; `statevla clean-cache` removes them.\n"
_TEMPORARY: Final = re.escape(durable.TEMP_PREFIX) + "[0-9a-f]{12}-"
_IGNORED: Final = re.compile(rf"\.DS_Store|{_TEMPORARY}{re.escape(MARK)}")
_FOLDER: Final = re.compile("[0-9a-f]{2}")
_RANGE: Final = re.compile(rf"(?:{_TEMPORARY})?([0-9a-f]{{2}})[0-9a-f]{{62}}-[0-9]+-[0-9]+")

Piece = tuple[int, int, Sound]
"""A range of an object: its place, its size, and whether bytes are what is there."""


class RangeCache:
    """`folder` (made when needed) with at most `limit` bytes of ranges. Used by any thread of any process.

    say: told once where nothing more can be kept (a full disk, a folder that is no cache); readers go on without.
    """

    def __init__(self, folder: Path, limit: int, say: Callable[[str], None] | None = None) -> None:
        if limit < 1:
            raise UsageError(f"{folder}: expected room for a byte or more, got {limit}")
        self.folder, self.limit, self.say = folder, limit, say
        self._lock = threading.Lock()
        self._known: int | None = None
        self._added = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: the same folder. `say` stays, it tells this one."""
        return RangeCache, (self.folder.absolute(), self.limit)

    def path(self, content: str, offset: int, size: int) -> Path:
        """Where a range lies, or would."""
        return self.folder / content[:2] / f"{content}-{offset}-{size}"

    def has(self, content: str, offset: int, size: int) -> bool:
        """Whether a range is there; it counts as used."""
        try:
            os.utime(self.path(content, offset, size))
        except OSError:
            return False
        return True

    def get(self, content: str, offset: int, size: int) -> bytes | None:
        """A range as it was kept, unchecked but for its size."""
        path = self.path(content, offset, size)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return data if len(data) == size else None

    def put(self, content: str, offset: int, data: bytes | memoryview) -> None:
        """Keep a range that was checked. Where it cannot be, nothing happens but that `say` is told."""
        if len(data) > self.limit // ROOM:
            return
        try:
            if not (self.folder / MARK).is_file():  # the folder is new, or was removed while it was used
                self._claim()
            self._make_room(len(data))
            durable.put_aside(self.path(content, offset, len(data)), data)
        except (OSError, UsageError) as error:
            said, self.say = self.say, None
            if said is not None:
                why = (error.strerror if isinstance(error, OSError) else None) or error
                said(f"{self.folder}: cannot keep what is read from afar: {why}; reads go on")

    def trouble(self) -> str | None:
        """Why nothing can be kept here; None where it can. Raises as `require_own`."""
        try:
            self._claim()
        except OSError as error:
            return error.strerror or str(error)
        return None

    def require_own(self) -> None:
        """Raise UsageError where the folder is no cache: it has no mark, and holds something else than ranges."""
        if (self.folder / MARK).is_file():
            return
        other = next(self._others(), None)
        if other is not None:
            raise UsageError(
                f"{self.folder}: expected a folder that keeps ranges of remote stores (with {MARK}), an empty one or "
                f"none; it holds {other}, which is not the cache's. Nothing was changed; name another folder"
            )

    def _claim(self) -> None:
        """Mark the folder as a cache. Raises UsageError where it is none, OSError where it cannot be written."""
        self.require_own()
        durable.put_aside(self.folder / MARK, _MARK)

    def _others(self) -> Iterator[str]:
        """Entries that are neither ranges nor folders of ranges, by their paths below the folder."""
        for entry in _entries(self.folder):
            if entry.is_dir(follow_symlinks=False):
                inside = list(_entries(entry.path))
                yield from (f"{entry.name}/{each.name}" for each in inside if not _is_range(entry.name, each))
                if not inside and not _FOLDER.fullmatch(entry.name):
                    yield entry.name
            elif not _IGNORED.fullmatch(entry.name):
                yield entry.name

    def files(self) -> Iterator[os.DirEntry[str]]:
        """Every range that is there now, and every one that is or was being written."""
        for folder in _entries(self.folder):
            if _FOLDER.fullmatch(folder.name) and folder.is_dir(follow_symlinks=False):
                yield from (entry for entry in _entries(folder.path) if _is_range(folder.name, entry))

    def bytes(self) -> int:
        """What the ranges take."""
        return sum(size for _, size, _ in self._listed())

    def clear(self) -> int:
        """Remove every range; the bytes that were freed. Readers of other processes fetch again.

        Raises as `require_own`; StoreError where some may not be removed.
        """
        self.require_own()
        listed = self._listed()
        freed, wanted = self._remove(listed), sum(size for _, size, _ in listed)
        if freed < wanted:
            raise StoreError(
                f"{self.folder}: {wanted - freed:,} bytes of {wanted:,} may not be removed by this user; "
                "run it again as the one whose they are"
            )
        return freed

    def _listed(self) -> list[tuple[float, int, str]]:
        """(time of the last use, bytes, path), the oldest first; temporary files that nobody writes any more before."""
        found, now = [], time.time()
        for entry in self.files():
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if not durable.is_leftover(entry.name):
                    found.append((status.st_mtime, status.st_size, entry.path))
                elif now - status.st_mtime > ABANDONED:
                    found.append((0.0, status.st_size, entry.path))
        return sorted(found)

    def _make_room(self, size: int) -> None:
        with self._lock:
            within = self._known is not None and self._known + self._added + size <= self.limit
            if not within or self._added > self.limit // 16:
                listed = self._listed()
                total = sum(size for _, size, _ in listed)
                if total + size > self.limit:
                    wanted, freed, oldest = total + size - self.limit + self.limit // ROOM, 0, []
                    for item in listed:
                        if freed >= wanted:
                            break
                        oldest.append(item)
                        freed += item[1]
                    total -= self._remove(oldest)
                self._known, self._added = total, 0
            self._added += size

    def _remove(self, items: Sequence[tuple[float, int, str]]) -> int:
        return sum(size for _, size, path in items if durable.drop_aside(Path(path)))


def _entries(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """What a folder holds; nothing where it is gone, or may not be read."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        yield from entries


def _is_range(folder: str, entry: os.DirEntry[str]) -> bool:
    """Whether `RangeCache.path`, or a temporary name of it, names this entry of the cache's folder `folder`."""
    found = _RANGE.fullmatch(entry.name)
    return found is not None and found[1] == folder and entry.is_file(follow_symlinks=False)


class CachedStorage:
    """`inner`, whose checked ranges are kept in `cache`."""

    def __init__(self, inner: Storage, cache: RangeCache) -> None:
        self.inner, self.cache = inner, cache
        self.root, self.lists = inner.root, inner.lists
        self._turns: weakref.WeakValueDictionary[tuple[str, int, int], threading.Lock] = weakref.WeakValueDictionary()
        self._guard = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process."""
        return CachedStorage, (self.inner, self.cache)

    def read(self, name: str) -> bytes:
        return self.inner.read(name)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        return self.inner.read_range(name, offset, size)

    def read_checked(self, name: str, content: str, offset: int, size: int, sound: Sound) -> bytes:
        with self._turn(content, offset, size):
            kept = self.cache.get(content, offset, size)
            if kept is not None and sound(kept):
                return kept
            data = self.inner.read_range(name, offset, size)
            if sound(data):
                self.cache.put(content, offset, data)
            return data

    def fetch(self, name: str, content: str, pieces: Sequence[Piece]) -> None:
        """Have ranges near by that follow one another, by one request for all that are not there. What is not sound is
        left to who reads it.
        """
        first, last = pieces[0], pieces[-1]
        if len(pieces) == 1:
            self.read_checked(name, content, *first)
            return
        with self._turn(content, first[0], last[0] + last[1] - first[0]):
            missing = [piece for piece in pieces if not self.cache.has(content, *piece[:2])]
            if not missing:
                return
            begin = missing[0][0]
            data = memoryview(self.inner.read_range(name, begin, sum(missing[-1][:2]) - begin))
            for offset, size, sound in missing:
                part = data[offset - begin : offset - begin + size]
                if sound(part):
                    self.cache.put(content, offset, part)

    def _turn(self, content: str, offset: int, size: int) -> threading.Lock:
        """Who asks for what is on its way waits for it."""
        with self._guard:
            return self._turns.setdefault((content, offset, size), threading.Lock())

    def advise(self, name: str, offset: int, size: int) -> None:
        """Nothing: `fetch` brings bytes near."""

    def read_into(self, name: str, offset: int, views: Sequence[memoryview]) -> None:
        self.inner.read_into(name, offset, views)

    def pieces(self, name: str) -> Iterator[bytes | memoryview]:
        return self.inner.pieces(name)

    def local_path(self, name: str) -> str | None:
        return self.inner.local_path(name)

    def sizes(self, skip: Collection[str] = ()) -> dict[str, int]:
        return self.inner.sizes(skip)
