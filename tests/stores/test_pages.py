"""A small Parquet file that becomes a large table is refused before it is inflated; what is honest is read."""

import contextlib
import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stores.cloud.storage import LocalStorage
from stores.columns import Columns
from stores.errors import StoreCorrupt
from stores.language import LANGUAGE, LanguageCache, LanguageRow, write_language
from stores.manifest import StoreObject, hash_object
from stores.pages import ROOM, TooLarge, require_bounded
from stores.schema import SEGMENTS
from stores.tables import table_bytes

N = 3_000_000


def packed(table: pa.Table, **options: object) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, store_schema=False, **options)
    return bytes(sink.getvalue())


def check(data: bytes, names: list[str] | None = None) -> None:
    source = pa.BufferReader(data)
    require_bounded(source, pq.ParquetFile(source).metadata, names)


def zeros() -> pa.Table:
    return pa.table({"x": pa.array([np.zeros(N, np.float32)], pa.list_(pa.float32()))})


def one_text() -> pa.Table:
    return pa.table({"x": pa.DictionaryArray.from_arrays(np.zeros(1200, np.int32), ["x" * 100_000]).cast("string")})


def alike_texts() -> pa.Table:
    return pa.table({"x": [f"{'x' * 400_000}{number:06d}" for number in range(250)]})


CODECS = ("none", "snappy", "gzip", "brotli", "lz4", "zstd")


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", CODECS)
def test_what_becomes_large_is_refused_and_its_other_columns_are_not(codec: str, version: str) -> None:
    table = one_text().append_column("y", pa.array(np.arange(1200)))
    data = packed(table, compression=codec, data_page_version=version)
    with pytest.raises(TooLarge, match=r"become more than .* bytes when they are read"):
        check(data)
    check(data, ["y"])


@pytest.mark.parametrize(
    ("made", "options"),
    [
        (zeros, {}),
        (zeros, {"use_dictionary": False}),
        (zeros, {"use_dictionary": False, "column_encoding": "BYTE_STREAM_SPLIT"}),
        (one_text, {"use_dictionary": False}),
        (alike_texts, {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"}),
        (alike_texts, {"use_dictionary": False, "column_encoding": "DELTA_LENGTH_BYTE_ARRAY"}),
    ],
)
def test_no_coding_hides_how_large_it_becomes(made, options: dict[str, object]) -> None:
    data = packed(made(), compression="zstd", **options)
    assert len(data) < ROOM // 100
    with pytest.raises(TooLarge):
        check(data)


def test_a_language_cache_that_becomes_large_is_one_error_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {name: pa.array(["x"]) for name in ("instruction", "encoder", "revision")}
    data = packed(pa.table({**texts, "embedding": zeros()["x"].combine_chunks()}, schema=LANGUAGE), compression="zstd")
    assert len(data) < 2000
    monkeypatch.delattr(pq.ParquetFile, "read")
    with pytest.raises(StoreCorrupt, match="here: not a readable Parquet file: its columns become more than"):
        LanguageCache.from_bytes(data, "here", N)


def segments(lists: int) -> pa.Table:
    numbers = {f.name: [1] for f in SEGMENTS if pa.types.is_integer(f.type)}
    texts = {f.name: ["a"] for f in SEGMENTS if pa.types.is_string(f.type)}
    places = {name: pa.array([np.zeros(lists, np.int64)]) for name in ("member_offset", "member_size")}
    return pa.table({**numbers, **texts, **places, "member_name": [["jpg"]]}).select(SEGMENTS.names).cast(SEGMENTS)


def test_lists_of_a_table_are_bounded_too(tmp_path: Path) -> None:
    (tmp_path / "segments.parquet").write_bytes(packed(segments(N), compression="zstd"))
    columns = Columns(LocalStorage(tmp_path), hash_object(tmp_path, "segments.parquet"), SEGMENTS, 1)
    assert columns["steps"].tolist() == [1]
    for read in (columns.table, lambda: columns.group(0, ["member_size"])):
        with pytest.raises(StoreCorrupt, match=r"segments.parquet: not a readable Parquet file: its columns become"):
            read()
    assert columns.group(0, ["key"])[0]["key"].to_pylist() == ["a"]


def test_tables_of_many_groups_of_different_texts_are_read(tmp_path: Path) -> None:
    """Whose dictionaries, multiplied by their rows, would be too much."""
    rows = 20_000
    table = segments(3)
    many = pa.concat_tables([table] * rows)
    keys = pa.array([f"{'a_long_name_of_a_task' * 4}-{number:06d}" for number in range(rows)])
    data = table_bytes(many.set_column(SEGMENTS.names.index("key"), "key", keys), SEGMENTS)
    (tmp_path / "s").write_bytes(data)
    item = StoreObject("s", len(data), hashlib.sha256(data).hexdigest())
    assert len(set(Columns(LocalStorage(tmp_path), item, SEGMENTS, rows)["key"])) == rows


@pytest.mark.parametrize("at", range(0, 60, 7))
def test_a_broken_header_is_an_error_of_arrow(at: int) -> None:
    data = bytearray(packed(pa.table({"x": ["a", "b"] * 50, "y": list(range(100))})))
    metadata = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata
    data[4 + at] ^= 0xFF
    with contextlib.suppress(pa.ArrowInvalid):  # what is flipped may not matter to the sizes
        require_bounded(pa.BufferReader(bytes(data)), metadata)


def test_an_honest_cache_is_read(tmp_path: Path) -> None:
    rows = [LanguageRow(f"do {n}", "e", "r", np.full(384, n, np.float32)) for n in range(2000)]
    write_language(tmp_path / "l", rows)
    assert len(LanguageCache.from_bytes((tmp_path / "l").read_bytes(), "l", 384).vectors) == 2000
