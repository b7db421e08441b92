"""A worker that outlives its driver finishes when another run has long committed: nothing of that run changes."""

from pathlib import Path
from typing import Any

import h5py
import pytest

import pipelines.ingest.driver
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from pipelines.ingest.record import decode_record
from pipelines.ingest.unit import UnitTask
from pipelines.sources.reading import make_here
from stores.reader import Store
from stores.verify import verify_store
from tests.pipelines.make_hdf5 import write_suite
from tests.stores.faults import read_tree


def test_what_a_late_worker_leaves_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, root = write_suite(tmp_path / "source"), tmp_path / "store"
    config = IngestConfig("toy", source, root, language="hashed")
    late: list[UnitTask] = []

    def lost(task: UnitTask) -> Any:
        late.append(task)
        raise ConnectionError("the driver is gone")

    with monkeypatch.context() as patch:
        patch.setattr(pipelines.ingest.driver, "make_here", lost)
        with pytest.raises(ConnectionError):
            ingest(config, isolated=False)
    # What the worker has read already is not what is in the source when the next run reads it.
    old = (source / late[0].unit.file).read_bytes()
    with h5py.File(source / late[0].unit.file, "r+") as file:
        file["data/demo_0/actions"][4, 0] = 0.123
    new = (source / late[0].unit.file).read_bytes()
    ingest(config, isolated=False)
    before = read_tree(root)
    (source / late[0].unit.file).write_bytes(old)
    record = decode_record(make_here(late[0]))
    (source / late[0].unit.file).write_bytes(new)
    after = read_tree(root)
    assert {name: data for name, data in after.items() if name in before} == before
    (left,) = set(after) - set(before)
    assert after[left] != before[record["shard"]["path"]]
    assert "interrupted writer" in verify_store(root)[0].problem
    store = Store.open(root)
    assert all(len(store.decode_segment(i)) for i in range(len(store)))
    with h5py.File(source / late[0].unit.file, "r+") as file:
        file["data/demo_0/actions"][4, 0] = 0.456
    ingest(config, isolated=False)  # the next writer removes it
    assert verify_store(root) == []
