"""Reading an HDF5 file that nobody vouches for: hard links only, declared sizes bounded, nothing unwritten.

HDF5 returns zeros for chunks that were never written, follows links into other files of the host, and a file of a few
KB can declare terabytes. Every door here refuses such a file with a SourceError that says where.
"""

import contextlib
import errno
import itertools
import math
import mmap
import operator
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from pipelines.sources.chunks import decodes, read_chunks, require_found
from pipelines.sources.pointers import require_content
from pipelines.sources.rows import Rows as Rows
from stores.errors import SourceError, SourceTrouble
from stores.printable import plain

CHUNK_LIMIT: Final = 64 * 2**20
"""Bytes of one HDF5 chunk when unpacked; LIBERO's are below 1 MB."""
READ_LIMIT: Final = 256 * 2**20
"""Bytes of one read; images are read a segment at a time (1.6 MB at 128 x 128)."""
TEXT_LIMIT: Final = 16 * 2**20

TYPES: Final = {"float": (h5py.h5t.IEEE_F32LE, h5py.h5t.IEEE_F64LE), "uint8": (h5py.h5t.STD_U8LE, h5py.h5t.STD_U8BE)}
FILTERS: Final = frozenset({h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32})
"""Filters that are read: gzip, byte shuffle, checksum."""
MAX_CHUNKS: Final = 100_000
TEXT_BYTES: Final = 16
"""In a dataset, of a text of any length: how long it is, and where in the file."""

HDF5_FAILURES: Final = (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError)
"""What h5py raises on damaged files."""


OUTSIDE: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENODEV,
     errno.ENXIO, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENOENT, errno.ELOOP,
     errno.EAGAIN, errno.EBUSY, errno.ENOLCK}
)  # fmt: skip
"""What a system answers when a file cannot be read for reasons that are not in it; the last ones where another process
has it open for writing.
"""
MEMORY_PROBE: Final = 256 * 2**20


class Missing(SourceError):
    """A key or attribute that is not there at all; one that is there and cannot be read is another SourceError."""


def outside(error: BaseException) -> str | None:
    """The reason in words, where the surroundings failed and not the file's content; else None."""
    if isinstance(error, MemoryError):
        try:
            mmap.mmap(-1, MEMORY_PROBE).close()
        except (OSError, MemoryError):
            return "there is too little memory left"
        return None  # memory is there: the file asks for more than any demonstration needs
    if not isinstance(error, OSError):
        return None
    said = re.search(r"errno = (\d+)", str(error))
    number = int(said[1]) if said else error.errno
    if number not in OUTSIDE:
        return None
    why = {
        errno.EAGAIN: " (another program has it open for writing)",  # HDF5's lock of the file
        errno.EACCES: f" for user number {os.getuid()}; change its rights",
    }
    return os.strerror(number) + why.get(number, "")


@contextlib.contextmanager
def reporting(where: str) -> Iterator[None]:
    """Turn what h5py raises inside into a SourceError that starts with `where`; a SourceError gets the prefix too.

    Raises SourceTrouble where the system says that the file's surroundings failed.
    """
    try:
        yield
    except SourceError as error:
        raise type(error)(plain(f"{where}: {error}")) from error
    except HDF5_FAILURES as error:
        if (reason := outside(error)) is not None:
            raise SourceTrouble(
                plain(f"{where}: cannot be read: {reason}. Nothing was quarantined; run the same command again")
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(plain(f"{where}: HDF5 cannot read this: {reason}")) from error


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open `path` for reading. Raises SourceError naming the file when it is not HDF5 or is cut short.

    What goes wrong inside the block is for `reporting` there.
    """
    with reporting(path.name):
        if not path.is_file():
            raise SourceTrouble(
                f"{path}: the link leads to {os.readlink(path)}, which is not there; fetch it (git annex get, dvc "
                "pull, hf download), or remove the link"
                if path.is_symlink()
                else f"{path}: no such file any more, or not an ordinary one; it was there when the source was listed"
            )
        with path.open("rb"):
            pass  # h5py takes a file that may not be opened for one that is no HDF5
        if not h5py.is_hdf5(path):
            require_content(path)
            raise SourceError(f"expected an HDF5 file, got {path.stat().st_size} bytes of something else")
        file = h5py.File(path, "r")
    with file:
        yield file


def name_of(file: h5py.File) -> str:
    """Of the open file, without its folder."""
    return os.path.basename(os.fsdecode(file.filename))


def child(parent: h5py.Group, path: str) -> h5py.Group | Rows:
    """The object at relative `path`, by hard links only. Raises SourceError naming the key."""
    # h5py's own way to its objects costs several times as much, for links that are not followed here.
    found = h5py.h5o.open(parent.id, path.encode()) if _linked(parent.id, path) else _walk(parent.id, path)
    if isinstance(found, h5py.h5d.DatasetID):
        return Rows(found)
    if isinstance(found, h5py.h5g.GroupID):
        return h5py.Group(found)
    raise SourceError(f"key {path!r}: expected a group or a dataset, got a {type(found).__name__}")


def _linked(owner: h5py.h5g.GroupID, path: str) -> bool:
    """Whether hard links lead to `path`; False where they do not. Raises what HDF5 says of damage on the way, the first
    time: asked again, it has part of what it read in memory, and says nothing.
    """
    links, above = owner.links, b""
    for name in path.encode().split(b"/"):
        way = above + name
        try:
            if not links.exists(way) or links.get_info(way).type != h5py.h5l.TYPE_HARD:
                return False
        except HDF5_FAILURES:
            if above and not isinstance(h5py.h5o.open(owner, above[:-1]), h5py.h5g.GroupID):
                return False  # nothing can be looked up below what is no group
            raise
        above = way + b"/"
    return True


def _walk(owner: h5py.h5g.GroupID, path: str) -> Any:
    """What is at `path`, a step at a time, to say which step leads nowhere. Raises SourceError."""
    current: Any = owner
    for name in path.encode().split(b"/"):
        links = current.links if isinstance(current, h5py.h5g.GroupID) else None
        if links is None or not links.exists(name):
            have = "a dataset" if links is None else sorted(map(str, h5py.Group(current)))[:12]
            raise Missing(f"key {path!r} is missing; {h5py.h5i.get_name(current).decode()} has {have}")
        if links.get_info(name).type != h5py.h5l.TYPE_HARD:
            raise SourceError(f"key {path!r}: expected the data itself, got a link to elsewhere, which is not followed")
        current = h5py.h5o.open(current, name)
    return current


def group(parent: h5py.Group, path: str) -> h5py.Group:
    """Like `child`, and it is a group."""
    found = child(parent, path)
    if not isinstance(found, h5py.Group):
        raise SourceError(f"key {path!r}: expected a group, got a dataset")
    return found


def names_of(parent: h5py.Group, where: str) -> list[str]:
    """Names of what is in a group, sorted. Raises SourceError where one is not UTF-8: it is a damaged one."""
    found = list(parent)
    for odd in (name for name in found if not isinstance(name, str)):
        raise SourceError(f"{where}: expected names in UTF-8, got {odd!r}")
    return sorted(found)


def dataset(parent: h5py.Group, path: str, kind: str, shape: tuple[int | None, ...], limit: int) -> Rows:
    """The dataset at `path`, checked before any of it is read.

    kind: "float" (float32 or float64, little-endian) or "uint8". shape: None where any length will do.
    limit: the most that the whole may hold, in bytes.

    Raises SourceError naming the key, what was expected and what came.
    """
    found = child(parent, path)
    if not isinstance(found, Rows):
        raise SourceError(f"key {path!r}: expected a dataset, got a group")
    have = found.shape
    fits = len(have) == len(shape) and all(size in (None, got) for size, got in zip(shape, have, strict=True))
    # Exactly: h5py gives the nearest NumPy type to a damaged one, and converts.
    if not any(found.stored_type.equal(allowed) for allowed in TYPES[kind]) or not fits:
        wanted = "[" + ", ".join("*" if size is None else str(size) for size in shape) + "]"
        raise SourceError(
            f"key {path!r}: expected {kind} {wanted}, got {found.dtype} {'empty' if found.empty else list(have)}"
        )
    if found.nbytes > limit:
        raise SourceError(f"key {path!r}: declares {found.nbytes:,} bytes, more than {limit:,}")
    require_written(found, path)
    return found


def require_written(found: Rows, path: str) -> None:
    """Refuse storage outside the file, filters that no demonstration needs, and storage that was never written (HDF5
    reads it as zeros) or is not where it belongs.
    """
    if found.layout == h5py.h5d.VIRTUAL or found.properties.get_external_count():
        raise SourceError(f"key {path!r}: its data lies in other files, which are not read")
    width = TEXT_BYTES if found.dtype.hasobject else found.dtype.itemsize
    if found.chunks is None:
        stored, declared = found.id.get_storage_size(), math.prod(found.shape) * width
        if stored != declared:
            raise SourceError(f"key {path!r}: {declared:,} bytes declared, {stored:,} written")
        return
    chunk_bytes = math.prod(found.chunks) * width
    if chunk_bytes > CHUNK_LIMIT:
        raise SourceError(f"key {path!r}: chunks of {chunk_bytes:,} bytes, more than {CHUNK_LIMIT:,}")
    filters = [described[0] for described in found.filters]
    if not set(filters) <= FILTERS:
        raise SourceError(f"key {path!r}: expected filters of {sorted(FILTERS)}, got {filters}")
    if len(set(filters)) != len(filters):  # packed twice it would unpack to more than anybody declared
        raise SourceError(f"key {path!r}: expected each filter once, got {filters}")
    grid = [range(0, size, step) for size, step in zip(found.shape, found.chunks, strict=True)]
    expected = math.prod(len(axis) for axis in grid)
    if expected > MAX_CHUNKS:
        raise SourceError(f"key {path!r}: {expected:,} chunks, more than {MAX_CHUNKS:,}")
    chunks = stored_chunks(found)
    if len(chunks) != expected:
        raise SourceError(
            f"key {path!r}: {expected} chunks declared, {len(chunks)} written (the rest would read as zeros)"
        )
    places = {tuple(chunk.chunk_offset) for chunk in chunks}
    whole = not filters and any(chunk.size != chunk_bytes for chunk in chunks)
    if places != set(itertools.product(*grid)) or any(chunk.filter_mask for chunk in chunks) or whole:
        raise SourceError(f"key {path!r}: its index of chunks is damaged")


def stored_chunks(found: Rows) -> list[Any]:
    """Place, size and offset of every chunk that was written (h5py's StoreInfo), as they lie in the file."""
    chunks: list[Any] = []
    found.id.chunk_iter(chunks.append)
    return sorted(chunks, key=lambda chunk: int(chunk.byte_offset))


def read_rows(
    data: Rows,
    start: int = 0,
    stop: int | None = None,
    seen: Callable[[int, NDArray[Any]], None] | None = None,
    into: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Rows start ... stop of a checked dataset, in native byte order. Raises SourceError when that is too much.

    seen: told (first byte, rows) as they are stored, where they are stored unchunked. into: an array of the dataset's
    type and row shape, with room; the result is then a view of it, and no fresh memory is touched.
    """
    rows = (data.shape[0] if stop is None else stop) - start
    if rows * data.row_bytes > READ_LIMIT:
        raise SourceError(f"{data.name}: {rows * data.row_bytes:,} bytes at once, more than {READ_LIMIT:,}")
    array = np.empty((rows, *data.shape[1:]), data.dtype) if into is None else into[:rows]
    if data.chunks is not None and decodes(data):
        read_chunks(data, data.chunks, start, array)
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if data.chunks is not None:
        require_found(data, data.chunks, start, start + rows)
    if not data.read_past_hdf5(start, array):
        if start == 0 and array.shape == data.shape:
            data.id.read(h5py.h5s.ALL, h5py.h5s.ALL, array, data.stored_type)
        else:
            data.place.select_hyperslab((start, *(0 for _ in data.shape[1:])), array.shape)
            data.id.read(h5py.h5s.create_simple(array.shape), data.place, array)
    if seen is not None and data.chunks is None:
        seen(start * data.row_bytes, array)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def attribute_names(owner: h5py.Group) -> list[str]:
    """Of all attributes. Raises what h5py does where one of them, or the list, cannot be read."""
    return [h5py.h5a.open(owner.id, index=at).name.decode() for at in range(h5py.h5a.get_num_attrs(owner.id))]


def attribute(owner: h5py.Group, name: str, names: list[str] | None = None) -> Any:
    """The value of attribute `name`, None when absent. Raises SourceError when it is there and cannot be read, or under
    a name that is one letter off: a damaged one.

    h5py's own ``get`` answers None to both. names: `attribute_names`, where they are known.
    """
    try:
        if h5py.h5a.exists(owner.id, name.encode()):
            return owner.attrs[name]
        # A damaged list reads as an absence too; then one of those that are listed is unreadable.
        names = attribute_names(owner) if names is None else names
    except HDF5_FAILURES as error:
        if outside(error) is not None:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(f"attribute {name!r}: it, or the list of attributes, cannot be read: {reason}") from error
    for other in names:
        if len(other) == len(name) and sum(map(operator.ne, other, name)) == 1:
            raise SourceError(f"attribute {name!r}: there is {other!r} in its place, which looks like damage")
    return None


Read = Callable[[h5py.Group, str], Any]
"""`attribute`, or what remembers its answers."""


def text(owner: h5py.Group, name: str, read: Read = attribute) -> str | None:
    """Text attribute `name`, None when absent. Raises SourceError when it is not text or is absurdly long."""
    value = read(owner, name)
    if value is None:
        return None
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise SourceError(f"attribute {name!r}: expected UTF-8 text, got {error}") from error
    if not isinstance(value, str) or len(value) > TEXT_LIMIT:
        raise SourceError(f"attribute {name!r}: expected text, got {type(value).__name__}")
    require_unicode(value, f"attribute {name!r}")
    return value


def require_unicode(value: str, what: str) -> None:
    """Refuse text that cannot be written as UTF-8: half a character from JSON, or bytes that h5py could not decode."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"{what}: expected UTF-8 text, got {value!r:.80}") from error


def integer(owner: h5py.Group, name: str, read: Read = attribute) -> int | None:
    """Integer attribute `name`, None when absent. Raises SourceError when it is something else."""
    value = read(owner, name)
    if value is None:
        return None
    if not isinstance(value, int | np.integer):
        raise SourceError(f"attribute {name!r}: expected an integer, got {type(value).__name__} {value!r:.60}")
    return int(value)
