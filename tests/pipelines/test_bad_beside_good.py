"""A bad file beside a good one, read in the child as the command does: the bad one is quarantined by name, the good one
is ingested, whatever the format.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import IngestSummary, ingest
from pipelines.sources import hdf5
from stores.reader import Store
from stores.verify import verify_store
from tests.pipelines.make_hdf5 import write_suite
from tests.pipelines.test_robomimic import write_robomimic


def run(source: Path, format: str | None, **options: Any) -> IngestSummary:
    summary = ingest(
        IngestConfig("mixed", source, source.parent / "store", codec="png", language="hashed", format=format, **options)
    )
    assert isinstance(summary, IngestSummary)
    assert verify_store(source.parent / "store") == []
    return summary


def write_results(path: Path) -> Path:
    """HDF5 of another kind, as lies beside data."""
    with h5py.File(path, "w") as file:
        file["metrics/loss"] = [1.0, 2.0]
    return path


@pytest.mark.parametrize("format", ["libero", "robomimic", None])
def test_hdf5_without_demonstrations_costs_itself_only(tmp_path: Path, format: str | None) -> None:
    source = tmp_path / "raw"
    if format == "robomimic":
        write_robomimic(source / "can.hdf5", 2)
    else:
        write_suite(source, tasks=1)
    write_results(source / "a_results.hdf5")
    summary = run(source, format)
    assert summary.episodes == 2
    (row,) = summary.quarantine
    assert (row["file"], row["demo"]) == ("a_results.hdf5", "")
    assert "a_results.hdf5: key 'data' is missing" in row["reason"]


def test_what_is_missing_beside_a_damaged_name_is_still_missing(tmp_path: Path) -> None:
    path = write_results(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        file[b"metr\xffics"] = 1
        with pytest.raises(hdf5.Missing, match="key 'data' is missing"), hdf5.reporting("a.hdf5"):
            hdf5.group(file, "data")


def damage_mask(data: h5py.Group) -> None:
    data.file.create_group("mask")[b"tra\xffin"] = np.array(["demo_0"], "S8")


def delete_observations(data: h5py.Group) -> None:
    for demo in data.values():
        del demo["obs"]


FAULTS: dict[str, tuple[Callable[[h5py.Group], object], str]] = {
    "no observations": (delete_observations, "b.hdf5: demo_0: expected obs with pictures [T, H, W, 3], got actions, "),
    "a mask whose name is damaged": (damage_mask, r"b.hdf5: /mask: expected names in UTF-8, got b'tra\xffin'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_robomimic_file_of_no_use_costs_itself_only(tmp_path: Path, fault: str) -> None:
    change, reason = FAULTS[fault]
    write_robomimic(tmp_path / "raw/a.hdf5", 2)
    write_robomimic(tmp_path / "raw/b.hdf5", change=change)
    summary = run(tmp_path / "raw", "robomimic")
    assert set(Store.open(tmp_path / "store").episode_columns["source"]) == {"a.hdf5"}
    (row,) = summary.quarantine
    assert (row["file"], row["demo"], row["reason"].startswith(reason)) == ("b.hdf5", "", True), row


def test_a_name_that_steers_a_terminal_is_refused_and_shown_escaped(tmp_path: Path) -> None:
    write_robomimic(tmp_path / "raw/a.hdf5", 2)
    for name in ("put_\x1b[2J_it.hdf5", "notes\x1b[2J.txt"):
        (tmp_path / "raw" / name).write_bytes((tmp_path / "raw/a.hdf5").read_bytes())

    def rename(data: h5py.Group) -> None:
        data.move("demo_1", "demo\x1b[2J")
        for demo in data.values():
            demo["obs/extra\x1b[2J"] = np.zeros(3)
        data.file["beside\x1b[2J"] = 1

    write_robomimic(tmp_path / "raw/b.hdf5", 3, change=rename)
    summary = run(tmp_path / "raw", "robomimic")
    assert summary.episodes == 4
    assert [(row["file"], row["demo"]) for row in summary.quarantine] == [
        ("b.hdf5", "demo\\x1b[2J"), ("put_\\x1b[2J_it.hdf5", "")
    ]  # fmt: skip
    assert all("expected a name of printable characters; rename it" in row["reason"] for row in summary.quarantine)
    said = [*summary.notes, *(text for row in summary.quarantine for text in row.values())]
    assert all(text.isprintable() for text in said), said
    assert sum("x1b[2J" in note for note in summary.notes) == 3
