"""From the records of all units to the tables of a store: in the plan's order, one unit at a time.

Row numbers, first frames and splits depend on all units, so they are made here, by the one writer. The records stay on
disk: of each, the driver keeps `UnitFacts` (some kilobytes), and here the rows of one unit, of one row group of each
table and of one chunk of each array.
"""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.ingest.plan import split_episodes
from pipelines.ingest.record import read_record
from stores.errors import StateVLAError, StoreError
from stores.layout import EPISODES_FILE, SEGMENTS_FILE
from stores.manifest import StoreObject
from stores.npy import decode_npy
from stores.numbers import FramesWriter, frames_writer
from stores.schema import EPISODES, SEGMENTS
from stores.spec import ObsSpec
from stores.tables import table_writer

CUTS: Final = [field for field in SEGMENTS if field.name not in ("segment", "episode", "shard")]
"""What a unit knows of its segments."""
STATE, ACTION = 1, 2
"""Places of the two arrays among a segment's members (`stores.segments.segment_members`)."""
MEMBERS: Final = {STATE: "robot_state.npy", ACTION: "action.npy"}


@dataclass(frozen=True)
class UnitFacts:
    """What the driver keeps of a unit's record: all that the manifest needs, and nothing that grows with segments.

    ids, tasks, contents, init_states, made_by: of its episodes, in order. notes: demonstration and what is wrong with
    its cameras.
    """

    name: str
    file: str
    shard: StoreObject | None
    ids: tuple[str, ...]
    tasks: tuple[str, ...]
    frames: int
    steps: int
    segments: int
    alignments: tuple[str, ...]
    instructions: tuple[str, ...]
    fingerprints: dict[str, str]
    quarantined: tuple[dict[str, str], ...]
    contents: tuple[str, ...]
    init_states: tuple[str, ...]
    made_by: tuple[str, ...]
    notes: tuple[dict[str, str], ...]


def unit_facts(record: Mapping[str, Any], file: str) -> UnitFacts:
    """Facts of a unit's record; file: the source file that the unit is of."""
    rows = record["episodes"]
    return UnitFacts(
        name=record["unit"],
        file=file,
        shard=None if record["shard"] is None else StoreObject(**record["shard"]),
        ids=tuple(row["id"] for row in rows),
        tasks=tuple(sys.intern(row["task"]) for row in rows),
        frames=sum(row["frames"] for row in rows),
        steps=sum(row["steps"] for row in rows),
        segments=sum(len(row["segments"]) for row in rows),
        alignments=tuple(sorted({sys.intern(row["alignment"]) for row in rows})),
        instructions=tuple(sorted({sys.intern(row["instruction"]) for row in rows})),
        fingerprints=record["fingerprints"],
        quarantined=tuple(record["quarantined"]),
        contents=tuple(row["content"] for row in rows),
        init_states=tuple(row["init_state"] for row in rows),
        made_by=tuple(sys.intern(row.get("made_by", "")) for row in rows),  # records of before have none
        notes=tuple(record["notes"]),
    )


def copies_of(units: Sequence[UnitFacts]) -> list[tuple[str, ...]]:
    """Groups of episodes (ids) that are the same, each in the plan's order."""
    groups: dict[str, list[str]] = {}
    for unit in units:
        for name, content in zip(unit.ids, unit.contents, strict=True):
            groups.setdefault(content, []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def split_units(
    units: Sequence[UnitFacts], seed: int, train_split: float, given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Episode id -> train or val (`pipelines.ingest.plan.split_episodes`). given: by id, what the files' masks say."""
    ids_by_task: dict[str, list[str]] = {}
    for unit in units:
        for name, task in zip(unit.ids, unit.tasks, strict=True):
            ids_by_task.setdefault(task, []).append(name)
    return split_episodes(ids_by_task, seed, train_split, given, copies_of(units))


def write_merged(root: Path, units: Sequence[UnitFacts], split: Mapping[str, str], spec: ObsSpec) -> None:
    """Write episodes.parquet, segments.parquet and frames.zarr below `root` from the units' records and shards there.

    units: in the plan's order. Raises StateVLAError when a record is not what it was when its facts were taken.
    """
    with contextlib.ExitStack() as stack:
        episodes = stack.enter_context(table_writer(root / EPISODES_FILE, EPISODES))
        segments = stack.enter_context(table_writer(root / SEGMENTS_FILE, SEGMENTS))
        frames = stack.enter_context(frames_writer(root, sum(unit.frames for unit in units), spec))
        episode = first_frame = first_segment = 0
        for unit in units:
            record = read_record(root, unit.name)
            if record is None or unit_facts(record, unit.file) != unit:
                raise StateVLAError(
                    f"{root}: the record of unit {unit.name} changed while it was in use; run the same command again"
                )
            if not record["episodes"]:
                continue
            rows: list[dict[str, Any]] = []
            for row in record["episodes"]:
                place = {"first_frame": first_frame, "first_segment": first_segment, "unit": unit.name}
                number = {"episode": episode + len(rows), "split": split[row["id"]], "segments": len(row["segments"])}
                rows.append({**row, **number, **place})
                first_frame += row["frames"]
                first_segment += len(row["segments"])
            episodes.add(pa.Table.from_pylist(rows, schema=EPISODES))
            segments.add(segment_table(record, episode, first_segment - unit.segments))
            add_frames(frames, root, record, episode, spec)
            episode += len(rows)


def segment_table(record: Mapping[str, Any], episode: int, segment: int) -> pa.Table:
    """Rows of segments.parquet of a unit whose first episode and segment have these numbers."""
    cuts = [cut for row in record["episodes"] for cut in row["segments"]]
    counts = [len(row["segments"]) for row in record["episodes"]]
    columns = {field.name: pa.array([cut[field.name] for cut in cuts], field.type) for field in CUTS}
    columns["segment"] = pa.array(np.arange(segment, segment + len(cuts)))
    columns["episode"] = pa.array(np.repeat(np.arange(episode, episode + len(counts)), counts))
    columns["shard"] = pa.repeat(record["shard"]["path"], len(cuts))
    return pa.table([columns[name] for name in SEGMENTS.names], schema=SEGMENTS)


def add_frames(writer: FramesWriter, root: Path, record: Mapping[str, Any], episode: int, spec: ObsSpec) -> None:
    """Append the frames of a unit, one episode at a time, from its shard: robot_state, action (NaN: none)."""
    shard = record["shard"]["path"]
    with (root / shard).open("rb", buffering=0) as file:
        for number, row in enumerate(record["episodes"], episode):
            states = np.empty((row["frames"], spec.robot_state_dim), np.float32)
            actions = np.full((row["frames"], spec.action_dim), np.nan, np.float32)
            for cut in row["segments"]:
                state, action = _members(file.fileno(), shard, cut)
                first, steps = cut["first_step"], cut["steps"]
                states[first : first + len(state)] = state  # an observation that two segments share is in both
                actions[first : first + steps] = action[:steps]
            count = len(states)
            place = {"episode": np.full(count, number), "index": np.arange(count)}
            writer.add({"robot_state": states, "action": actions, **place})


def _members(descriptor: int, shard: str, cut: Mapping[str, Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """robot_state and action of a segment; they lie next to one another, so in one read of the open shard."""
    found = {at: cut["member_name"][at] for at in MEMBERS}
    if found != MEMBERS:
        raise StoreError(f"{shard}, {cut['key']}: expected members {MEMBERS}, got {found}")
    offsets, sizes = cut["member_offset"], cut["member_size"]
    start = offsets[STATE]
    data = os.pread(descriptor, offsets[ACTION] + sizes[ACTION] - start, start)
    parts = (data[offsets[at] - start :][: sizes[at]] for at in MEMBERS)
    state, action = (
        decode_npy(part, f"{shard}, {cut['key']}.{name}") for part, name in zip(parts, MEMBERS.values(), strict=True)
    )
    return state, action
