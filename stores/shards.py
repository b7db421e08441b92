"""Tar shards: one WebDataset sample is one segment; an index of byte ranges lets any segment be read alone.

The tar is POSIX USTAR with fixed metadata (mode 0644, everything else zero), so the same members give the same bytes.
Headers are built here, because ``tarfile`` spends more time on one than JPEG encoding on a small image; tests compare
them with ``tarfile``'s byte for byte.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from isal import isal_zlib

from stores.cloud.storage import Sound, Storage
from stores.disk import durable
from stores.errors import StoreCorrupt, UsageError
from stores.printable import word
from stores.segments import SegmentMembers

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
_NAME: Final = 100
_PREFIX: Final = 155
_SIZE_LIMIT: Final = 8**11
_HEADER: Final = struct.Struct(f"{_NAME}s24x11s122x5s83x{_PREFIX}s12x")
"""Of a tar header: name, size in octal digits, magic, prefix."""


@dataclass(frozen=True)
class SegmentIndex:
    """Where a segment is in its shard. Offsets are absolute; `member_offset` is of the data, behind the tar header."""

    key: str
    offset: int
    size: int
    crc32: int
    member_name: tuple[str, ...]
    member_offset: tuple[int, ...]
    member_size: tuple[int, ...]


@dataclass(frozen=True)
class ShardIndex:
    """A written shard: its segments in order, its size and sha256 (hex)."""

    segments: tuple[SegmentIndex, ...]
    bytes: int
    sha256: str


def write_shard(path: Path | str, segments: Iterable[SegmentMembers]) -> ShardIndex:
    """Write `segments` as one tar, atomically, in one pass; it is hashed on the way. Its content is durable afterwards,
    its name when the manifest is (`stores.manifest.Manifest.save`).

    Raises UsageError when a key or member name does not fit USTAR or WebDataset, or a key comes twice.
    """
    index: list[SegmentIndex] = []
    seen: set[str] = set()
    digest = hashlib.sha256()
    with durable.atomic(path, durable_name=False) as writer:
        for segment in segments:
            if segment.key in seen:
                raise UsageError(f"{path}: key {segment.key!r} comes twice")
            seen.add(segment.key)
            data, entry = pack_segment(segment, writer.bytes)
            digest.update(data)
            writer.write(data)
            index.append(entry)
        digest.update(END)
        writer.write(END)
    return ShardIndex(tuple(index), writer.bytes, digest.hexdigest())


def pack_segment(segment: SegmentMembers, offset: int) -> tuple[bytes, SegmentIndex]:
    """The tar bytes of a segment that starts at `offset` of its shard, and its index entry."""
    _check_key(segment.key)
    pieces: list[bytes] = []
    offsets: list[int] = []
    sizes: list[int] = []
    position = offset
    for name, data in segment.members:
        size = len(data)
        padding = -size % BLOCK
        pieces += (tar_header(f"{segment.key}.{name}", size), data, bytes(padding))
        offsets.append(position + BLOCK)
        sizes.append(size)
        position += BLOCK + size + padding
    packed = b"".join(pieces)
    names = tuple(name for name, _ in segment.members)
    if len(set(names)) != len(names) or not names:
        raise UsageError(f"segment {segment.key!r}: expected distinct member names, got {names}")
    entry = SegmentIndex(segment.key, offset, len(packed), isal_zlib.crc32(packed), names, tuple(offsets), tuple(sizes))
    return packed, entry


def read_segment(
    storage: Storage, shard: str, content: str, offset: int, size: int, crc32: int, where: Callable[[], str]
) -> tuple[str, dict[str, bytes]]:
    """(key, members by name: the part after "<key>.") of one segment, in one range read.

    Members are found by their tar headers, which the checksum covers: no table of them is needed. content: the shard's
    sha256. where: names the segment in errors. Raises StoreMissing when the shard is not there, StoreCorrupt when its
    bytes are not as indexed.
    """
    try:
        packed = storage.read_checked(shard, content, offset, size, matches(crc32))
    except StoreCorrupt as error:
        raise StoreCorrupt(f"{where()}: {error}") from error
    found = isal_zlib.crc32(packed)
    if found != crc32:
        raise StoreCorrupt(
            f"{where()}: expected crc32 {crc32:08x}, got {found:08x}; run `statevla verify {word(storage.root)}`"
        )
    try:
        return _members(packed)
    except (ValueError, struct.error) as error:
        raise StoreCorrupt(f"{where()}: not the members of one tar sample: {error}") from error


def matches(crc32: int) -> Sound:
    """Whether bytes are a segment of this checksum."""
    return lambda data: isal_zlib.crc32(data) == crc32


def _members(packed: bytes) -> tuple[str, dict[str, bytes]]:
    """(key, members by name) of the tar entries of one sample. Raises ValueError."""
    members: dict[str, bytes] = {}
    key, position, begins = "", 0, ""
    while position < len(packed):
        name, digits, magic, prefix = _HEADER.unpack_from(packed, position)
        if magic != b"ustar":
            raise ValueError(f"no tar header at byte {position}")
        size = int(digits, 8)
        start = position + BLOCK
        position = start + size + -size % BLOCK
        if position > len(packed):
            raise ValueError(f"a member of {size} bytes reaches past the end")
        path = name.rstrip(b"\0").decode("ascii")
        if prefix[0]:
            path = f"{prefix.rstrip(bytes(1)).decode('ascii')}/{path}"
        if not members:
            key = path[: path.index(".", path.rfind("/") + 1)]
            begins = f"{key}."
        elif not path.startswith(begins):
            raise ValueError(f"expected members of {key!r}, got {path!r}")
        members[path[len(begins) :]] = packed[start : start + size]
    return key, members


def _check_key(key: str) -> None:
    """WebDataset splits a file name at the first dot of its last part; the key must survive that."""
    parts = key.split("/")
    if not all(parts) or "." in parts[-1] or {".", ".."} & set(parts) or not key.isprintable():
        raise UsageError(f"segment key {key!r}: expected non-empty parts between '/', the last one without a dot")


_BEFORE_SIZE: Final = b"0000644\0" + b"0000000\0" * 2  # mode, uid, gid
_BEFORE_SUM: Final = b"\0" + b"00000000000\0"  # end of size, mtime
_AFTER_SUM: Final = b"0" + bytes(_NAME) + b"ustar\00000" + bytes(32 + 32 + 8 + 8)
"""Type (regular file), link name, magic and version, user, group, device numbers."""
_AFTER_NAME: Final = [bytes(_NAME - length) + _BEFORE_SIZE for length in range(_NAME + 1)]
_AFTER_PREFIX: Final = [bytes(_PREFIX - length + 12) for length in range(_PREFIX + 1)]
"""By the length of what stands before; the header's last 12 bytes are nothing too."""
_FIXED_SUM: Final = sum(_BEFORE_SIZE + _BEFORE_SUM + b" " * 8 + _AFTER_SUM)
"""Of the bytes that are the same in every header; the checksum itself counts as spaces."""


def tar_header(path: str, size: int) -> bytes:
    """USTAR header of a regular file, 512 bytes. Raises UsageError when the name does not fit 155 + 100 bytes or is not
    ASCII, or the size does not fit.
    """
    try:
        name = path.encode("ascii")
    except UnicodeEncodeError as error:
        raise UsageError(f"{path!r}: expected an ASCII name in a shard") from error
    if size >= _SIZE_LIMIT:
        raise UsageError(f"{path}: a member of {size} bytes does not fit a USTAR header (limit {_SIZE_LIMIT})")
    prefix, name = (b"", name) if len(name) <= _NAME else _split(name)
    digits = b"%011o" % size
    # Adler-32's lower half is one more than the sum of the bytes, as long as that is below 65,521: ASCII's here is.
    varied = isal_zlib.adler32(prefix + name + digits) & 0xFFFF
    checksum = b"%06o\0 " % (_FIXED_SUM + varied - 1)
    behind = prefix + _AFTER_PREFIX[len(prefix)]
    return b"".join((name, _AFTER_NAME[len(name)], digits, _BEFORE_SUM, checksum, _AFTER_SUM, behind))


def _split(name: bytes) -> tuple[bytes, bytes]:
    """(prefix, name) at the first '/' that makes both fit, as ``tarfile`` chooses it."""
    at = name.find(b"/")
    while at >= 0:
        if at <= _PREFIX and len(name) - at - 1 <= _NAME:
            return name[:at], name[at + 1 :]
        at = name.find(b"/", at + 1)
    raise UsageError(
        f"{name.decode()}: a name of {len(name)} bytes does not fit USTAR; "
        f"expected a '/' with at most {_PREFIX} bytes before and {_NAME} after it"
    )
