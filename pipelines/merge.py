"""From the records of all units to the tables of a store: pure, but for reading small arrays back from the shards.

Row numbers, first frames and splits depend on all units, so they are made here, in the plan's order, by the one writer.

Legend: N frames of the store.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.plan import split_episodes
from stores.npy import decode_npy
from stores.schema import ACTION_DIM
from stores.storage import LocalStorage

SEGMENT_INDEX: Final = ("key", "offset", "size", "crc32", "member_offset", "member_size", "member_name")
SPAN: Final = ("first_step", "steps", "observations")

Rows = list[dict[str, Any]]


def merge_records(records: Sequence[dict[str, Any]], seed: int, train_split: float) -> tuple[Rows, Rows]:
    """Unit records in the plan's order -> rows of episodes.parquet and of segments.parquet."""
    ids_by_task: dict[str, list[str]] = {}
    for record in records:
        for row in record["episodes"]:
            ids_by_task.setdefault(row["task"], []).append(row["id"])
    split = split_episodes(ids_by_task, seed, train_split)
    episodes: Rows = []
    segments: Rows = []
    first_frame = 0
    for record in records:
        for row in record["episodes"]:
            number, cuts = len(episodes), row["segments"]
            episodes.append(
                {
                    **{name: value for name, value in row.items() if name != "segments"},
                    "episode": number,
                    "split": split[row["id"]],
                    "first_frame": first_frame,
                    "first_segment": len(segments),
                    "segments": len(cuts),
                    "unit": record["unit"],
                }
            )
            first_frame += row["frames"]
            for cut in cuts:
                fields = {name: cut[name] for name in (*SPAN, *SEGMENT_INDEX)}
                shard = record["shard"]["path"]
                segments.append({"segment": len(segments), "episode": number, "shard": shard, **fields})
    return episodes, segments


def frame_arrays(root: Path, episodes: Rows, segments: Rows) -> dict[str, NDArray[Any]]:
    """The arrays of ``frames.zarr``, from the shards themselves: robot_state, action (NaN: none), episode, index."""
    storage = LocalStorage(root)
    lengths = np.array([row["frames"] for row in episodes], np.int64)
    firsts = np.array([row["first_frame"] for row in episodes], np.int64)
    total = int(lengths.sum())
    states: list[NDArray[Any]] = []
    action = np.full((total, ACTION_DIM), np.nan, np.float32)
    for row in segments:
        episode, n = episodes[row["episode"]], row["steps"]
        last = row["first_step"] + n == episode["steps"]
        # An observation that two segments share is taken from the later one.
        state = _member(storage, row, "robot_state.npy")
        states.append(state if last else state[:n])
        start = episode["first_frame"] + row["first_step"]
        action[start : start + n] = _member(storage, row, "action.npy")[:n]
    return {
        "robot_state": np.concatenate(states),
        "action": action,
        "episode": np.repeat(np.arange(len(episodes)), lengths),
        "index": np.arange(total) - np.repeat(firsts, lengths),
    }


def _member(storage: LocalStorage, row: dict[str, Any], name: str) -> NDArray[Any]:
    at = row["member_name"].index(name)
    data = storage.read_range(row["shard"], row["member_offset"][at], row["member_size"][at])
    return decode_npy(data, f"{row['shard']}, {row['key']}.{name}")
