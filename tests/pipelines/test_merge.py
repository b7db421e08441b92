"""Merging units' records: what comes out, and that memory does not grow with how many they are."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

import stores.numbers
import stores.tables
from pipelines.ingest.merge import UnitFacts, split_units, unit_facts, write_merged
from pipelines.ingest.record import write_record
from stores.disk.sync import Together
from stores.errors import StateVLAError
from stores.layout import shard_path
from stores.segments import segment_key, segment_members, segment_spans
from stores.shards import write_shard
from stores.spec import LIBERO

FRAMES, WINDOW, EPISODES_A_UNIT = 60, 2, 2


def write_units(root: Path, count: int) -> tuple[list[UnitFacts], list[np.ndarray]]:
    """`count` units of two episodes, as an ingest leaves them; their facts, and the episodes' robot states.

    Episodes of odd number have one action less than frames.
    """
    generator = np.random.default_rng(0)
    facts: list[UnitFacts] = []
    states: list[np.ndarray] = []
    with Together():
        for number in range(count):
            name, members, episodes = f"task-{number:03d}", [], []
            for part in range(EPISODES_A_UNIT):
                steps = FRAMES - part
                state = generator.normal(size=(FRAMES, 9)).astype(np.float32)
                action = np.repeat(state[:steps, :1], 7, axis=1)
                spans = segment_spans(FRAMES, steps, WINDOW)
                for place, span in enumerate(spans):
                    key = segment_key(name, f"demo_{part}", place)
                    images = {camera: [b"image"] * span.observations for camera in ("agentview", "eye_in_hand")}
                    members.append(segment_members(key, span, {}, state, action, images, 3, "jpeg"))
                states.append(state)
                row: dict[str, Any] = {"id": f"{name}/demo_{part}", "task": "task", "instruction": "do it"}
                row |= {"frames": FRAMES, "steps": steps, "source": "task.hdf5", "demo": f"demo_{part}"}
                episodes.append(
                    {**row, "alignment": "before", "content": f"{name}-{part}", "init_state": "", "spans": spans}
                )
            index = write_shard(root / shard_path(name), members)
            entries = iter(index.segments)
            for row in episodes:
                row["segments"] = [{**vars(span), **vars(next(entries))} for span in row.pop("spans")]
            shard = {"path": shard_path(name), "bytes": index.bytes, "sha256": index.sha256}
            record = {"unit": name, "shard": shard, "episodes": episodes, "quarantined": [], "notes": []}
            record["fingerprints"] = {}
            write_record(root, name, "0" * 64, record)
            facts.append(unit_facts(record, "task.hdf5"))
    return facts, states


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few units are many row groups and chunks."""
    monkeypatch.setattr(stores.tables, "ROW_GROUP", 64)
    monkeypatch.setattr(stores.tables, "PIECE", 4096)
    monkeypatch.setattr(stores.numbers, "CHUNK_ROWS", 100)


def test_units_lie_end_to_end_in_tables_and_arrays(tmp_path: Path) -> None:
    facts, states = write_units(tmp_path, 5)
    split = split_units(facts, 0, 0.5)
    write_merged(tmp_path, facts, split, LIBERO)
    episodes = pq.read_table(tmp_path / "episodes.parquet").to_pydict()
    assert episodes["episode"] == list(range(10))
    assert episodes["id"] == [f"task-{n // 2:03d}/demo_{n % 2}" for n in range(10)]
    assert episodes["split"] == [split[name] for name in episodes["id"]]
    assert episodes["first_frame"] == [FRAMES * n for n in range(10)]
    assert episodes["segments"] == [30] * 10
    assert episodes["first_segment"] == [30 * n for n in range(10)]
    segments = pq.read_table(tmp_path / "segments.parquet").to_pydict()
    assert segments["segment"] == list(range(300))
    assert segments["episode"] == [n // 30 for n in range(300)]
    assert segments["shard"] == [f"shards/task-{n // 60:03d}.tar" for n in range(300)]
    assert segments["first_step"] == [n % 30 * WINDOW for n in range(300)]
    groups = pq.ParquetFile(tmp_path / "segments.parquet").metadata
    assert [groups.row_group(n).num_rows for n in range(groups.num_row_groups)] == [64, 64, 64, 64, 44]
    group = zarr.open_group(tmp_path / "frames.zarr", mode="r")
    wanted = np.concatenate(states)
    np.testing.assert_array_equal(group["robot_state"][...], wanted)
    action = np.repeat(wanted[:, :1], 7, axis=1)
    action[FRAMES * 2 - 1 :: FRAMES * 2] = np.nan
    np.testing.assert_array_equal(group["action"][...], action)
    np.testing.assert_array_equal(group["episode"][...], np.arange(600) // FRAMES)
    np.testing.assert_array_equal(group["index"][...], np.arange(600) % FRAMES)


def test_memory_does_not_grow_with_the_number_of_units(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        """Bytes that Python, NumPy and Arrow hold at most while `count` units are merged."""
        root = tmp_path / str(count)
        facts, _ = write_units(root, count)
        split = split_units(facts, 0, 0.9)
        arrow, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
        pa.set_memory_pool(arrow)
        tracemalloc.start()
        try:
            write_merged(root, facts, split, LIBERO)
            return tracemalloc.get_traced_memory()[1] + arrow.max_memory()
        finally:
            tracemalloc.stop()
            pa.set_memory_pool(before)

    peak(2)  # caches fill
    few, many = peak(5), peak(40)
    assert many < 1.5 * few, (few, many)


def test_a_record_that_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    facts, _ = write_units(tmp_path, 2)
    path = tmp_path / "units/task-001.json"
    path.write_bytes(path.read_bytes().replace(b"do it", b"do so"))
    with pytest.raises(StateVLAError, match="record of unit task-001 changed"):
        write_merged(tmp_path, facts, split_units(facts, 0, 0.9), LIBERO)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards", "units"]
