"""Which bytes of an HDF5 file its objects claim: the same bytes twice, or some outside it, mean a damaged address."""

import contextlib
from collections.abc import Mapping
from typing import Any, Final

import h5py

from pipelines.sources.hdf5 import HDF5_FAILURES, name_of, stored_chunks
from pipelines.sources.rows import Rows
from stores.errors import SourceError

HEADER_BYTES: Final = 16
DEPTH: Final = 64
"""Levels of groups: a demonstration's have five."""
UNREADABLE: Final = tuple(kind for kind in HDF5_FAILURES if kind is not MemoryError)
"""What an object may raise that claims nothing; too little memory says nothing of it."""


def stored_ranges(found: Rows) -> list[tuple[int, int]]:
    """(begin, end) of a dataset's bytes in the file. Empty where they lie in its header."""
    if found.chunks is not None:
        return [(chunk.byte_offset, chunk.byte_offset + chunk.size) for chunk in stored_chunks(found)]
    offset = found.id.get_offset()
    return [] if offset is None else [(offset, offset + found.id.get_storage_size())]


def header_range(item: h5py.Group | Rows, base: int) -> list[tuple[int, int]]:
    """(begin, end) of the first bytes of an object's header in the file: no data can be there. base: `base_of`."""
    return _header(base + h5py.h5o.get_info(item.id).addr)


def base_of(file: h5py.File) -> int:
    """The byte from which HDF5 counts addresses of objects, behind a user block; those of data it gives as they are."""
    return int(file.id.get_create_plist().get_userblock())


def claimed(file: h5py.File) -> dict[str, list[tuple[int, int]]]:
    """(begin, end) of all that every object of the file claims of it, by each of its names: also what nobody reads.

    An object with two names claims its header twice. One that cannot be opened claims nothing but that; who needs it is
    refused when it is read. Raises SourceError where groups nest deeper than any demonstration's.
    """
    found: dict[str, list[tuple[int, int]]] = {}
    waiting: list[tuple[bytes, Any]] = [(b"", file.id)]
    known, base = {h5py.h5o.get_info(file.id).addr}, base_of(file)
    for above, folder in waiting:  # grows while it is gone through
        if above.count(b"/") > DEPTH:
            raise SourceError(f"{name_of(file)}: groups nest deeper than {DEPTH} levels")
        for name, address in _linked(folder):
            path = above + name
            parts = found[path.decode(errors="backslashreplace")] = _header(base + address)
            if address in known:
                continue
            known.add(address)
            with contextlib.suppress(*UNREADABLE, SourceError):
                item = h5py.h5o.open(folder, name)
                if isinstance(item, h5py.h5g.GroupID):
                    waiting.append((path + b"/", item))
                elif isinstance(item, h5py.h5d.DatasetID):
                    parts += _claims(item)
    return found


def _linked(folder: h5py.h5g.GroupID) -> list[tuple[bytes, int]]:
    """(name, address) of the hard links of a group, ``data`` first: what two names share counts as of that. None where
    the list of them is damaged.
    """
    links: list[tuple[bytes, int]] = []

    def note(name: bytes, info: Any) -> None:
        if info.type == h5py.h5l.TYPE_HARD:
            links.append((name, info.u))

    with contextlib.suppress(*UNREADABLE):
        folder.links.iterate(note, info=True)
    return sorted(links, key=lambda link: (link[0] != b"data", link))


def astray(file: h5py.File, size: int) -> dict[str, set[str]]:
    """What has something where other data of the file of `size` bytes are, or outside it (a damaged address, or two
    names of one thing): names of groups and datasets below each of the root's groups.
    """
    found: dict[str, set[str]] = {}
    for name in overlapping(claimed(file), size):
        top, _, rest = name.partition("/")
        found.setdefault(top, set()).add(rest.partition("/")[0])
    return found


def _claims(item: h5py.h5d.DatasetID) -> list[tuple[int, int]]:
    """`stored_ranges`; none where what is stored lies in other files. Most datasets by far are at one address."""
    if (offset := item.get_offset()) is not None:
        return [(offset, offset + item.get_storage_size())]
    rows = Rows(item)
    if rows.layout == h5py.h5d.VIRTUAL or rows.properties.get_external_count():
        return []
    return stored_ranges(rows)


def _header(address: int) -> list[tuple[int, int]]:
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
