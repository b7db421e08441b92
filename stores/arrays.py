"""Zarr v3 arrays whose every chunk must exist and match its crc32c.

Legend: N rows (first axis), R rows a chunk, M number of chunks.

An array is cut along its first axis only; chunk m holds rows m R … (m + 1) R - 1, the last one padded with zeros as
Zarr wants it. Codecs are ``bytes`` (little endian) and ``crc32c``, so a chunk is the rows in C order and four bytes of
checksum. Any Zarr v3 reader opens them. They are written and read here directly, because Zarr's own stores rename
without fsync, and read a chunk that is missing or empty as zeros.

One writer a chunk: regions handed to different writers start at multiples of R.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stores.cloud.storage import Storage, open_storage
from stores.disk import durable
from stores.errors import StoreCorrupt, StoreMissing, UsageError
from stores.layout import remedy

METADATA: Final = "zarr.json"
TYPES: Final = ("bool", "uint8", "int8", "int32", "int64", "float16", "float32", "float64")
_CRC_BYTES: Final = 4
_MAP_BYTES: Final = 1 << 24

ReadObject = Callable[[str], bytes]


def crc32c(data: Any) -> int:
    """Of bytes. Its package is loaded here: where policies are only measured, no store is read and it may be absent."""
    import google_crc32c

    return int(google_crc32c.value(data))


@dataclass(frozen=True)
class ArraySpec:
    """Shape [N, …], dtype name and rows a chunk of one array. Raises UsageError when they make no sense."""

    shape: tuple[int, ...]
    dtype: str
    chunk: int

    def __post_init__(self) -> None:
        if self.dtype not in TYPES or not self.shape or min(self.shape) < 0 or self.chunk < 1:
            raise UsageError(f"array: expected a dtype of {TYPES}, a shape [N, ...] and chunk >= 1, got {self}")

    @property
    def chunks(self) -> int:
        """M."""
        return -(-self.shape[0] // self.chunk)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk object, checksum included."""
        return self.chunk * self.row_bytes + _CRC_BYTES

    def chunk_name(self, m: int) -> str:
        """Object name of chunk m below the array: Zarr's default key encoding."""
        return "c/" + "/".join([str(m), *("0" for _ in self.shape[1:])])

    def files(self) -> dict[str, int]:
        """Bytes of every object that holds rows, by name below the array, in the rows' order."""
        return {self.chunk_name(m): self.chunk_bytes for m in range(self.chunks)}

    def metadata(self) -> dict[str, Any]:
        """Contents of the array's zarr.json. Attribute ``sha256`` is of the rest, so that a flipped digit shows."""
        fields = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [self.chunk, *self.shape[1:]]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": fill_value(self.dtype),
            "codecs": codecs(self.dtype),
            "storage_transformers": [],
        }
        return sealed(fields)


def sealed(fields: dict[str, Any]) -> dict[str, Any]:
    """Metadata with attribute ``sha256`` of the rest."""
    return {**fields, "attributes": {"sha256": hashlib.sha256(durable.json_bytes(fields)).hexdigest()}}


def fill_value(dtype: str) -> bool | int | float:
    """What Zarr would give for a chunk that is not there; here no such chunk is accepted."""
    return False if dtype == "bool" else 0 if "int" in dtype else 0.0


def codecs(dtype: str) -> list[dict[str, Any]]:
    """Bytes, little endian, and their checksum."""
    if np.dtype(dtype).itemsize == 1:  # Zarr takes no byte order for single bytes
        return [{"name": "bytes"}, {"name": "crc32c"}]
    return [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


def create_group(root: Path | str, attributes: dict[str, Any] | None = None) -> None:
    """Write the metadata of a group at folder `root`."""
    durable.write_json(Path(root, METADATA), group_metadata(attributes))


def group_metadata(attributes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Contents of a group's zarr.json."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes or {}}


def create(root: Path | str, name: str, shape: tuple[int, ...], dtype: str, chunk: int) -> ArraySpec:
    """Write the metadata of array `name` below group folder `root`; it is complete when every chunk is written."""
    spec = ArraySpec(tuple(shape), dtype, chunk)
    durable.write_json(Path(root, name, METADATA), spec.metadata())
    return spec


def write_region(root: Path | str, name: str, spec: ArraySpec, start: int, values: NDArray[Any]) -> list[str]:
    """Write rows start … start + len(values) - 1, each chunk atomically; returns the chunks' names below `root`.

    Raises UsageError when `start` is no multiple of the chunk, the end is neither one nor N, or the dtype or row shape
    is another.
    """
    stop = start + len(values)
    if (
        start % spec.chunk
        or not (stop % spec.chunk == 0 or stop == spec.shape[0])
        or not 0 <= start <= stop <= spec.shape[0]
    ):
        raise UsageError(
            f"{name}: rows {start} to {stop} of {spec.shape[0]} are not whole chunks of {spec.chunk} rows; "
            "two writers would share a chunk"
        )
    if values.dtype != np.dtype(spec.dtype) or values.shape[1:] != spec.shape[1:]:
        raise UsageError(
            f"{name}: expected {spec.dtype} rows of {list(spec.shape[1:])}, got {values.dtype} {list(values.shape[1:])}"
        )
    written = []
    for begin in range(0, len(values), spec.chunk):
        rows = np.ascontiguousarray(values[begin : begin + spec.chunk], values.dtype.newbyteorder("<"))
        data = rows.tobytes().ljust(spec.chunk_bytes - _CRC_BYTES, b"\0")
        object_name = f"{name}/{spec.chunk_name((start + begin) // spec.chunk)}"
        durable.write_bytes(Path(root, object_name), data + crc32c(data).to_bytes(_CRC_BYTES, "little"))
        written.append(object_name)
    return written


@contextlib.contextmanager
def whole_writer(root: Path | str, name: str, spec: ArraySpec) -> Iterator[Callable[[NDArray[Any]], None]]:
    """Write the only chunk of an array by pieces of its rows, atomically; holds one piece.

    Raises UsageError when it has several chunks, and when the rows are not all, or of another dtype or shape.
    """
    import google_crc32c

    if spec.chunk != spec.shape[0]:
        raise UsageError(f"{name}: expected one chunk of {spec.shape[0]} rows, got chunks of {spec.chunk}")
    checksum, rows = 0, 0
    with durable.atomic(Path(root, name, spec.chunk_name(0))) as writer:

        def add(piece: NDArray[Any]) -> None:
            nonlocal checksum, rows
            if piece.dtype != np.dtype(spec.dtype) or piece.shape[1:] != spec.shape[1:]:
                raise UsageError(
                    f"{name}: expected {spec.dtype} rows of {list(spec.shape[1:])}, got {piece.dtype} {piece.shape}"
                )
            data = np.ascontiguousarray(piece, piece.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
            checksum, rows = google_crc32c.extend(checksum, data), rows + len(piece)
            writer.write(data.data)

        yield add
        if rows != spec.shape[0]:
            raise UsageError(f"{name}: expected {spec.shape[0]} rows, got {rows}")
        writer.write(checksum.to_bytes(_CRC_BYTES, "little"))


def map_whole(array: "CheckedArray") -> NDArray[Any]:
    """The rows of an array of one chunk on this machine, mapped read-only, after one pass over them for the checksum.

    Raises UsageError where there is no such file, StoreCorrupt when its content is not as written.
    """
    import google_crc32c

    spec = array.spec
    path = None if array.local is None else array.local(f"{array.name}/{spec.chunk_name(0)}")
    if spec.chunk != spec.shape[0] or path is None:
        raise UsageError(f"{array.where}: {array.name}: expected one chunk in a local file; copy the store")
    data = np.memmap(path, np.uint8, "r")
    body = data[:-_CRC_BYTES]
    checksum = 0
    for start in range(0, len(body), _MAP_BYTES):
        checksum = google_crc32c.extend(checksum, body[start : start + _MAP_BYTES])
    if len(data) != spec.chunk_bytes or checksum != int.from_bytes(data[-_CRC_BYTES:].tobytes(), "little"):
        raise StoreCorrupt(
            f"{array.where}: {array.name}: its content does not match its crc32c; {remedy(array.where, array.name)}"
        )
    return body.view(np.dtype(spec.dtype).newbyteorder("<")).reshape(spec.shape)


@dataclass(frozen=True)
class CheckedArray:
    """An array for reading, which raises instead of inventing rows. where: names it in errors. local: the path of an
    object, None where it lies on no file system of this machine.
    """

    name: str
    where: str
    spec: ArraySpec
    _read: ReadObject
    local: Callable[[str], str | None] | None = None

    def chunk(self, m: int) -> NDArray[Any]:
        """Rows of chunk m, padding cut off; read-only. Raises StoreCorrupt naming array and chunk."""
        spec = self.spec
        name = f"{self.name}/{spec.chunk_name(m)}"
        try:
            data = self._read(name)
        except StoreMissing as error:
            raise StoreCorrupt(f"{self.where}: chunk {name} is missing; {remedy(self.where, name)}") from error
        if len(data) != spec.chunk_bytes:
            raise StoreCorrupt(
                f"{self.where}: chunk {name}: expected {spec.chunk_bytes} bytes, got {len(data)}; "
                + remedy(self.where, name)
            )
        body = data[:-_CRC_BYTES]
        if crc32c(body) != int.from_bytes(data[-_CRC_BYTES:], "little"):
            raise StoreCorrupt(
                f"{self.where}: chunk {name}: its content does not match its crc32c; {remedy(self.where, name)}"
            )
        count = min(spec.chunk, spec.shape[0] - m * spec.chunk)
        dtype = np.dtype(spec.dtype).newbyteorder("<")
        rows = np.frombuffer(body, dtype, count * spec.row_bytes // dtype.itemsize)
        return rows.reshape(count, *spec.shape[1:])

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows start … stop - 1 (default: all). Raises UsageError outside the array, StoreCorrupt on a broken chunk."""
        stop = self.spec.shape[0] if stop is None else stop
        if not 0 <= start <= stop <= self.spec.shape[0]:
            raise UsageError(f"{self.where}: {self.name} has {self.spec.shape[0]} rows, asked for {start} to {stop}")
        out = np.empty((stop - start, *self.spec.shape[1:]), self.spec.dtype)
        size = self.spec.chunk
        for m in range(start // size, -(-stop // size)):
            begin = m * size
            low, high = max(start, begin), min(stop, begin + size)
            out[low - start : high - start] = self.chunk(m)[low - begin : high - begin]
        return out


def open_checked(
    root: Path | str | Storage, name: str, expected: ArraySpec | None = None, read: ReadObject | None = None
) -> CheckedArray:
    """Array `name` (path below `root`, such as "frames.zarr/action").

    expected: the shape, dtype and chunk that it must have. read: how to get an object, when not plainly from `root`.
    Raises StoreMissing without metadata, StoreCorrupt when the metadata is not what `create` writes.
    """
    storage = open_storage(root)
    read = read or storage.read
    try:
        fields = json.loads(read(f"{name}/{METADATA}"))
        spec = ArraySpec(
            tuple(fields["shape"]), fields["data_type"], fields["chunk_grid"]["configuration"]["chunk_shape"][0]
        )
        known = fields == spec.metadata()
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, UsageError) as error:
        raise StoreCorrupt(
            f"{storage.root}: {name}/{METADATA}: not the metadata of an array: {error!r}; {remedy(storage.root, name)}"
        ) from error
    if not known or (expected is not None and spec != expected):
        raise StoreCorrupt(
            f"{storage.root}: {name}/{METADATA}: expected {expected or spec.metadata()}, got {fields}; "
            + remedy(storage.root, name)
        )
    return CheckedArray(name, storage.root, spec, read, storage.local_path)
