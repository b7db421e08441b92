"""A demonstration's fingerprint: equal fingerprints mean that ingest would read the same, without decoding anything.

It covers what ingest reads of a demonstration and nothing else: the attributes, and of every dataset its type, shape,
layout, filters and the bytes as they lie in the file (compressed chunks stay compressed). The hash is XXH3 of 128 bits:
it tells files apart that were edited, regenerated or damaged, at the speed of memory; it is no defence against somebody
who makes two files collide on purpose (see docs/adr/0003-source-fingerprints.md).
"""

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import h5py
import xxhash

from pipelines import hdf5, pulse
from statevla.observation import HDF5_IMAGE_KEYS
from stores.errors import SourceError

ATTRIBUTES: Final = ("num_samples", "model_file")
DATASETS: Final = (
    "actions",
    "states",
    "obs/joint_states",
    "obs/gripper_states",
    *(f"obs/{key}" for key in HDF5_IMAGE_KEYS.values()),
)
PIECE: Final = 1 << 20
"""Bytes hashed between two signs of life."""

Digest = xxhash.xxh3_128


def fingerprint_demos(path: Path, demos: tuple[str, ...], poison: Mapping[int, str] | None = None) -> dict[str, str]:
    """Fingerprint (32 hex digits) by demonstration; of one that cannot be read, the reason instead.

    poison: as for `pipelines.libero.inspect_file`. Raises SourceError when the file as a whole cannot be read.
    """
    found: dict[str, str] = {}
    # Mapped, not read: hashing then costs a third. A file cut short meanwhile kills the process, which is a child.
    with (
        hdf5.open_hdf5(path) as file,
        path.open("rb") as handle,
        mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as stored,
        memoryview(stored) as view,
    ):
        for position, demo in enumerate(demos, 1):
            pulse.at(position)
            try:
                if poison and position in poison:
                    raise SourceError(poison[position])
                with hdf5.reporting(demo):
                    group = hdf5.group(hdf5.group(file, "data"), demo)
                    found[demo] = fingerprint_demo(group, view)
            except SourceError as error:
                found[demo] = f"unreadable: {error}"
    return found


def fingerprint_demo(group: h5py.Group, stored: memoryview) -> str:
    """Of one demonstration of the file whose bytes are `stored`. Raises SourceError, or what h5py raises."""
    digest = Digest()
    for name in ATTRIBUTES:
        value = group.attrs.get(name)
        digest.update(f"{name}\0{type(value).__name__}\0{value}\0".encode("utf-8", "surrogateescape"))
    for path in DATASETS:
        digest.update(f"{path}\0".encode())
        try:
            found = _open(group.id, path)
        except SourceError as error:
            digest.update(str(error).encode())
        else:
            _add_stored_bytes(digest, found, stored)
    return digest.hexdigest()


def _open(group: h5py.h5g.GroupID, path: str) -> h5py.h5d.DatasetID:
    """Like `pipelines.hdf5.child`, without building h5py's objects, which costs more than hashing a small file."""
    *folders, last = path.encode().split(b"/")
    for name in (*folders, last):
        if not group.links.exists(name):
            raise SourceError("missing")
        if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
            raise SourceError("a link")
        if name is not last:
            group = h5py.h5g.open(group, name)
    return h5py.h5d.open(group, last)


def _add_stored_bytes(digest: "xxhash.xxh3_128", found: h5py.h5d.DatasetID, stored: memoryview) -> None:
    """How `found` is stored, and what; storage in other files is named, and not read."""
    plist = found.get_create_plist()
    layout, outside = plist.get_layout(), plist.get_external_count()
    filters = [plist.get_filter(i) for i in range(plist.get_nfilters())]
    digest.update(f"{found.dtype.str}\0{found.shape}\0{layout}\0{outside}\0{filters}\0".encode())
    if outside or layout == h5py.h5d.VIRTUAL or found.shape is None:
        return
    if layout == h5py.h5d.CHUNKED:
        chunks: list[Any] = []
        found.chunk_iter(chunks.append)
        digest.update(f"{plist.get_chunk()}\0".encode())
        for chunk in sorted(chunks, key=lambda chunk: tuple(chunk.chunk_offset)):
            digest.update(f"{chunk.chunk_offset}\0{chunk.filter_mask}\0{chunk.size}\0".encode())
            _add_range(digest, stored, chunk.byte_offset, chunk.size)
        return
    offset = found.get_offset()
    if offset is not None:
        _add_range(digest, stored, offset, found.get_storage_size())
    elif layout == h5py.h5d.COMPACT:
        digest.update(h5py.Dataset(found)[()].tobytes())  # at most 64 KB, in the dataset's header
    else:
        digest.update(b"unwritten\0")


def _add_range(digest: "xxhash.xxh3_128", stored: memoryview, offset: int, size: int) -> None:
    if offset < 0 or offset + size > len(stored):
        raise SourceError(f"the file has {len(stored):,} bytes, its data are said to end at {offset + size:,}")
    for start in range(offset, offset + size, PIECE):
        digest.update(stored[start : min(start + PIECE, offset + size)])
        pulse.beat()
