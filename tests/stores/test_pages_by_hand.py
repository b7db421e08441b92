"""Parquet files written by hand, whose headers say one thing to pyarrow and another to who looks less closely."""

import struct
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stores.pages import TooLarge, require_bounded

I32, I64, TEXT, LIST, STRUCT = 5, 6, 8, 9, 12
"""Types of fields in Thrift's compact protocol."""
BOOLEAN, BYTE_ARRAY = 0, 6
PLAIN, DICTIONARY = 0, 8
N = 2000
LONG = b"a" * 100_000
Field = tuple[int, int, Any]


def varint(number: int) -> bytes:
    out = b""
    while number >= 128:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def thrift(*fields: Field) -> bytes:
    """A struct of (field, type, value); of a list, the value is (type, items)."""
    out, last = b"", 0
    for number, kind, value in fields:
        step = number - last
        out += bytes([step << 4 | kind]) if 0 < step < 16 else bytes([kind]) + varint(number * 2)
        out, last = out + _value(kind, value), number
    return out + b"\0"


def _value(kind: int, value: Any) -> bytes:
    if kind in (I32, I64):
        return varint(value * 2)
    if kind == TEXT:
        return varint(len(value)) + value
    if kind == LIST:
        return bytes([len(value[1]) << 4 | value[0]]) + b"".join(_value(value[0], item) for item in value[1])
    return thrift(*value)


def dictionary(*texts: bytes) -> bytes:
    body = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    counts = (1, I32, len(texts)), (2, I32, PLAIN)
    return thrift((1, I32, 2), (2, I32, len(body)), (3, I32, len(body)), (7, STRUCT, counts)) + body


def same(count: int, more: Iterable[Field] = (), kind: int = 0) -> bytes:
    """A page of `count` times the first text of the dictionary."""
    body = b"\1" + varint(count * 2) + b"\0"
    fields = (1, I32, count), (2, I32, DICTIONARY), (3, I32, 3), (4, I32, 3), *more
    return thrift((1, I32, kind), (2, I32, len(body)), (3, I32, len(body)), (5, STRUCT, fields)) + body


def file(pages: bytes, values: int, told: int = BYTE_ARRAY, behind: bytes = b"", writer: bytes = b"x") -> bytes:
    """told: the column's type as the column says it; in the schema it is one of texts."""
    size = len(pages)
    after = 4 + len(dictionary(LONG))
    column = ((1, I32, told), (2, LIST, (I32, [PLAIN, DICTIONARY])), (3, LIST, (TEXT, [b"x"])), (4, I32, 0),
              (5, I64, values), (6, I64, size), (7, I64, size), (9, I64, after), (11, I64, 4))  # fmt: skip
    group = ((1, LIST, (STRUCT, [((2, I64, 0), (3, STRUCT, column))])), (2, I64, size), (3, I64, values))
    schema = [((4, TEXT, b"schema"), (5, I32, 1)), ((1, I32, BYTE_ARRAY), (3, I32, 0), (4, TEXT, b"x"))]
    footer = thrift(
        (1, I32, 1), (2, LIST, (STRUCT, schema)), (3, I64, values), (4, LIST, (STRUCT, [group])), (6, TEXT, writer)
    )
    return b"PAR1" + pages + behind + footer + struct.pack("<I", len(footer)) + b"PAR1"


def check(data: bytes) -> None:
    require_bounded(pa.BufferReader(data), pq.ParquetFile(pa.BufferReader(data)).metadata)


LIES = {
    "nothing": file(dictionary(LONG) + same(N), N),
    "the column's type": file(dictionary(LONG) + same(N), N, told=BOOLEAN),
    "a second number of another type": file(dictionary(LONG) + same(N, [(1, I64, 1)]), N),
    "a second coding of another type": file(dictionary(LONG) + same(N, [(2, I64, PLAIN)]), N),
    "a type of page beyond 32 bits": file(dictionary(LONG) + same(N, kind=1 << 31), N),
    "a second dictionary": file(dictionary(LONG) + same(N) + dictionary(b"a") + same(N), 2 * N),
    "a page behind the column": file(
        dictionary(LONG) + same(1), N + 1, behind=same(N), writer=b"parquet-mr version 1.2.8"
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_no_header_makes_a_column_of_texts_look_small(lie: str) -> None:
    data = LIES[lie]
    assert len(data) < 110_000
    with pytest.raises(pa.ArrowInvalid) as error:
        check(data)
    assert lie != "nothing" or isinstance(error.value, TooLarge)


def test_a_small_one_is_read() -> None:
    data = file(dictionary(LONG) + same(3), 3)
    check(data)
    assert pq.read_table(pa.BufferReader(data))["x"].to_pylist() == [LONG] * 3


def test_columns_that_lie_over_one_another_are_refused_before_their_pages_are_walked_through() -> None:
    data = file(dictionary(LONG) + same(3), 3)
    groups = pq.ParquetFile(pa.BufferReader(data)).metadata
    groups.append_row_groups(groups)
    with pytest.raises(pa.ArrowInvalid, match="lie over one another"):
        require_bounded(pa.BufferReader(data), groups)
