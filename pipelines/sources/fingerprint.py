"""A demonstration's fingerprint: equal fingerprints mean that ingest would read the same, without decoding anything.

It covers what ingest reads of a demonstration and nothing else: the attributes, and of every dataset its type, shape,
layout, filters and the bytes as they lie in the file (compressed chunks stay compressed). The hash is XXH3 of 128 bits:
it tells files apart that were edited, regenerated or damaged, at the speed of memory; it is no defence against somebody
who makes two files collide on purpose (see docs/adr/0003-source-fingerprints.md).

An ingest hashes unchunked datasets as it reads them (`Seen`), while they are in the processor's cache; a rerun, which
reads nothing else, hashes what is stored.
"""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from pipelines.sources import hdf5, pulse
from statevla.observation import HDF5_IMAGE_KEYS
from stores.errors import SourceError
from stores.made_by import MADE_BY

FORMAT: Final = 1
"""Raised by hand when the same demonstration gets another fingerprint."""
INIT_STATE: Final = "init_state"
INIT_STATE_INDEX: Final = "init_state_index"
ATTRIBUTES: Final = ("num_samples", "model_file", INIT_STATE_INDEX, INIT_STATE, MADE_BY)
LATER: Final = (MADE_BY,)
"""Attributes that count where they are there: without them a demonstration has the fingerprint that it always had."""
DATASETS: Final = (
    "actions",
    "states",
    "obs/joint_states",
    "obs/gripper_states",
    *(f"obs/{key}" for key in HDF5_IMAGE_KEYS.values()),
)
PIECE: Final = 1 << 18
"""Bytes hashed between two signs of life; they stay in the processor's cache."""

Digest = xxhash.xxh3_128


class Seen:
    """One demonstration as it is read: what was opened of it, and hashes of the unchunked datasets that were read from
    beginning to end.

    group: the demonstration itself. rows: its datasets by key. Both are found by `pipelines.sources.hdf5.child`, so no
    links.
    """

    def __init__(self) -> None:
        self.group: h5py.Group | None = None
        self.rows: dict[str, hdf5.Rows] = {}
        self._attributes: dict[str, Any] = {}
        self._names: list[str] | None = None
        self._digests: dict[str, xxhash.xxh3_128] = {}
        self._bytes: dict[str, int] = {}

    def hook(self, key: str) -> Callable[[int, NDArray[Any]], None]:
        """What `pipelines.sources.hdf5.read_rows` is to tell of the dataset at `key`."""
        return functools.partial(self._add, key)

    def attribute(self, demo: h5py.Group, name: str) -> Any:
        """`pipelines.sources.hdf5.attribute` of the demonstration, which is asked once."""
        if name not in self._attributes:
            value = self._attributes[name] = hdf5.attribute(demo, name, self._names)
            if value is None and self._names is None:
                self._names = hdf5.attribute_names(demo)
        return self._attributes[name]

    def _add(self, key: str, start: int, rows: NDArray[Any]) -> None:
        if start == 0:
            self._digests[key], self._bytes[key] = Digest(), 0
        if start == self._bytes.get(key):
            self._digests[key].update(rows.data)
            self._bytes[key] += rows.nbytes

    def digest(self, key: str, size: int) -> bytes | None:
        """Of the `size` bytes at `key`; None when they were not read, or not all, or in another order."""
        return self._digests[key].digest() if self._bytes.get(key) == size else None


class Stored:
    """Bytes of a file as they lie in it."""

    def __init__(self, path: Path) -> None:
        self._handle = path.open("rb", buffering=0)
        self._size = os.fstat(self._handle.fileno()).st_size
        self._buffer = memoryview(bytearray(PIECE))

    def add(self, digest: "xxhash.xxh3_128", offset: int, size: int) -> None:
        """Add bytes offset … offset + size to `digest`. Raises SourceError where the file ends before."""
        if offset < 0 or offset + size > self._size:
            raise SourceError(f"the file has {self._size:,} bytes, its data are said to end at {offset + size:,}")
        end = offset + size
        while offset < end:
            count = os.preadv(self._handle.fileno(), [self._buffer[: min(PIECE, end - offset)]], offset)
            if count == 0:
                raise SourceError("the file was cut short while it was read")
            digest.update(self._buffer[:count])
            offset += count
            pulse.beat()

    def __enter__(self) -> "Stored":
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()


def fingerprint_demo(
    file: h5py.File,
    demo: str,
    stored: Stored,
    seen: Seen | None = None,
    attributes: Sequence[str] = ATTRIBUTES,
    datasets: Sequence[str] = DATASETS,
) -> str:
    """Of one demonstration of the file whose bytes are `stored`, or why there is none. seen: what was hashed before.
    attributes, datasets: what is read of it.
    """
    try:
        with hdf5.reporting(f"{hdf5.name_of(file)}/{demo}"):
            seen = seen or Seen()
            group = seen.group or hdf5.group(hdf5.group(file, "data"), demo)
            return _digest(group, stored, seen, attributes, datasets)
    except SourceError as error:
        return f"unreadable: {error}"


def _digest(group: h5py.Group, stored: Stored, seen: Seen, attributes: Sequence[str], datasets: Sequence[str]) -> str:
    digest = Digest()
    for name in attributes:
        value = seen.attribute(group, name)
        if value is None and name in LATER:
            continue
        value = value.tobytes().hex() if isinstance(value, np.ndarray) else value
        digest.update(f"{name}\0{type(value).__name__}\0{value}\0".encode("utf-8", "surrogateescape"))
    for path in datasets:
        digest.update(f"{path}\0".encode())
        try:
            found = seen.rows.get(path) or _open(group.id, path)
        except SourceError as error:
            digest.update(str(error).encode())
        else:
            _add_dataset(digest, path, found, stored, seen)
    return digest.hexdigest()


def _open(group: h5py.h5g.GroupID, path: str) -> hdf5.Rows:
    """Like `pipelines.sources.hdf5.child`, where a link or a hole is part of the answer."""
    *folders, last = path.encode().split(b"/")
    for name in (*folders, last):
        if not group.links.exists(name):
            raise SourceError("missing")
        if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
            raise SourceError("a link")
        if name is not last:
            group = h5py.h5g.open(group, name)
    return hdf5.Rows(h5py.h5d.open(group, last))


def _add_dataset(digest: "xxhash.xxh3_128", path: str, found: hdf5.Rows, stored: Stored, seen: Seen) -> None:
    """How `found` is stored, and the hash of what is; storage in other files is named, and not read."""
    layout, outside = found.layout, found.properties.get_external_count()
    shape = None if found.empty else found.shape
    digest.update(f"{found.dtype.str}\0{shape}\0{layout}\0{outside}\0{found.filters}\0".encode())
    if outside or layout == h5py.h5d.VIRTUAL or shape is None:
        return
    if layout == h5py.h5d.CHUNKED:
        chunks: list[Any] = []
        found.id.chunk_iter(chunks.append)
        digest.update(f"{found.chunks}\0".encode())
        for chunk in sorted(chunks, key=lambda chunk: tuple(chunk.chunk_offset)):
            digest.update(f"{chunk.chunk_offset}\0{chunk.filter_mask}\0{chunk.size}\0".encode())
            stored.add(digest, chunk.byte_offset, chunk.size)
        return
    known = seen.digest(path, found.id.get_storage_size())
    if known is not None:
        digest.update(known)
        return
    content = Digest()
    if layout == h5py.h5d.COMPACT:
        content.update(h5py.Dataset(found.id)[()].tobytes())  # at most 64 KB, in the dataset's header
    elif (offset := found.id.get_offset()) is not None:
        stored.add(content, offset, found.id.get_storage_size())
    digest.update(content.digest())
