"""Zarr arrays: read alike by zarr itself, whole chunks only, damage named, crashes harmless."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from stores import arrays
from stores.disk import durable
from stores.disk.lock import lock
from stores.errors import StoreCorrupt, StoreMissing, UsageError
from stores.numbers import frame_objects, frame_specs
from stores.spec import LIBERO
from tests.stores.faults import every_crash, read_tree
from tests.stores.make_store import write_frames

VALUES = np.random.default_rng(0).normal(size=(23, 3, 2)).astype(np.float32)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(durable.NO_FSYNC, "1")


def write_array(root: Path, values: np.ndarray, chunk: int) -> None:
    """The whole of `values` as the array ``x``."""
    arrays.write_region(root, "x", arrays.create(root, "x", values.shape, values.dtype.name, chunk), 0, values)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int64", "uint8", "int8", "bool"])
@pytest.mark.parametrize("shape", [(23, 3, 2), (8,), (5, 4), (0, 2)])
def test_zarr_reads_what_we_write(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    values = (np.random.default_rng(0).normal(size=shape) * 3).astype(dtype)
    arrays.create_group(tmp_path)
    write_array(tmp_path, values, chunk=8)
    theirs = zarr.open_group(tmp_path, mode="r")["x"]
    ours = arrays.open_checked(tmp_path, "x").read()
    assert theirs.dtype == ours.dtype == values.dtype
    np.testing.assert_array_equal(theirs[...], values)
    np.testing.assert_array_equal(ours, values)


def test_zarr_agrees_on_the_metadata_and_the_bytes(tmp_path: Path) -> None:
    write_array(tmp_path / "ours", VALUES, chunk=8)
    theirs = zarr.create_array(
        tmp_path / "theirs/x",
        shape=VALUES.shape,
        dtype="float32",
        chunks=(8, 3, 2),
        compressors=[zarr.codecs.Crc32cCodec()],
        filters=None,
        fill_value=0,
    )
    theirs[...] = VALUES
    ours = read_tree(tmp_path / "ours/x")
    for name, content in read_tree(tmp_path / "theirs/x").items():
        if name != "zarr.json":
            assert ours.pop(name) == content, name
    assert set(ours) == {"zarr.json"}
    assert zarr.open_array(tmp_path / "ours/x", mode="r").metadata.codecs == theirs.metadata.codecs


@given(st.integers(1, 60), st.integers(1, 20), st.data())
def test_reading_any_range(tmp_path_factory, rows: int, chunk: int, data: st.DataObject) -> None:
    root = tmp_path_factory.mktemp("array")
    values = np.arange(rows * 2, dtype=np.int64).reshape(rows, 2)
    write_array(root, values, chunk=chunk)
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    np.testing.assert_array_equal(arrays.open_checked(root, "x").read(start, stop), values[start:stop])


def test_regions_by_several_writers_give_the_same_bytes(tmp_path: Path) -> None:
    write_array(tmp_path / "one", VALUES, chunk=8)
    spec = arrays.create(tmp_path / "many", "x", VALUES.shape, "float32", 8)
    for start, stop in ((16, 23), (0, 8), (8, 16)):
        arrays.write_region(tmp_path / "many", "x", spec, start, VALUES[start:stop])
    assert read_tree(tmp_path / "one") == read_tree(tmp_path / "many")


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (4, 12), (8, 15), (16, 22)])
def test_parts_of_chunks_are_refused(tmp_path: Path, start: int, stop: int) -> None:
    spec = arrays.create(tmp_path, "x", VALUES.shape, "float32", 8)
    with pytest.raises(UsageError, match="not whole chunks"):
        arrays.write_region(tmp_path, "x", spec, start, VALUES[start:stop])


def test_wrong_rows_are_refused(tmp_path: Path) -> None:
    spec = arrays.create(tmp_path, "x", VALUES.shape, "float32", 8)
    for wrong in (VALUES.astype(np.float64), VALUES[:, :2]):
        with pytest.raises(UsageError, match=r"expected float32 rows of \[3, 2\]"):
            arrays.write_region(tmp_path, "x", spec, 0, wrong)


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "long": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 16]) + path.read_bytes()[1:]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_chunk_is_named(tmp_path: Path, damage: str) -> None:
    write_array(tmp_path, VALUES, chunk=8)
    DAMAGE[damage](tmp_path / "x/c/1/0/0")
    array = arrays.open_checked(tmp_path, "x")
    np.testing.assert_array_equal(array.read(16, 23), VALUES[16:])
    with pytest.raises(StoreCorrupt, match="x/c/1/0/0"):
        array.read()


def test_damaged_metadata_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing, match=r"x/zarr\.json"):
        arrays.open_checked(tmp_path, "x")
    write_array(tmp_path, VALUES, chunk=8)
    with pytest.raises(StoreCorrupt, match="expected ArraySpec"):
        arrays.open_checked(tmp_path, "x", arrays.ArraySpec((24, 3, 2), "float32", 8))
    good = (tmp_path / "x/zarr.json").read_text()
    for old, new in (("23", "22"), ('"little"', '"big"'), ("crc32c", "gzip"), ("float32", "object"), ("{", "[")):
        (tmp_path / "x/zarr.json").write_text(good.replace(old, new))
        with pytest.raises(StoreCorrupt, match="x"):
            arrays.open_checked(tmp_path, "x").read()


@pytest.mark.crash
def test_a_crash_while_writing_chunks_is_noticed_and_mended(tmp_path: Path) -> None:
    values = np.arange(5)

    def work(disk: Path) -> None:
        with lock(disk, "test"):
            spec = arrays.create(disk, "x", values.shape, "int64", 4)
            arrays.write_region(disk, "x", spec, 0, values)

    for crash, disk in every_crash(tmp_path, lambda disk: None, work):
        if (disk / "x/zarr.json").exists() and all((disk / f"x/c/{m}").exists() for m in range(2)):
            np.testing.assert_array_equal(arrays.open_checked(disk, "x").read(), values)
        elif (disk / "x/zarr.json").exists():
            with pytest.raises(StoreCorrupt):
                arrays.open_checked(disk, "x").read()
        work(disk)
        assert read_tree(disk) == read_tree(tmp_path / "undisturbed"), crash


def test_frames_are_refused_when_a_field_is_not_as_agreed(tmp_path: Path) -> None:
    good = {name: np.zeros(array.shape, array.dtype) for name, array in frame_specs(5, LIBERO).items()}
    assert write_frames(tmp_path, good, LIBERO) == frame_objects(5, LIBERO)
    assert sorted(n for n, c in read_tree(tmp_path).items() if c is not None) == frame_objects(5, LIBERO)
    for bad in (
        {**good, "extra": good["index"]},
        {**good, "action": good["action"].astype(np.float64)},
        {**good, "robot_state": good["robot_state"][:4]},
    ):
        with pytest.raises(UsageError, match="frames"):
            write_frames(tmp_path, bad, LIBERO)
