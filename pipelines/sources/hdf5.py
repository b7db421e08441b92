"""Reading an HDF5 file that nobody vouches for: hard links only, declared sizes bounded, nothing unwritten.

HDF5 returns zeros for chunks that were never written, follows links into other files of the host, and a file of a few
KB can declare terabytes. Every door here refuses such a file with a SourceError that says where.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from pipelines.sources.rows import Rows as Rows
from stores.errors import SourceError

CHUNK_LIMIT: Final = 64 * 2**20
"""Bytes of one HDF5 chunk when unpacked; LIBERO's are below 1 MB."""
READ_LIMIT: Final = 256 * 2**20
"""Bytes of one read; images are read a segment at a time (1.6 MB at 128 x 128)."""
TEXT_LIMIT: Final = 16 * 2**20

TYPES: Final = {"float": (h5py.h5t.IEEE_F32LE, h5py.h5t.IEEE_F64LE), "uint8": (h5py.h5t.STD_U8LE, h5py.h5t.STD_U8BE)}
FILTERS: Final = frozenset({h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32})
"""Filters that are read: gzip, byte shuffle, checksum."""
LFS_POINTER: Final = b"version https://git-lfs"
HEADER_BYTES: Final = 16
MAX_CHUNKS: Final = 100_000

HDF5_FAILURES: Final = (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError)
"""What h5py raises on damaged files."""


@contextlib.contextmanager
def reporting(where: str) -> Iterator[None]:
    """Turn what h5py raises inside into a SourceError that starts with `where`; a SourceError gets the prefix too."""
    try:
        yield
    except SourceError as error:
        raise SourceError(_writable(f"{where}: {error}")) from error
    except HDF5_FAILURES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(_writable(f"{where}: HDF5 cannot read this: {reason}")) from error


def _writable(reason: str) -> str:
    """A reason is written to the quarantine; what of it is no Unicode, because a damaged file said so, is escaped."""
    return reason.encode(errors="backslashreplace").decode()


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open `path` for reading. Raises SourceError naming the file when it is not HDF5 or is cut short.

    What goes wrong inside the block is for `reporting` there.
    """
    with reporting(path.name):
        if not path.is_file():
            raise SourceError(f"no such file: {path}")
        if not h5py.is_hdf5(path):
            with path.open("rb") as start:
                if start.read(len(LFS_POINTER)) == LFS_POINTER:
                    raise SourceError("expected an HDF5 file, got a Git LFS pointer; run `git lfs pull`")
            raise SourceError(f"expected an HDF5 file, got {path.stat().st_size} bytes of something else")
        file = h5py.File(path, "r")
    with file:
        yield file


class Once(h5py.Group):  # type: ignore[misc]
    """A group below which every object is opened, and of which every attribute is read, once: both cost more than the
    hashing of a small dataset.
    """

    def __init__(self, found: h5py.Group) -> None:
        super().__init__(found.id)
        self.opened: dict[bytes, Any] = {}
        self.values: dict[str, Any] = {}


def child(parent: h5py.Group, path: str) -> h5py.Group | Rows:
    """The object at relative `path`, by hard links only. Raises SourceError naming the key."""
    opened = parent.opened if isinstance(parent, Once) else {}
    current: Any = parent.id
    place = b""
    for name in path.encode().split(b"/"):
        place += b"/" + name
        if place in opened:
            current = opened[place]
            continue
        links = current.links if isinstance(current, h5py.h5g.GroupID) else None
        if links is None or not links.exists(name):
            have = "a dataset" if links is None else sorted(h5py.Group(current))[:12]
            owner = current.id if isinstance(current, Rows) else current
            raise SourceError(f"key {path!r} is missing; {h5py.h5i.get_name(owner).decode()} has {have}")
        if links.get_info(name).type != h5py.h5l.TYPE_HARD:
            raise SourceError(f"key {path!r}: expected the data itself, got a link to elsewhere, which is not followed")
        # h5py's own way to its objects costs several times as much, for links that are not followed here.
        current = h5py.h5o.open(current, name)
        current = opened[place] = Rows(current) if isinstance(current, h5py.h5d.DatasetID) else current
    if isinstance(current, Rows):
        return current
    if isinstance(current, h5py.h5g.GroupID):
        return h5py.Group(current)
    raise SourceError(f"key {path!r}: expected a group or a dataset, got a {type(current).__name__}")


def group(parent: h5py.Group, path: str) -> h5py.Group:
    """Like `child`, and it is a group."""
    found = child(parent, path)
    if not isinstance(found, h5py.Group):
        raise SourceError(f"key {path!r}: expected a group, got a dataset")
    return found


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
    _require_written(found, path)
    return found


def _require_written(found: Rows, path: str) -> None:
    """Refuse storage outside the file, filters that no demonstration needs, and storage that was never written (HDF5
    reads it as zeros) or is not where it belongs.
    """
    if found.layout == h5py.h5d.VIRTUAL or found.properties.get_external_count():
        raise SourceError(f"key {path!r}: its data lies in other files, which are not read")
    if found.chunks is None:
        stored = found.id.get_storage_size()
        if stored != found.nbytes:
            raise SourceError(f"key {path!r}: {found.nbytes:,} bytes declared, {stored:,} written")
        return
    chunk_bytes = math.prod(found.chunks) * found.dtype.itemsize
    if chunk_bytes > CHUNK_LIMIT:
        raise SourceError(f"key {path!r}: chunks of {chunk_bytes:,} bytes, more than {CHUNK_LIMIT:,}")
    filters = [described[0] for described in found.filters]
    if not set(filters) <= FILTERS:
        raise SourceError(f"key {path!r}: expected filters of {sorted(FILTERS)}, got {filters}")
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


def stored_ranges(found: Rows) -> list[tuple[int, int]]:
    """(begin, end) of a dataset's bytes in the file. Empty where they lie in its header."""
    if found.chunks is not None:
        return [(chunk.byte_offset, chunk.byte_offset + chunk.size) for chunk in stored_chunks(found)]
    offset = found.id.get_offset()
    return [] if offset is None else [(offset, offset + found.id.get_storage_size())]


def header_range(item: h5py.Group | Rows) -> list[tuple[int, int]]:
    """(begin, end) of the first bytes of an object's header in the file: no data can be there."""
    address = h5py.h5o.get_info(item.id).addr
    return [(address, address + HEADER_BYTES)]


def overlapping(ranges: Mapping[str, list[tuple[int, int]]], size: int) -> set[str]:
    """Names of those of whose ranges one reaches past `size` or shares bytes with another: a damaged address."""
    marked = sorted((begin, end, name) for name, parts in ranges.items() for begin, end in parts)
    found = {name for begin, end, name in marked if begin < 0 or end > size}
    furthest, owner = 0, ""
    for begin, end, name in marked:
        if begin < furthest:
            found |= {name, owner}
        if end > furthest:
            furthest, owner = end, name
    return found


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
    if data.chunks is not None:
        _require_found(data, data.chunks, start, start + rows)
    array = np.empty((rows, *data.shape[1:]), data.dtype) if into is None else into[:rows]
    data.place.select_hyperslab((start, *(0 for _ in data.shape[1:])), array.shape)
    data.id.read(h5py.h5s.create_simple(array.shape), data.place, array)
    if seen is not None and data.chunks is None:
        seen(start * data.row_bytes, array)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _require_found(data: Rows, chunk: tuple[int, ...], start: int, stop: int) -> None:
    """Look every chunk of these rows up as reading will: a damaged index can list a chunk and not find it, and what is
    not found reads as zeros. Raises SourceError, or what h5py raises.
    """
    step, *steps = chunk
    others = [range(0, size, width) for size, width in zip(data.shape[1:], steps, strict=True)]
    for place in itertools.product(range(start // step * step, stop, step), *others):
        if not data.id.read_direct_chunk(place)[1]:
            raise SourceError(f"{data.name}: the chunk at {place} is not found")


def attribute(owner: h5py.Group, name: str) -> Any:
    """The value of attribute `name`, None when absent."""
    if not isinstance(owner, Once):
        return owner.attrs.get(name)
    if name not in owner.values:
        owner.values[name] = owner.attrs.get(name)
    return owner.values[name]


def text(owner: h5py.Group, name: str) -> str | None:
    """Text attribute `name`, None when absent. Raises SourceError when it is not text or is absurdly long."""
    value = attribute(owner, name)
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


def integer(owner: h5py.Group, name: str) -> int | None:
    """Integer attribute `name`, None when absent. Raises SourceError when it is something else."""
    value = attribute(owner, name)
    if value is None:
        return None
    if not isinstance(value, int | np.integer):
        raise SourceError(f"attribute {name!r}: expected an integer, got {type(value).__name__} {value!r:.60}")
    return int(value)
