"""A table of a store as columns: each is read when it is asked for, and no other; text is held once a distinct value.

A million segments have 38 million members, whose names and places fill gigabytes; training uses eight numbers of a
segment. So a table's file is hashed once, in pieces, and then read column by column, a row group at a time.
"""

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stores.cloud.storage import Storage
from stores.errors import StoreCorrupt
from stores.manifest import StoreObject, hash_stream
from stores.pages import require_bounded
from stores.printable import word

ROW_BYTES: Final = 1 << 16
"""Bytes of a row, unpacked, beyond which a table's file declares too much; a segment of 99 frames needs 8 KB."""


class Columns(Mapping[str, NDArray[Any]]):
    """Columns of the table in object `item`, checked against its hash: numbers as NumPy arrays, text as object arrays
    that share their strings. Columns of lists are left out (`table` has them). Usable from any thread.

    rows: how many the manifest says. Raises StoreMissing, or StoreCorrupt naming the file.
    """

    def __init__(self, storage: Storage, item: StoreObject, schema: pa.Schema, rows: int) -> None:
        self.where = f"{storage.root}: {item.path}"
        self._schema, self._guard = schema, threading.Lock()
        self._known: dict[str, NDArray[Any]] = {}
        self._codes: dict[str, tuple[NDArray[np.int32], list[str]]] = {}
        path = storage.local_path(item.path)
        self._data = None if path is not None else storage.read(item.path)
        self._storage, self._item = storage, item
        self._mark = None if path is None else _mark(path)
        if self._data is None:
            size, digest = hash_stream(storage.pieces(item.path))
        else:
            size, digest = len(self._data), hashlib.sha256(self._data).hexdigest()
        if size != item.bytes:
            raise StoreCorrupt(f"{self.where}: expected {item.bytes} bytes, got {size}")
        if digest != item.sha256:
            raise StoreCorrupt(
                f"{self.where}: its content is not what was written (sha256 differs from the manifest); "
                f"run `statevla verify {word(storage.root)}`, then ingest again"
            )
        self._path = path
        self._bounded: set[str] = set()
        self._metadata: pq.FileMetaData | None = None
        found = self._metadata = self._file().metadata
        if found.schema.to_arrow_schema().names != schema.names:
            raise StoreCorrupt(f"{self.where}: expected columns {schema.names}, got other ones")
        groups = (found.row_group(group).total_byte_size for group in range(found.num_row_groups))
        if found.num_rows != rows or sum(groups) > rows * ROW_BYTES + ROW_BYTES:
            raise StoreCorrupt(f"{self.where}: expected {rows} rows of at most {ROW_BYTES} bytes as the manifest says")
        self.rows = rows

    def __getitem__(self, name: str) -> NDArray[Any]:
        with self._guard:
            if name not in self._known:
                self._known[name] = self._column(name)
            return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in self._schema if not pa.types.is_list(field.type))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def codes(self, name: str) -> tuple[NDArray[np.int32], list[str]]:
        """A text column as (row of the distinct values, distinct values in order of appearance)."""
        with self._guard:
            return self._text(name)

    def forget(self, *names: str) -> None:
        """Let go of columns that will not be asked for soon."""
        with self._guard:
            for name in names:
                self._known.pop(name, None)

    def group(self, row: int, names: list[str]) -> tuple[pa.Table, int]:
        """(columns `names`, lists too, of the row group that holds `row`; the row's place in it)."""
        with self._reading():
            self._require_bounded(names)
            file, start = self._file(), 0
            for number in range(file.num_row_groups):
                count = file.metadata.row_group(number).num_rows
                if row < start + count:
                    return file.read_row_group(number, columns=names, use_threads=False), row - start
                start += count
        raise IndexError(row)

    def table(self) -> pa.Table:
        """All of it, lists too; a kilobyte a segment."""
        with self._reading():
            self._require_bounded(self._schema.names)
            return self._file().read(use_threads=False).cast(self._schema)

    def _column(self, name: str) -> NDArray[Any]:
        kind = self._schema.field(name).type
        if pa.types.is_list(kind):
            raise KeyError(name)
        if pa.types.is_string(kind):
            codes, texts = self._text(name)
            return np.array(texts, dtype=object)[codes] if texts else np.empty(0, object)
        with self._reading():
            self._require_bounded([name])
            column = self._file().read(columns=[name], use_threads=False)[name]
            self._require_values(name, column)
            if column.type != kind:
                column = column.cast(kind)
            values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
            return values

    def _text(self, name: str) -> tuple[NDArray[np.int32], list[str]]:
        if name not in self._codes:
            with self._reading():
                self._require_bounded([name])
                column = self._file(read_dictionary=[name]).read(columns=[name], use_threads=False)[name]
                self._require_values(name, column)
                whole = column.combine_chunks() if len(column) else pa.array([], pa.string()).dictionary_encode()
                if isinstance(whole, pa.ChunkedArray):
                    whole = whole.unify_dictionaries().combine_chunks()
                if not pa.types.is_dictionary(whole.type):
                    whole = whole.dictionary_encode()
                self._codes[name] = (whole.indices.to_numpy(zero_copy_only=False), whole.dictionary.to_pylist())
        return self._codes[name]

    def _require_values(self, name: str, column: pa.ChunkedArray) -> None:
        if column.null_count:
            raise StoreCorrupt(f"{self.where}: column {name}: {column.null_count} of {len(column)} values are missing")

    def _file(self, read_dictionary: list[str] | None = None) -> pq.ParquetFile:
        with self._reading():
            return pq.ParquetFile(
                self._source(),
                metadata=self._metadata,
                read_dictionary=read_dictionary,
                page_checksum_verification=True,
                pre_buffer=False,
            )

    def _source(self) -> pa.NativeFile:
        if self._path is None:
            return pa.BufferReader(self._data)
        self._require_same(self._path)
        return pa.OSFile(self._path)

    def _require_same(self, path: str) -> None:
        """Columns that are read later are of the table that was hashed, not of one that an ingest has since put in its
        place. One that was copied or touched is hashed again.
        """
        found = _mark(path)
        if found == self._mark:
            return
        if hash_stream(self._storage.pieces(self._item.path)) != (self._item.bytes, self._item.sha256):
            raise StoreCorrupt(f"{self.where}: it was written again since this store was opened; open the store again")
        self._mark = found

    def _require_bounded(self, names: list[str]) -> None:
        """Before columns are read for the first time: what they become is bounded."""
        fresh = set(names) - self._bounded
        if fresh:
            require_bounded(self._source(), self._metadata, fresh)
            self._bounded |= fresh

    def _reading(self) -> "_Reading":
        return _Reading(self.where)


def _mark(path: str) -> tuple[int, int] | None:
    """What tells a file from one that was put in its place; no number of its node, which some file systems of networks
    give anew. None where it is gone: who reads it says so.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


class _Reading:
    """Turns what pyarrow raises inside into StoreCorrupt."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, pa.ArrowException | OSError):
            raise StoreCorrupt(f"{self._where}: not a readable Parquet file: {error}") from error
