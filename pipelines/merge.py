"""From the records of all units to the tables of a store: pure, but for reading small arrays back from the shards.

Row numbers, first frames and splits depend on all units, so they are made here, in the plan's order, by the one writer.

Legend: N frames of the store.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.plan import split_episodes
from stores.errors import StoreError
from stores.npy import decode_npy
from stores.schema import ACTION_DIM, ROBOT_STATE_DIM, SEGMENTS
from stores.storage import LocalStorage

CUTS: Final = pa.schema([field for field in SEGMENTS if field.name not in ("segment", "episode", "shard")])
"""What a unit knows of its segments."""
MEMBERS: Final = ((1, "robot_state.npy"), (2, "action.npy"))
"""Places of the two arrays among a segment's members (`stores.segments.segment_members`)."""

Rows = list[dict[str, Any]]


def compact(record: dict[str, Any]) -> dict[str, Any]:
    """A unit's record with its segments as an Arrow table (``cuts``), and their number in each episode.

    The driver keeps the records of all units; as Python objects the segments would take ten times the memory.
    """
    cuts = [cut for row in record["episodes"] for cut in row["segments"]]
    episodes = [{**row, "segments": len(row["segments"])} for row in record["episodes"]]
    return {**record, "episodes": episodes, "cuts": pa.Table.from_pylist(cuts, schema=CUTS)}


def merge_records(records: Sequence[dict[str, Any]], seed: int, train_split: float) -> tuple[Rows, pa.Table]:
    """Compact unit records in the plan's order -> rows of episodes.parquet and the table of segments.parquet."""
    ids_by_task: dict[str, list[str]] = {}
    for record in records:
        for row in record["episodes"]:
            ids_by_task.setdefault(row["task"], []).append(row["id"])
    split = split_episodes(ids_by_task, seed, train_split)
    episodes: Rows = []
    tables: list[pa.Table] = []
    first_frame = first_segment = 0
    for record in records:
        numbers: list[int] = []
        for row in record["episodes"]:
            numbers += [len(episodes)] * row["segments"]
            place = {"first_frame": first_frame, "first_segment": first_segment, "unit": record["unit"]}
            episodes.append({**row, "episode": len(episodes), "split": split[row["id"]], **place})
            first_frame += row["frames"]
            first_segment += row["segments"]
        if numbers:
            cuts: pa.Table = record["cuts"]
            for name, values in (
                ("episode", pa.array(numbers)),
                ("shard", pa.repeat(record["shard"]["path"], len(cuts))),
            ):
                cuts = cuts.append_column(name, values)
            tables.append(cuts)
    if not tables:
        return episodes, SEGMENTS.empty_table()
    merged = pa.concat_tables(tables).append_column("segment", pa.array(np.arange(first_segment)))
    return episodes, merged.select(SEGMENTS.names).combine_chunks()


def frame_arrays(root: Path, episodes: Rows, segments: pa.Table) -> dict[str, NDArray[Any]]:
    """The arrays of ``frames.zarr``, from the shards themselves: robot_state, action (NaN: none), episode, index."""
    storage = LocalStorage(root)
    lengths = np.array([row["frames"] for row in episodes], np.int64)
    firsts = np.array([row["first_frame"] for row in episodes], np.int64)
    total = int(lengths.sum())
    states = np.empty((total, ROBOT_STATE_DIM), np.float32)
    actions = np.full((total, ACTION_DIM), np.nan, np.float32)
    state_at, action_at = (_places(segments, *member) for member in MEMBERS)
    keys = zip(segments["episode"].to_pylist(), segments["first_step"].to_pylist(), segments["steps"].to_pylist(),
               segments["shard"].to_pylist(), segments["key"].to_pylist(), strict=True)  # fmt: skip
    for number, (episode, first, n, shard, key) in enumerate(keys):
        start = int(firsts[episode]) + first
        # An observation that two segments share is in both.
        state = _member(storage, shard, f"{key}.robot_state.npy", *state_at[number])
        states[start : start + len(state)] = state
        actions[start : start + n] = _member(storage, shard, f"{key}.action.npy", *action_at[number])[:n]
    return {
        "robot_state": states,
        "action": actions,
        "episode": np.repeat(np.arange(len(episodes)), lengths),
        "index": np.arange(total) - np.repeat(firsts, lengths),
    }


def _places(segments: pa.Table, at: int, name: str) -> list[tuple[int, int]]:
    """(offset, size) in its shard of member `name`, the `at`-th, of every segment."""
    names = pc.unique(pc.list_element(segments["member_name"], at)).to_pylist()
    if names != [name]:
        raise StoreError(f"segments: expected {name} as member {at}, got {names}")
    columns = (pc.list_element(segments[column], at).to_pylist() for column in ("member_offset", "member_size"))
    return list(zip(*columns, strict=True))


def _member(storage: LocalStorage, shard: str, name: str, offset: int, size: int) -> NDArray[Any]:
    return decode_npy(storage.read_range(shard, offset, size), f"{shard}, {name}")
