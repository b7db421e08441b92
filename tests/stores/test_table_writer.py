"""A table that cannot be written: one error, and nothing more when Python forgets the writer."""

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stores.disk.trouble import describe
from stores.tables import ParquetWriter, TableWriter

ROWS = pa.table({"a": np.random.default_rng(0).integers(1 << 62, size=100_000)})


def write_all(writer: ParquetWriter | TableWriter, add: Callable[[pa.Table], None], times: int) -> None:
    for _ in range(times):
        add(ROWS)
    writer.close()


def test_a_full_disk_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)

    def write() -> None:
        writer = ParquetWriter(Path("/dev/full"), ROWS.schema)  # the system's own file that takes nothing
        write_all(writer, writer.write_table, 1)

    with pytest.raises(OSError, match="No space left") as told:
        write()
    assert describe(told.value).startswith("/dev/full: no space left to write it")
    del told
    gc.collect()
    assert not said


def test_a_sink_that_fails_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)

    def refuse(piece: bytes) -> None:
        raise OSError(122, "Disk quota exceeded", "a.parquet")

    writer = TableWriter(refuse, ROWS.schema)
    with pytest.raises(OSError, match="Disk quota exceeded") as told:
        write_all(writer, writer.add, 8)
    del writer, told
    gc.collect()
    assert not said
