"""Parquet with reproducible bytes, and the consistency of the two index tables.

The same rows give the same bytes under the same pyarrow: fixed writer options, no pandas metadata, no timestamps.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stores.disk import durable
from stores.errors import StoreCorrupt, UsageError
from stores.layout import EPISODES_FILE, SEGMENTS_FILE
from stores.pages import require_bounded

ROW_GROUP: Final = 1024
"""Rows of a row group, which a writer holds in memory: of segments, two MB."""
PIECE: Final = 1 << 20
"""Bytes of a table that are written at once."""


class ParquetWriter(pq.ParquetWriter):  # type: ignore[misc]  # pyarrow has no types
    """Errors of the system name the file; when Python forgets a writer that could not write, nothing is said again."""

    def __init__(self, where: Path | pa.NativeFile, schema: pa.Schema, **options: Any) -> None:
        self._place = where
        with self._named():
            super().__init__(where, schema, **options)

    def write_table(self, table: pa.Table, row_group_size: int | None = None) -> None:
        """Append `table`."""
        with self._named():
            super().write_table(table, row_group_size)

    def close(self) -> None:
        """Write what is left and the footer."""
        with self._named():
            super().close()

    def __del__(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().__del__()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(self._place, Path):
                error.filename = error.filename or str(self._place)
            raise


class TableWriter:
    """Rows that come in pieces -> a Parquet file in row groups of `ROW_GROUP`, however the pieces are cut.

    Holds the rows of one row group, and the file's bytes until `PIECE` of them go to `sink` at once.
    """

    def __init__(self, sink: Callable[[bytes], object], schema: pa.Schema) -> None:
        self._sink, self._schema = _Pieces(sink), schema
        self._held: list[pa.Table] = []
        self._rows = 0
        self._writer = ParquetWriter(
            pa.PythonFile(self._sink, mode="w"),
            schema.remove_metadata(),
            version="2.6",
            data_page_version="1.0",
            compression="zstd",
            compression_level=3,
            use_dictionary=True,
            write_statistics=True,
            store_schema=False,
            write_page_checksum=True,
        )

    def add(self, table: pa.Table) -> None:
        """Append rows. Raises UsageError when the columns are not those of the schema."""
        if table.schema.names != self._schema.names:
            raise UsageError(f"table: expected columns {self._schema.names}, got {table.schema.names}")
        self._held.append(table.cast(self._schema).replace_schema_metadata(None))
        self._rows += len(table)
        while self._rows >= ROW_GROUP:
            self._write(ROW_GROUP)

    def close(self) -> None:
        """Write what is left and the footer."""
        if self._rows:
            self._write(self._rows)
        self._writer.close()
        self._sink.flush_all()

    def _write(self, rows: int) -> None:
        held = pa.concat_tables(self._held)
        # One chunk a column: where pages end depends on the rows alone.
        self._writer.write_table(held.slice(0, rows).combine_chunks(), row_group_size=ROW_GROUP)
        self._rows -= rows
        self._held = [held.slice(rows)] if self._rows else []


class _Pieces:
    """A file for pyarrow, which hands over many small pieces; passes large ones on."""

    closed = False

    def __init__(self, sink: Callable[[bytes], object]) -> None:
        self._sink, self._pending = sink, bytearray()

    def write(self, data: bytes) -> int:
        self._pending += data
        if len(self._pending) >= PIECE:
            self.flush_all()
        return len(data)

    def flush(self) -> None:
        """Nothing before there is enough."""

    def close(self) -> None:
        """The sink is its owner's to close."""

    def flush_all(self) -> None:
        """Hand over what is left."""
        if self._pending:
            self._sink(bytes(self._pending))
            self._pending.clear()


@contextlib.contextmanager
def table_writer(path: Path | str, schema: pa.Schema) -> Iterator[TableWriter]:
    """A table at `path` that is written as its rows come: whole after a clean exit, what it was before otherwise."""
    with durable.atomic(path) as file:
        writer = TableWriter(file.write, schema)
        yield writer
        writer.close()


def table_bytes(table: pa.Table, schema: pa.Schema) -> bytes:
    """`table` as a Parquet file. Raises UsageError when its columns are not those of `schema`."""
    pieces: list[bytes] = []
    writer = TableWriter(pieces.append, schema)
    writer.add(table)
    writer.close()
    return b"".join(pieces)


def write_table(path: Path | str, rows: list[dict[str, Any]] | pa.Table, schema: pa.Schema) -> None:
    """Write rows (dicts with the schema's names, or a table) atomically and durably."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema=schema)
    durable.write_bytes(path, table_bytes(table, schema))


def parse_table(data: bytes, schema: pa.Schema, where: str) -> pa.Table:
    """Inverse of `table_bytes`. Raises StoreCorrupt naming `where`, also where it would become too large."""
    try:
        source = pa.BufferReader(data)
        file = pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False)
        require_bounded(source, file.metadata)
        table = file.read(use_threads=False)
        if table.schema.names != schema.names:
            raise StoreCorrupt(f"{where}: expected columns {schema.names}, got {table.schema.names}")
        return table.cast(schema)
    except (pa.ArrowException, OSError) as error:
        raise StoreCorrupt(f"{where}: not a readable Parquet file: {error}") from error


Column = Mapping[str, NDArray[Any]]


def check_tables(
    episodes: Column, segments: Column, splits: Sequence[str], counts: dict[str, int], window: int, where: str
) -> None:
    """Raise StoreCorrupt unless episodes and segments tile each other, and agree with the manifest's counts.

    Frames of an episode are rows first_frame … + frames of frames.zarr; its segments are rows first_segment … +
    segments, whose steps follow one another without gap. splits: the distinct values of that column. window: most steps
    of a segment.
    """
    ep, seg = episodes, segments
    starts = _starts(ep["segments"])
    rules = {
        "episodes are numbered from 0": _counts_up(ep["episode"]),
        "segments are numbered from 0": _counts_up(seg["segment"]),
        "first_frame continues from the episode before": np.array_equal(ep["first_frame"], _starts(ep["frames"])),
        "first_segment continues from the episode before": np.array_equal(ep["first_segment"], starts),
        "segments name their episode": _repeats(seg["episode"], ep["segments"]),
        "segments tile the steps of their episode": _tile(seg["first_step"], seg["steps"], starts),
        "frames are steps or steps + 1": bool(np.isin(ep["frames"] - ep["steps"], (0, 1)).all()),
        f"segments have 1 to {window} steps": bool(((seg["steps"] >= 1) & (seg["steps"] <= window)).all()),
        "observations of a segment are steps or steps + 1": bool(
            np.isin(seg["observations"] - seg["steps"], (0, 1)).all()
        ),
        "split is train or val": set(splits) <= {"train", "val"},
        "counts agree with the manifest": [counts[k] for k in ("episodes", "frames", "steps", "segments")]
        == [len(ep["episode"]), ep["frames"].sum(), ep["steps"].sum(), len(seg["episode"])],
        "segments hold every step": int(seg["steps"].sum()) == int(ep["steps"].sum()),
    }
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise StoreCorrupt(f"{where}: {EPISODES_FILE} and {SEGMENTS_FILE} contradict each other: not so: {broken}")


def _counts_up(values: NDArray[np.int64]) -> bool:
    return len(values) == 0 or (values[0] == 0 and bool((np.diff(values) == 1).all()))


def _repeats(episode: NDArray[np.int64], segments: NDArray[np.int64]) -> bool:
    if len(segments) == 0 or segments.min() < 0 or segments.sum() != len(episode):
        return False
    return np.array_equal(episode, np.repeat(np.arange(len(segments)), segments))


def _tile(first: NDArray[np.int64], steps: NDArray[np.int64], starts: NDArray[np.int64]) -> bool:
    """Whether each step follows the one before; at `starts` an episode begins."""
    after = np.empty_like(first)
    after[1:] = first[:-1] + steps[:-1]
    known = starts[(starts >= 0) & (starts < len(first))]
    after[known] = 0
    return np.array_equal(first, after)


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.cumsum(lengths) - lengths
