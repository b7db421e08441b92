"""Parquet files of a LeRobot dataset that become far larger than they are: refused by name, never inflated."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.sources.lerobot import metadata, rows
from stores.errors import SourceError

HUGE = 6_000_000


def _tasks(root: Path) -> None:
    table = pa.table({"task_index": pa.array(np.zeros(HUGE, np.int64)), "task": pa.array(["x"] * HUGE)})
    pq.write_table(table, root / metadata.TASKS, row_group_size=HUGE)
    metadata.read_tasks(root)


def _rows(root: Path) -> None:
    pq.write_table(
        pa.table({name: pa.array(np.zeros(HUGE), pa.float32()) for name in rows.INDEX}), root / "rows.parquet"
    )
    rows.DataFile(root, "rows.parquet", "episode_000000")


def _numbers(root: Path) -> None:
    places = {name: pa.array([0, 1], pa.float32()) for name in rows.INDEX}
    huge = pa.array([np.zeros(HUGE, np.float32), [0.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({**places, "action": huge}), root / "rows.parquet")
    file = rows.DataFile(root, "rows.parquet", "episode_000000")
    for read in (file.numbers([("action", 1)], 0, 2), next(file.scan([("action", 1)]))):
        assert read


@pytest.mark.parametrize("read", [_tasks, _rows, _numbers])
def test_what_becomes_too_large_is_refused(
    read: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "ROOM", 2**24)
    (tmp_path / "meta").mkdir()
    with pytest.raises(SourceError, match=r"\.parquet: cannot be read: its columns become more than"):
        read(tmp_path)
