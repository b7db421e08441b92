"""Rows of a LeRobotDataset: where an episode's are, whether they are what ``meta/`` says, and their numbers.

Legend: T rows of an episode, N rows of a file, D numbers of a column.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.sources import pulse
from pipelines.sources.lerobot.metadata import Info, Row, parquet, reporting, require_bounded, require_file
from stores.errors import SourceError

MAX_ROWS: Final = 1_000_000
"""Rows of an episode; at 30 Hz, nine hours."""
BATCH: Final = 65_536
"""Rows of numbers held at once when a whole file is gone through."""
PICTURES: Final = 16
CLOCK: Final = 1e-4
"""Seconds that a timestamp may be off, beyond the rounding of a float32: what LeRobot allows."""
INDEX: Final = {"episode_index": np.int64, "frame_index": np.int64, "index": np.int64, "task_index": np.int64,
                "timestamp": np.float64}  # fmt: skip


class DataFile:
    """A Parquet file of rows: its columns of places at once, the others by range of rows."""

    def __init__(self, root: Path, path: str, needed_by: str) -> None:
        self.path = path
        with reporting(path):
            require_file(root / path, needed_by)
            self._file = parquet(root / path)
            self._require(INDEX)
            self._place, self._bounded = root / path, set(INDEX)
            require_bounded(self._place, self._file, list(INDEX))
            table = self._file.read(columns=list(INDEX), use_threads=False)
            self.columns = {name: _vector(table[name], name).astype(kind) for name, kind in INDEX.items()}
            counts = [self._file.metadata.row_group(n).num_rows for n in range(self._file.num_row_groups)]
            self._ends = np.cumsum([0, *counts])
        episodes = self.columns["episode_index"]
        edges = np.flatnonzero(np.concatenate([[len(episodes) > 0], episodes[1:] != episodes[:-1]])).tolist()
        self.places: dict[int, list[tuple[int, int]]] = {}
        """By episode, (first, end) of its rows here; more than one where they do not lie together."""
        for first, end in zip(edges, [*edges[1:], len(episodes)], strict=True):
            self.places.setdefault(int(episodes[first]), []).append((int(first), int(end)))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def fault(self, row: Row, info: Info, tasks: Mapping[int, str]) -> str | None:
        """What of the episode's rows is not as ``meta/`` says, in words; None: nothing."""
        found = self.places.get(row.index, [])
        if len(found) != 1:
            return f"{self.path}: expected its rows together, got {len(found) or 'no'} pieces of it"
        ((first, end),) = found
        if end - first != row.length:
            return f"length says {row.length} rows, {self.path} has {end - first} of it"
        if not 2 <= row.length <= MAX_ROWS:
            return f"length: expected 2 to {MAX_ROWS:,} rows, got {row.length}"
        part = {name: values[first:end] for name, values in self.columns.items()}
        start, stop = int(part["index"][0]), int(part["index"][-1]) + 1
        if (row.start, row.stop) != (start, stop):
            return (
                f"dataset_from_index {row.start} to dataset_to_index {row.stop}, but its rows in {self.path} are "
                f"{start} to {stop}"
            )
        count = np.arange(row.length)
        for name, wanted in (("index", row.start + count), ("frame_index", count)):
            wrong = np.flatnonzero(part[name] != wanted)
            if len(wrong):
                at = wrong[0]
                return f"{self.path}, row {at} of it: {name} {part[name][at]}, expected {wanted[at]}"
        times = count / info.fps
        off = np.abs(part["timestamp"] - times) > CLOCK + np.spacing(times.astype(np.float32))
        if off.any():
            at = int(off.argmax())
            return (
                f"{self.path}, row {at} of it: timestamp {part['timestamp'][at]:.6g} s, expected {times[at]:.6g} s at "
                f"{info.fps:g} frames a second"
            )
        return _task_fault(row, set(part["task_index"].tolist()), tasks)

    def numbers(self, keys: Sequence[tuple[str, int]], first: int, end: int) -> dict[str, NDArray[np.float32]]:
        """Rows first ... end of columns (key, width), float32 [T, D] each. Raises SourceError."""
        with reporting(self.path):
            self._require_bounded(keys)
            groups = self._groups(first, end)
            table = self._file.read_row_groups(groups, columns=[key for key, _ in keys], use_threads=False)
            shift = int(self._ends[groups[0]])
            table = table.slice(first - shift, end - first)
            return {key: matrix(table[key], key, width).astype(np.float32) for key, width in keys}

    def scan(self, keys: Sequence[tuple[str, int]]) -> Iterator[dict[str, NDArray[Any]]]:
        """All rows of columns (key, width), in pieces: [N, D] each. Raises SourceError."""
        with reporting(self.path):
            self._require_bounded(keys)
            columns = [key for key, _ in keys]
            for batch in self._file.iter_batches(batch_size=BATCH, columns=columns, use_threads=False):
                pulse.beat()
                table = pa.table(batch)
                yield {key: matrix(table[key], key, width) for key, width in keys}

    def pictures(self, key: str, first: int, end: int) -> Iterator[bytes]:
        """Files of pictures of rows first ... end of column `key`, one after the other. Raises SourceError."""
        with reporting(self.path):
            self._require([key])
            groups = self._groups(first, end)
            at = int(self._ends[groups[0]])
            for batch in self._file.iter_batches(
                batch_size=PICTURES, row_groups=groups, columns=[key], use_threads=False
            ):
                column = batch.column(0)
                for number in range(max(first - at, 0), min(end - at, len(column))):
                    value = column[number].as_py()
                    data = value.get("bytes") if isinstance(value, dict) else value
                    if not isinstance(data, bytes):
                        raise SourceError(
                            f"{key}, row {at + number}: expected a picture in the file, got a path or none"
                        )
                    yield data
                at += len(column)

    def _require(self, columns: Iterable[str]) -> None:
        missing = sorted(set(columns) - set(self._file.schema_arrow.names))
        if missing:
            raise SourceError(f"columns {', '.join(missing)} are missing")

    def _require_bounded(self, keys: Sequence[tuple[str, int]]) -> None:
        self._require(key for key, _ in keys)
        fresh = {key for key, _ in keys} - self._bounded
        if fresh:
            require_bounded(self._place, self._file, sorted(fresh))
            self._bounded |= fresh

    def _groups(self, first: int, end: int) -> list[int]:
        low = int(np.searchsorted(self._ends, first, side="right")) - 1
        high = int(np.searchsorted(self._ends, end, side="left"))
        return list(range(low, max(high, low + 1)))


def _task_fault(row: Row, numbers: set[int], tasks: Mapping[int, str]) -> str | None:
    if len(numbers) != 1 or len(row.tasks) != 1:
        return f"{max(len(numbers), len(row.tasks))} tasks in one episode ({', '.join(row.tasks)}), expected one"
    (number,) = numbers
    if tasks.get(number) != row.tasks[0]:
        return f"its rows have task_index {number}, {tasks.get(number)!r}; its tasks are {list(row.tasks)}"
    return None


def _vector(column: pa.ChunkedArray, name: str) -> NDArray[Any]:
    if column.null_count or not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise SourceError(f"{name}: expected numbers, got {column.type} with {column.null_count} nulls")
    values: NDArray[Any] = column.to_numpy()
    return values


def matrix(column: pa.ChunkedArray, name: str, width: int) -> NDArray[Any]:
    """A column of lists of `width` numbers, or of numbers where that is 1 -> [N, width]. Raises SourceError."""
    if pa.types.is_floating(column.type) and width == 1:
        return _vector(column, name)[:, None]
    kind = column.type
    listed = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)
    if not listed or column.null_count or not pa.types.is_floating(kind.value_type):
        raise SourceError(f"{name}: expected lists of {width} numbers, got {kind} with {column.null_count} nulls")
    pieces = [chunk.flatten() for chunk in column.chunks]
    values = np.concatenate([piece.to_numpy(zero_copy_only=False) for piece in pieces] or [np.empty(0, np.float32)])
    lengths = {int(n) for chunk in column.chunks for n in np.unique(chunk.value_lengths().to_numpy())}
    if lengths - {width} or len(values) != len(column) * width:
        raise SourceError(f"{name}: expected lists of {width} numbers, got lists of {sorted(lengths)[:4]}")
    return values.reshape(-1, width)
