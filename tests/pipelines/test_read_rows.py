"""Rows that lie in one piece are read past HDF5, from where HDF5 says they are: what comes is what HDF5 reads."""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipelines.sources import hdf5
from stores.errors import SourceError, SourceTrouble

SHAPE = (37, 48, 64, 3)


def _values(kind: str) -> Any:
    return np.random.default_rng(0).integers(0, 255, SHAPE).astype(kind)


def _dataset(file: h5py.File, kind: str = "u1") -> hdf5.Rows:
    return hdf5.dataset(file, "folder/x", "uint8" if kind == "u1" else "float", SHAPE, 1 << 30)


@pytest.mark.parametrize("kind", ["u1", "<f4", "<f8"])
@pytest.mark.parametrize("before", [0, 512], ids=["plain", "user-block"])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_rows_of_one_piece(tmp_path: Path, kind: str, before: int, libver: str) -> None:
    values = _values(kind)
    with h5py.File(tmp_path / "t.hdf5", "w", userblock_size=before, libver=libver) as file:
        file["folder/other"] = np.ones(5)
        file["folder/x"] = values
    with h5py.File(tmp_path / "t.hdf5") as file:
        rows, told = _dataset(file, kind), []
        assert rows.whereabouts is not None
        for start, stop in ((0, 37), (3, 4), (15, 33), (36, 37)):
            into = np.full((40, *SHAPE[1:]), 9, kind)
            np.testing.assert_array_equal(hdf5.read_rows(rows, start, stop), file["folder/x"][start:stop])
            found = hdf5.read_rows(rows, start, stop, lambda at, read: told.append((at, len(read))), into)
            np.testing.assert_array_equal(found, values[start:stop])
            assert found.base is into
            assert (into[stop - start :] == 9).all()
        row = values[0].nbytes
        assert told == [(0, 37), (3 * row, 1), (15 * row, 18), (36 * row, 1)]


@pytest.mark.parametrize("layout", ["memory", "split", "small"])
def test_what_lies_elsewhere_is_read_by_hdf5(tmp_path: Path, layout: str) -> None:
    values, driver = _values("u1"), {"memory": "core", "split": "split"}.get(layout)
    values = values[:, :8] if layout == "small" else values
    path = tmp_path / "t.hdf5"
    with h5py.File(path, "w", driver=driver if layout == "split" else None) as file:
        file["folder/x"] = values
    with h5py.File(path, "r", driver=driver) as file:
        rows = hdf5.dataset(file, "folder/x", "uint8", values.shape, 1 << 30)
        assert rows.whereabouts is None
        np.testing.assert_array_equal(hdf5.read_rows(rows, 5, 9), values[5:9])


@pytest.mark.parametrize(("start", "stop"), [(36, 38), (-1, 3), (40, 44)])
def test_rows_that_the_dataset_has_not_are_no_others(tmp_path: Path, start: int, stop: int) -> None:
    with h5py.File(tmp_path / "t.hdf5", "w") as file:
        for name in ("folder/before", "folder/x", "folder/behind"):
            file[name] = _values("u1")
    with h5py.File(tmp_path / "t.hdf5") as file:
        rows = _dataset(file)
        assert rows.whereabouts is not None
        with pytest.raises(SourceError, match=r"t\.hdf5: "), hdf5.reporting("t.hdf5"):
            hdf5.read_rows(rows, start, stop)


def test_a_file_cut_short_while_it_is_read_says_so(tmp_path: Path) -> None:
    path = tmp_path / "t.hdf5"
    with h5py.File(path, "w") as file:
        file["folder/x"] = _values("u1")
    with h5py.File(path) as file:
        rows = _dataset(file)
        hdf5.read_rows(rows, 0, 4)
        assert rows.whereabouts is not None
        os.truncate(path, rows.whereabouts[1] + 5 * 48 * 64 * 3)
        np.testing.assert_array_equal(hdf5.read_rows(rows, 0, 4), _values("u1")[:4])
        with pytest.raises(SourceError, match="cut short"):
            hdf5.read_rows(rows)


def test_an_error_of_the_disk_is_trouble_and_no_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "t.hdf5", "w") as file:
        file["folder/x"] = _values("u1")

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with h5py.File(tmp_path / "t.hdf5") as file:
        rows = _dataset(file)
        monkeypatch.setattr(os, "preadv", broken)
        said = pytest.raises(SourceTrouble, match=r"t\.hdf5: cannot be read: Input/output error")
        with said, hdf5.reporting("t.hdf5"):
            hdf5.read_rows(rows)


def test_a_system_that_reads_little_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, whole = _values("<f8"), os.preadv
    with h5py.File(tmp_path / "t.hdf5", "w") as file:
        file["folder/x"] = values
    with h5py.File(tmp_path / "t.hdf5") as file:
        rows = _dataset(file, "<f8")
        monkeypatch.setattr(os, "preadv", lambda fd, parts, at: whole(fd, [parts[0][:100_001]], at))
        np.testing.assert_array_equal(hdf5.read_rows(rows, 2, 30), values[2:30])
