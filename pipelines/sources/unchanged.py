"""Whether the files of a source are still those that were looked at before."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.sources.source import FolderSource
from pipelines.sources.table import source_of
from stores.errors import SourceTrouble

Stats = tuple[tuple[int, int, int, int], ...]


def members_of(name: str, path: Path) -> Sequence[Path]:
    """The files that a source file of format `name` consists of: itself, or those of a dataset."""
    source = source_of(name)
    return source.members(path) if isinstance(source, FolderSource) else (path,)


def file_stats(paths: Sequence[Path], name: str) -> Stats:
    """(inode, bytes, times of change of content and of entry [ns]) of each file of sources in format `name`, zeros
    where they cannot be had: what tells that one was replaced, or written over.
    """
    found = []
    for member in (member for path in paths for member in members_of(name, path)):
        try:
            stat = member.stat()
        except OSError:
            found.append((0, 0, 0, 0))
        else:
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(found)


@contextlib.contextmanager
def unchanged(path: Path, name: str) -> Iterator[None]:
    """Raise SourceTrouble at the block's end unless the source file at `path` is what it was at its beginning: what
    was read in between may be of two contents, and its fingerprint of a third.
    """
    before = file_stats([path], name)
    yield
    if file_stats([path], name) != before:
        raise SourceTrouble(f"{path}: changed while it was read; run the same command again")
