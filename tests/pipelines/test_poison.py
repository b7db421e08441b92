"""Files that crash or hang the process that reads them: quarantined, with the reason; everything else is ingested.

HDF5 is made to fail where it would: in the child, while a demonstration's images are read.
"""

import os
import signal
from pathlib import Path
from typing import Any

import h5py
import pytest

from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import IngestSummary, ingest
from pipelines.sources import hdf5, libero_header
from pipelines.sources import sandbox as isolation
from stores.errors import SourceError, StoreMissing
from stores.reader import Store
from stores.verify import verify_store
from tests.pipelines.make_hdf5 import write_suite
from tests.stores.faults import read_tree

READ_ROWS = hdf5.read_rows


def _crash(data: hdf5.Rows, *args: Any) -> Any:
    """`read_rows`, but the second demonstration of task 1 crashes."""
    if "cup_1" in h5py.h5f.get_name(data.id).decode() and "demo_1/obs/agentview" in data.name:
        os.kill(os.getpid(), signal.SIGSEGV)
    return READ_ROWS(data, *args)


def _hang(data: hdf5.Rows, *args: Any) -> Any:
    if "cup_1" in h5py.h5f.get_name(data.id).decode() and "demo_1/obs/agentview" in data.name:
        while True:
            pass
    return READ_ROWS(data, *args)


@pytest.fixture(autouse=True)
def _fresh_children(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Children started in a test have its patches, and no later ones."""
    isolation.end_thread_reader()
    monkeypatch.setattr(isolation, "SILENCE_SECONDS", 0.5)
    yield
    isolation.end_thread_reader()


def run(source: Path, out: Path, **options: Any) -> IngestSummary:
    return ingest(IngestConfig("toy", source, out, language="hashed"), **options)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [(_crash, "the process reading it died of SIGSEGV"), (_hang, "no progress for 0.5 seconds")],
    ids=["crash", "hang"],
)
def test_a_poison_demonstration_is_quarantined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Any, reason: str
) -> None:
    source = write_suite(tmp_path / "source", tasks=3, demos=3)
    monkeypatch.setattr(hdf5, "read_rows", failure)
    summary = run(source, tmp_path / "store")
    assert (summary.episodes, summary.quarantined) == (8, 1)
    assert summary.quarantine[0]["demo"] == "demo_1"
    assert reason in summary.quarantine[0]["reason"]
    assert verify_store(tmp_path / "store") == []
    before = read_tree(tmp_path / "store")
    again = run(source, tmp_path / "store")
    assert (again.changed, again.units_reused) == (False, 3)
    assert read_tree(tmp_path / "store") == before


def test_a_file_whose_header_crashes_is_quarantined_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_suite(tmp_path / "source", tasks=2, demos=2)
    is_hdf5 = h5py.is_hdf5

    def crash(path: Path) -> bool:
        if "cup_0" in str(path):
            os.abort()
        return bool(is_hdf5(path))

    monkeypatch.setattr(h5py, "is_hdf5", crash)
    summary = run(source, tmp_path / "store")
    assert (summary.episodes, summary.quarantined) == (2, 1)
    assert summary.quarantine[0] == {
        "file": "put_the_cup_0_away_demo.hdf5",
        "demo": "",
        "reason": "put_the_cup_0_away_demo.hdf5: the process reading it died of SIGABRT",
    }


def test_strict_makes_quarantine_an_error_and_keeps_what_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_suite(tmp_path / "source", tasks=2, demos=2)
    monkeypatch.setattr(hdf5, "read_rows", _crash)
    monkeypatch.setattr(libero_header, "gather", lambda *_: ((), (), []))  # else it is refused before anything is made
    with pytest.raises(SourceError, match=r"--strict: 1 demonstrations cannot be used: .*demo_1.*SIGSEGV"):
        run(source, tmp_path / "store", strict=True)
    with pytest.raises(StoreMissing):
        Store.open(tmp_path / "store")
    assert run(source, tmp_path / "store").units_reused == 2
    (source / "text.hdf5").write_text("not HDF5")
    with pytest.raises(SourceError, match=r"--strict.*text\.hdf5"):
        run(source, tmp_path / "other", strict=True)
    assert not (tmp_path / "other").exists()
