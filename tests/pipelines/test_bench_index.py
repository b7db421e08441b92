"""The generator of large stores makes true ones, and what a store costs on opening is read column by column."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.bench.index import PER_SHARD, make_synthetic, measure
from stores.cloud.storage import LocalStorage
from stores.columns import Columns
from stores.errors import StoreCorrupt
from stores.layout import EPISODES_FILE, SEGMENTS_FILE
from stores.manifest import Manifest, hash_object
from stores.numbers import check_frames
from stores.reader import Store
from stores.schema import SEGMENTS
from stores.tables import table_bytes

SEGMENT_COUNT = 7 * PER_SHARD  # more than one row group


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synthetic") / "store"
    make_synthetic(path, SEGMENT_COUNT)
    return path


def test_it_is_a_store(root: Path) -> None:
    store = Store.open(root)
    assert len(store) == SEGMENT_COUNT
    episodes = store.episode_columns
    check_frames(store.numbers, episodes["frames"], episodes["steps"], "here")
    assert store.numbers["action"].read(5, 9).shape == (4, 7)


def test_columns_are_what_the_table_holds(root: Path) -> None:
    for path, columns in ((EPISODES_FILE, "episode_columns"), (SEGMENTS_FILE, "segment_columns")):
        found, whole = getattr(Store.open(root), columns), pq.read_table(root / path)
        assert len(found) == len(list(found))
        for name in found:
            assert found[name].tolist() == whole[name].to_pylist()
            assert found[name].dtype == (object if whole[name].type == "string" else whole[name].type.to_pandas_dtype())


def test_text_is_held_once_a_distinct_value(root: Path) -> None:
    column = Store.open(root).episode_columns["instruction"]
    assert len({id(text) for text in column}) == len(set(column)) == 10


def test_opening_reads_neither_members_nor_keys(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[str] = set()
    real = pq.ParquetFile.read

    def noted(self: pq.ParquetFile, columns: list[str] | None = None, **options: object) -> object:
        read.update(columns or ["everything"])
        return real(self, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read", noted)
    Store.open(root)
    assert read
    assert not read & {"everything", "key", "member_name", "member_offset", "member_size", "id", "demo"}


def test_a_row_is_found_in_its_row_group(root: Path) -> None:
    columns = Store.open(root).segment_columns
    for row in (0, 1023, 1024, SEGMENT_COUNT - 1):
        group, place = columns.group(row, ["key", "segment"])
        assert group["segment"][place].as_py() == row
    with pytest.raises(IndexError):
        columns.group(SEGMENT_COUNT, ["key"])


def test_what_is_not_as_the_manifest_says_is_refused(root: Path, tmp_path: Path) -> None:
    item = next(item for item in Manifest.load(root).objects if item.path == SEGMENTS_FILE)
    with pytest.raises(StoreCorrupt, match="expected 3 rows"):
        Columns(LocalStorage(root), item, SEGMENTS, 3)
    data = bytearray((root / SEGMENTS_FILE).read_bytes())
    for change in (data[:-1], data[:99] + b"?" + data[100:]):
        (tmp_path / SEGMENTS_FILE).write_bytes(change)
        with pytest.raises(StoreCorrupt, match=r"segments\.parquet"):
            Columns(LocalStorage(tmp_path), item, SEGMENTS, SEGMENT_COUNT)
    (tmp_path / SEGMENTS_FILE).unlink()
    os.mkfifo(tmp_path / SEGMENTS_FILE)
    with pytest.raises(StoreCorrupt, match="not an ordinary file"):
        Columns(LocalStorage(tmp_path), item, SEGMENTS, SEGMENT_COUNT)


def test_a_table_that_unpacks_to_too_much_is_refused_before_it_is(tmp_path: Path) -> None:
    row = {field.name: 0 for field in SEGMENTS} | {"key": "x" * 40_000_000, "shard": "s"}
    row |= {"member_name": [], "member_offset": [], "member_size": []}
    data = table_bytes(pa.Table.from_pylist([row], schema=SEGMENTS), SEGMENTS)
    assert len(data) < 100_000
    (tmp_path / SEGMENTS_FILE).write_bytes(data)
    with pytest.raises(StoreCorrupt, match="expected 1 rows of at most"):
        Columns(LocalStorage(tmp_path), hash_object(tmp_path, SEGMENTS_FILE), SEGMENTS, 1)


@pytest.mark.parametrize("what", ["open", "2,000 rows of numbers", "open and loader"])
def test_a_measurement(root: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    measure(what, str(root))
    assert set(json.loads(capsys.readouterr().out)) == {"seconds", "processor", "megabytes"}


def test_frames_that_contradict_the_episodes_are_noticed(root: Path) -> None:
    store = Store.open(root)
    frames, steps = store.episode_columns["frames"], store.episode_columns["steps"]
    swapped = np.array(frames)
    swapped[:2] += (1, -1)
    with pytest.raises(StoreCorrupt, match=r"frames.zarr: .*do not fit"):
        check_frames(store.numbers, swapped, steps, "here")
