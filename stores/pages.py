"""What a Parquet file's columns become when they are read, known before any of it is inflated.

The footer's sizes say little: a page of a hundred bytes may hold a billion zeros, or a text that repeats as often. What
a page becomes is bounded by its own header (apache/parquet-format: Thrift, compact protocol), by which it is inflated
too: the reader takes no more values, and no more bytes of a page, than stand there. pyarrow shows no page headers and
holds none of them against the footer. What it and this file could read in two ways is refused: a field twice or of
another type, a second dictionary, fewer values than the footer has (it goes on reading behind the column).
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

ROOM: Final = 32 << 20
"""Bytes that any file may become."""
RATIO: Final = 256
"""And those for each of its bytes; our tables become 20 times as large, with text written out."""
HEADER: Final = 4096
"""Bytes of a page's header that are read at first."""
MAX_HEADER: Final = 1 << 24
_DATA, _INDEX, _DICTIONARY, _DATA_V2 = range(4)
_TYPE, _INFLATED, _DEFLATED = 1, 2, 3
_PART: Final = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}
"""Field of a header that describes a page of that type; in it, field 1 is the number of values."""
_ENCODING: Final = {_DATA: 2, _DICTIONARY: 2, _DATA_V2: 4}
_BY_DICTIONARY: Final = frozenset({2, 8})
_DELTA_TEXT: Final = 7
"""Each text begins with a part of the one before it."""
_WIDTHS: Final = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
_CODECS: Final = {"LZ4": "lz4_raw"}
_PLACE: Final = 8
"""Bytes of a value beside itself: where a text or a list begins, whether it is there."""


class TooLarge(pa.ArrowInvalid):  # type: ignore[misc]  # pyarrow has no types
    """A file that becomes more than it may."""


def require_bounded(
    source: pa.NativeFile, metadata: pq.FileMetaData, names: Collection[str] | None = None, room: int = ROOM
) -> None:
    """Raise TooLarge where columns `names` (None: all) of the file become more than `room` bytes and `RATIO` times its
    own size; ArrowInvalid where a page's header cannot be read. Inflates nothing but dictionaries of texts.
    """
    limit = room + RATIO * source.size()
    leaves = [metadata.schema.column(place) for place in range(metadata.num_columns)]
    places = [place for place, leaf in enumerate(leaves) if names is None or _is_of(leaf.path, names)]
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [(group.column(place), leaves[place]) for group in groups for place in places]
    if sum(column.total_compressed_size for column, _ in columns) > source.size():
        raise pa.ArrowInvalid("its columns lie over one another")  # each would be walked through as often
    for exact in (False, True):  # dictionaries are looked into only where it matters
        total = 0
        for column, leaf in columns:
            total += _inflated(source, column, leaf, limit, exact)
            if total > limit:
                break
        else:
            return
    raise TooLarge(
        f"its columns become more than {limit:,} bytes when they are read, expected at most {RATIO} times the file's "
        f"size and {room:,} bytes"
    )


def _is_of(path: str, names: Collection[str]) -> bool:
    """Whether the column at `path` of the file's schema is one of `names`, or a part of one."""
    return any(path == name or path.startswith(f"{name}.") for name in names)


@dataclass(frozen=True)
class _Page:
    """A header: type of page, bytes inflated and as they lie there, from where; values and how they are coded."""

    type: int
    inflated: int
    deflated: int
    at: int
    values: int
    encoding: int


def _inflated(
    source: pa.NativeFile, column: pq.ColumnChunkMetaData, leaf: pq.ColumnSchema, limit: int, exact: bool
) -> int:
    """Bytes that a column becomes at most, with its largest page. exact: by the longest text of its dictionary.

    leaf: of the file's schema, by whose type values are read, whatever the column says of itself.
    """
    width = (leaf.length or 0) if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" else _WIDTHS.get(leaf.physical_type)
    total, largest, spread, values = 0, 0, 0, 0
    dictionary: _Page | None = None
    for page in _pages(source, column):
        largest = max(largest, page.inflated)
        if page.type == _INDEX:
            continue
        total += page.values * _PLACE
        if width is not None:
            total += page.values * width
        elif page.encoding == _DELTA_TEXT:
            total += page.values * page.inflated
        elif page.type != _DICTIONARY and page.encoding in _BY_DICTIONARY:
            spread += page.values
        else:
            total += page.inflated
        if page.type == _DICTIONARY:
            if dictionary is not None:
                raise pa.ArrowInvalid(f"{column.path_in_schema}: it has a second dictionary")
            dictionary = page
        else:
            values += page.values
        if largest + total > limit:
            return largest + total
    if values < column.num_values:
        raise pa.ArrowInvalid(
            f"{column.path_in_schema}: its pages hold {values:,} values, the footer says {column.num_values:,}"
        )
    if dictionary is not None and spread:
        longest = _longest(source, dictionary, column.compression) if exact else dictionary.inflated
        total += spread * longest
    return largest + total


def _pages(source: pa.NativeFile, column: pq.ColumnChunkMetaData) -> Iterator[_Page]:
    """Headers of a column's pages, one after the other."""
    at = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset:
        at = min(at, column.dictionary_page_offset)
    end = at + column.total_compressed_size
    if not 0 < at <= end <= source.size():
        raise pa.ArrowInvalid(f"{column.path_in_schema}: its pages are not in the file")
    while at < end:
        page = _page(source, at, end)
        yield page
        at = page.at + page.deflated


def _page(source: pa.NativeFile, at: int, end: int) -> _Page:
    size = HEADER
    while True:
        data = bytes(source.read_at(min(size, end - at), at))
        try:
            header, used = _struct(data, 0)
            break
        except IndexError:
            if len(data) == end - at or size >= MAX_HEADER:
                raise pa.ArrowInvalid(f"the header of a page at {at} does not end") from None
            size *= 16
    try:
        kind, inflated, deflated = header[_TYPE], header[_INFLATED], header[_DEFLATED]
        values, encoding = 0, 0
        if kind in _PART:
            values, encoding = header[_PART[kind]][1], header[_PART[kind]][_ENCODING[kind]]
        if min(kind, inflated, deflated, values) < 0 or at + used + deflated > end:
            raise ValueError
        return _Page(kind, inflated, deflated, at + used, values, encoding)
    except (KeyError, TypeError, ValueError):
        raise pa.ArrowInvalid(f"the header of a page at {at} is none") from None


def _longest(source: pa.NativeFile, page: _Page, compression: str) -> int:
    """Bytes of the longest text of a dictionary."""
    data = source.read_at(page.deflated, page.at)
    if compression != "UNCOMPRESSED":
        data = pa.Codec(_CODECS.get(compression, compression.lower())).decompress(data, page.inflated)
    view, at, longest = memoryview(data), 0, 0
    while at + 4 <= len(view):
        size = int.from_bytes(view[at : at + 4], "little")
        longest = max(longest, size)
        at += 4 + size
    return longest


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise pa.ArrowInvalid("the header of a page has a number of too many bytes")


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Numbers of 32 bits and structs of a struct by field, and where it ends. Raises IndexError where `data` ends
    before, ArrowInvalid for a field that is there twice.
    """
    found: dict[int, Any] = {}
    field = 0
    while True:
        head = data[at]
        at += 1
        if head == 0:
            return found, at
        kind, step = head & 15, head >> 4
        if step:
            field += step
        else:
            raw, at = _varint(data, at)
            field = (raw >> 1) ^ -(raw & 1)
        if kind in (1, 2):  # true, false
            continue
        if kind in (5, 12) and field in found:
            raise pa.ArrowInvalid(f"the header of a page has field {field} twice")
        if kind in (4, 6):
            _, at = _varint(data, at)
        elif kind == 5:
            raw, at = _varint(data, at)
            if raw >> 32:
                raise pa.ArrowInvalid(f"the header of a page has a number of more than 32 bits in field {field}")
            found[field] = (raw >> 1) ^ -(raw & 1)
        elif kind == 8:
            raw, at = _varint(data, at)
            at += raw
            if at > len(data):
                raise IndexError
        elif kind == 12 and depth < 8:
            found[field], at = _struct(data, at, depth + 1)
        else:
            raise pa.ArrowInvalid(f"the header of a page has a field of kind {kind}")
