"""Large arrays of rows in standard sharded Zarr v3: written a shard at a time, read by its index into reused buffers.

Legend: N rows (first axis), R rows a chunk, S rows a shard (a multiple of R), M number of shards.

An array is cut along its first axis only. A shard is one object: its chunks (codecs ``bytes``, ``crc32c``) one after
the other, then its index, (offset, bytes) of each chunk as uint64 little endian, then the index's crc32c; the places of
chunks past N hold 2⁶⁴ - 1 twice. Any Zarr v3 reader opens it. Zarr's own reader returns zeros for a chunk that is not
there, and copies every chunk several times; here a row range is read with one call a run of chunks, straight into the
caller's buffer where it covers whole chunks.

What is checked when: the index's crc32c and every chunk's place when a shard is first opened; a chunk's crc32c when it
is first read by this reader (later reads trust the page cache); everything in `statevla verify`.

One writer a shard.
"""

import functools
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stores.arrays import METADATA, TYPES, codecs, crc32c, fill_value, sealed
from stores.cloud.cache import CachedStorage
from stores.cloud.storage import Storage, open_storage
from stores.disk import durable
from stores.errors import StoreCorrupt, StoreMissing, UsageError
from stores.layout import remedy

ABSENT: Final = np.uint64(2**64 - 1)
CRC_BYTES: Final = 4
PLACE_BYTES: Final = 16
CACHE_LINE: Final = 64


@dataclass(frozen=True)
class ShardedSpec:
    """Shape [N, …], dtype name, rows a chunk, rows a shard. Raises UsageError when they make no sense."""

    shape: tuple[int, ...]
    dtype: str
    chunk: int
    shard: int

    def __post_init__(self) -> None:
        sound = self.dtype in TYPES and self.shape and min(self.shape) >= 0 and self.chunk >= 1
        if not sound or self.shard < self.chunk or self.shard % self.chunk:
            raise UsageError(
                f"array: expected a dtype of {TYPES}, a shape [N, ...], "
                f"chunk >= 1 and a multiple of it as shard, got {self}"
            )

    @property
    def shards(self) -> int:
        """M."""
        return -(-self.shape[0] // self.shard)

    @functools.cached_property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @functools.cached_property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk in a shard, checksum included."""
        return self.chunk * self.row_bytes + CRC_BYTES

    @property
    def index_bytes(self) -> int:
        """Bytes of a shard's index, checksum included."""
        return self.shard // self.chunk * PLACE_BYTES + CRC_BYTES

    def rows(self, m: int) -> int:
        """Rows of the array in shard m."""
        return min(self.shard, self.shape[0] - m * self.shard)

    def shard_bytes(self, m: int) -> int:
        """Size of shard m's object."""
        return -(-self.rows(m) // self.chunk) * self.chunk_bytes + self.index_bytes

    def shard_name(self, m: int) -> str:
        """Object name of shard m below the array: Zarr's default key encoding."""
        return "c/" + "/".join([str(m), *("0" for _ in self.shape[1:])])

    def files(self) -> dict[str, int]:
        """Bytes of every shard, by name below the array, in the rows' order."""
        return {self.shard_name(m): self.shard_bytes(m) for m in range(self.shards)}

    def metadata(self) -> dict[str, Any]:
        """Contents of the array's zarr.json, sealed as `stores.arrays` seals it."""
        fields = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [self.shard, *self.shape[1:]]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": fill_value(self.dtype),
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": [self.chunk, *self.shape[1:]],
                        "codecs": codecs(self.dtype),
                        "index_codecs": codecs("uint64"),
                        "index_location": "end",
                    },
                }
            ],
            "storage_transformers": [],
        }
        return sealed(fields)


def aligned(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Uninitialized memory that begins on a cache line, as torch's does and NumPy's does not: the system copies a large
    file there up to three times as fast (docs/log.md).
    """
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    room = np.empty(size + CACHE_LINE, np.uint8)
    start = -room.ctypes.data % CACHE_LINE
    return room[start : start + size].view(dtype).reshape(shape)


def create(root: Path | str, name: str, spec: ShardedSpec) -> None:
    """Write the metadata of array `name` below group folder `root`; it is complete when every shard is written."""
    durable.write_json(Path(root, name, METADATA), spec.metadata())


def write_shard(root: Path | str, name: str, spec: ShardedSpec, m: int, pieces: Iterable[NDArray[Any]]) -> str:
    """Write shard m from pieces of its rows, in order, atomically; holds one chunk. Returns the object's name.

    Raises UsageError when the rows are not those of the shard, or of another dtype or shape.
    """
    rows = np.empty((spec.chunk, *spec.shape[1:]), np.dtype(spec.dtype).newbyteorder("<"))
    object_name, held, done, offset = f"{name}/{spec.shard_name(m)}", 0, 0, 0
    places = np.full((spec.shard // spec.chunk, 2), ABSENT, np.dtype("<u8"))
    with durable.atomic(Path(root, object_name)) as writer:

        def put() -> None:
            nonlocal offset, done, held
            rows[held:] = 0
            body = rows.tobytes()
            writer.write(body + crc32c(body).to_bytes(CRC_BYTES, "little"))
            places[done // spec.chunk] = offset, spec.chunk_bytes
            offset, done, held = offset + spec.chunk_bytes, done + held, 0

        for piece in pieces:
            if piece.dtype != np.dtype(spec.dtype) or piece.shape[1:] != spec.shape[1:]:
                raise UsageError(
                    f"{name}: expected {spec.dtype} rows of {list(spec.shape[1:])}, "
                    f"got {piece.dtype} {list(piece.shape[1:])}"
                )
            if done + held + len(piece) > spec.rows(m):
                raise UsageError(f"{name}: shard {m} has {spec.rows(m)} rows, got more")
            start = 0
            while start < len(piece):
                taken = min(len(piece) - start, spec.chunk - held)
                rows[held : held + taken] = piece[start : start + taken]
                start, held = start + taken, held + taken
                if held == spec.chunk:
                    put()
        if held:
            put()
        if done != spec.rows(m):
            raise UsageError(f"{name}: shard {m} has {spec.rows(m)} rows, got {done}")
        index = places.tobytes()
        writer.write(index + crc32c(index).to_bytes(CRC_BYTES, "little"))
    return object_name


@dataclass(frozen=True)
class ShardedArray:
    """An array for reading, by any number of threads, which raises instead of inventing rows.

    contents: sha256 of each shard, by name below the storage, as a seal has them; none where nobody has sealed it yet.
    """

    name: str
    spec: ShardedSpec
    storage: Storage
    contents: Mapping[str, str] = field(default_factory=dict)
    _checked: dict[int, NDArray[np.bool_]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, start: int, stop: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Rows start … stop - 1, into `out` [stop - start, …] where given.

        Raises UsageError outside the array or where `out` does not fit; StoreCorrupt naming shard and chunk.
        """
        spec = self.spec
        if not 0 <= start <= stop <= spec.shape[0]:
            raise UsageError(f"{self.storage.root}: {self.name} has {spec.shape[0]} rows, asked for {start} to {stop}")
        shape = (stop - start, *spec.shape[1:])
        out = aligned(shape, spec.dtype) if out is None else out
        if out.shape != shape or out.dtype != np.dtype(spec.dtype) or not out.flags.c_contiguous:
            raise UsageError(
                f"{self.name}: buffer: expected {spec.dtype} {list(shape)}, got {out.dtype} {list(out.shape)}"
            )
        at = start
        while at < stop:
            m = at // spec.shard
            end = min(stop, (m + 1) * spec.shard)
            self._read_shard(m, at - m * spec.shard, out[at - start : end - start])
            at = end
        return out

    @property
    def is_far(self) -> bool:
        """Whether `fetch` may have something to do: it lies over a network, behind a cache."""
        return isinstance(self.storage, CachedStorage)

    def fetch(self, start: int, stop: int) -> None:
        """Have rows start … stop - 1 near by, where the array is far and a cache is in between; one request a shard.

        What is damaged is said by who reads it. Raises StoreError where it cannot be had.
        """
        spec = self.spec
        if not isinstance(self.storage, CachedStorage):
            return
        for m in range(start // spec.shard, -(-stop // spec.shard)):
            name, begin = self._object(m), m * spec.shard
            first = (max(start, begin) - begin) // spec.chunk
            last = -(-(min(stop, begin + spec.rows(m)) - begin) // spec.chunk)
            if name in self.contents:
                size = spec.chunk_bytes
                self.storage.fetch(name, self.contents[name], [(i * size, size, _is_sound) for i in range(first, last)])

    def check(self, m: int) -> None:
        """Read the whole of shard m and check every chunk. Raises StoreCorrupt."""
        self._read_shard(m, 0, np.empty((self.spec.rows(m), *self.spec.shape[1:]), self.spec.dtype), again=True)

    def _read_shard(self, m: int, first: int, out: NDArray[Any], again: bool = False) -> None:
        """Rows `first` … of shard m into `out`: whole chunks by one call, the rest of a chunk by itself."""
        spec = self.spec
        self._open(m)
        done = 0
        while done < len(out):
            chunk, inside = divmod(first + done, spec.chunk)
            whole = 0 if inside else (len(out) - done) // spec.chunk
            if whole:
                self._whole(m, chunk, out[done : done + whole * spec.chunk], again)
                done += whole * spec.chunk
                continue
            taken = min(spec.chunk - inside, len(out) - done)
            out[done : done + taken] = self._part(m, chunk, inside, taken, again)
            done += taken

    def _whole(self, m: int, chunk: int, out: NDArray[Any], again: bool) -> None:
        """Chunks from `chunk` on, straight into `out`; their checksums go beside it."""
        size, count = self.spec.chunk_bytes - CRC_BYTES, len(out) // self.spec.chunk
        if isinstance(self.storage, CachedStorage) and self._object(m) in self.contents:
            for i, rows in enumerate(out.reshape(-1).view(np.uint8).reshape(count, size)):
                rows[...] = self._kept(m, chunk + i)[:-CRC_BYTES]
            return
        bodies, sums = out.reshape(-1).view(np.uint8), np.empty(count * CRC_BYTES, np.uint8)
        parts = ((bodies.data, size), (sums.data, CRC_BYTES))
        views = [data[i * length : (i + 1) * length] for i in range(count) for data, length in parts]
        self.storage.read_into(self._object(m), chunk * self.spec.chunk_bytes, views)
        if again or not self._checked[m][chunk : chunk + count].all():
            for i, (body, checksum) in enumerate(zip(bodies.reshape(count, -1), sums.reshape(count, -1), strict=True)):
                if again or not self._checked[m][chunk + i]:
                    self._require(m, chunk + i, body, checksum)

    def _part(self, m: int, chunk: int, inside: int, taken: int, again: bool) -> NDArray[Any]:
        """Some rows of a chunk; the whole of it is read where it was not checked yet."""
        spec, offset = self.spec, chunk * self.spec.chunk_bytes
        if isinstance(self.storage, CachedStorage) and self._object(m) in self.contents:
            rows: Any = self._kept(m, chunk)[inside * spec.row_bytes : (inside + taken) * spec.row_bytes].data
        elif self._checked[m][chunk] and not again:
            begin = offset + inside * spec.row_bytes
            rows = self.storage.read_range(self._object(m), begin, taken * spec.row_bytes)
        else:
            data = np.frombuffer(self.storage.read_range(self._object(m), offset, spec.chunk_bytes), np.uint8)
            self._require(m, chunk, data[:-CRC_BYTES], data[-CRC_BYTES:])
            rows = data[inside * spec.row_bytes : (inside + taken) * spec.row_bytes].data
        return np.frombuffer(rows, np.dtype(spec.dtype).newbyteorder("<")).reshape(taken, *spec.shape[1:])

    def _kept(self, m: int, chunk: int) -> NDArray[np.uint8]:
        """A chunk and its checksum, which is compared every time: a file of the cache may be anything."""
        size = self.spec.chunk_bytes
        found = np.frombuffer(self._checked_range(self._object(m), chunk * size, size), np.uint8)
        self._require(m, chunk, found[:-CRC_BYTES], found[-CRC_BYTES:])
        return found

    def _checked_range(self, name: str, offset: int, size: int) -> bytes:
        """Bytes with their checksum behind them, by way of the cache where there is one; the caller compares."""
        if name in self.contents:
            return self.storage.read_checked(name, self.contents[name], offset, size, _is_sound)
        return self.storage.read_range(name, offset, size)

    def _require(self, m: int, chunk: int, body: NDArray[np.uint8], checksum: NDArray[np.uint8]) -> None:
        # The checksum reads an array where it lies; it takes no memoryview.
        if crc32c(body) != int.from_bytes(checksum.tobytes(), "little"):
            raise StoreCorrupt(
                f"{self.storage.root}: {self._object(m)}: chunk {chunk}: its content does not match its crc32c; "
                + remedy(self.storage.root, self._object(m))
            )
        self._checked[m][chunk] = True

    def _object(self, m: int) -> str:
        return f"{self.name}/{self.spec.shard_name(m)}"

    def _open(self, m: int) -> None:
        """Check the index of shard m, once: it names every chunk, one after the other."""
        with self._lock:
            if m in self._checked:
                return
        spec, name = self.spec, self._object(m)
        try:
            data = self._checked_range(name, spec.shard_bytes(m) - spec.index_bytes, spec.index_bytes)
        except StoreMissing as error:
            raise StoreCorrupt(
                f"{self.storage.root}: shard {name} is missing; {remedy(self.storage.root, name)}"
            ) from error
        body = data[:-CRC_BYTES]
        if crc32c(body) != int.from_bytes(data[-CRC_BYTES:], "little"):
            raise StoreCorrupt(
                f"{self.storage.root}: {name}: its index does not match its crc32c; {remedy(self.storage.root, name)}"
            )
        places = np.frombuffer(body, "<u8").reshape(-1, 2)
        chunks = -(-spec.rows(m) // spec.chunk)
        expected = np.arange(chunks, dtype=np.uint64) * np.uint64(spec.chunk_bytes)
        if not np.array_equal(places[:chunks, 0], expected) or (places[:chunks, 1] != spec.chunk_bytes).any():
            raise StoreCorrupt(
                f"{self.storage.root}: {name}: its index does not name every chunk once, in order; "
                + remedy(self.storage.root, name)
            )
        with self._lock:
            self._checked.setdefault(m, np.zeros(chunks, np.bool_))


def _is_sound(data: bytes | memoryview) -> bool:
    """Whether a chunk matches the checksum behind it."""
    found = np.frombuffer(data, np.uint8)
    return crc32c(found[:-CRC_BYTES]) == int.from_bytes(found[-CRC_BYTES:].tobytes(), "little")


def open_sharded(
    root: Path | str | Storage,
    name: str,
    expected: ShardedSpec | None = None,
    contents: Mapping[str, str] | None = None,
) -> ShardedArray:
    """Array `name` below `root`. contents: as `ShardedArray` has them.

    Raises StoreMissing without metadata, StoreCorrupt when the metadata is not what `create` writes.
    """
    storage = open_storage(root)
    where = f"{storage.root}: {name}/{METADATA}"
    try:
        fields = json.loads(storage.read(f"{name}/{METADATA}"))
        inner = fields["codecs"][0]["configuration"]["chunk_shape"][0]
        outer = fields["chunk_grid"]["configuration"]["chunk_shape"][0]
        spec = ShardedSpec(tuple(fields["shape"]), fields["data_type"], inner, outer)
        known = fields == spec.metadata()
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, UsageError) as error:
        raise StoreCorrupt(
            f"{where}: not the metadata of a sharded array: {error!r}; {remedy(storage.root, name)}"
        ) from error
    if not known or (expected is not None and spec != expected):
        raise StoreCorrupt(
            f"{where}: expected {expected or spec.metadata()}, got {fields}; {remedy(storage.root, name)}"
        )
    return ShardedArray(name, spec, storage, contents or {})
