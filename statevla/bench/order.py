"""How mixed batches are: ours, by blocks, lanes and segment length, against a full shuffle of all transitions.

Of every batch: how many episodes and how many segments its rows come from; and how alike its rows are, as the variance
of the batches' mean pictures over what a full shuffle gives (1 is as good as that; a batch of frames of one moment
would have as many as it has rows). Only the index and one number a frame are read, so that this is quick for any store.

Legend: S segments of a split, B batch, N frames of the store.
"""

import statistics
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from statevla.bench.machine import describe_machine
from statevla.config import DataConfig
from statevla.data.frames import make_table
from statevla.data.loaders import split_segments, training_plans
from statevla.data.machine import loader_threads
from statevla.data.order import plan_order, rank_lanes
from statevla.data.prefetch import Position
from statevla.data.walk import walk_pictures
from stores.errors import UsageError
from stores.reader import Store

SETTINGS: Final = ((8, 16), (8, 32), (8, 8), (8, 128), (4, 16), (16, 16), (32, 16), (1, 16), (8, 1))
"""(lanes, segments in a block) that are compared; the first is the default."""
BATCHES: Final = 200


def bench_order(
    store: Store | Path | str,
    *,
    batch_size: int = 64,
    batches: int = BATCHES,
    threads: int | None = None,
    pictures: bool = True,
) -> dict[str, Any]:
    """The first `batches` batches of an epoch of each of `SETTINGS`, and of a full shuffle.

    pictures: a store that has some; without them no variances.

    Returns name, unit, ours (episodes a batch by default), limit (of the full shuffle), ratio, peers, machine, details.
    """
    store = store if isinstance(store, Store) else Store.open(store)
    table = make_table(store, 1)
    segments, counts = split_segments(store, table, "train", with_next_only=False)
    if int(counts.sum()) < 2 * batch_size:
        raise UsageError(f"{store.root}: {int(counts.sum())} transitions are too few for two batches of {batch_size}")
    value = _brightness(store, loader_threads(DataConfig(loader_threads=threads))) if pictures else None

    def measure(drawn: list[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> dict[str, float]:
        episodes = [len(np.unique(table.episode[segment])) for segment, _ in drawn]
        pieces = [len(np.unique(segment)) for segment, _ in drawn]
        found = {"episodes": float(statistics.mean(episodes)), "segments": float(statistics.mean(pieces))}
        if value is not None:
            means = [float(value[table.rows(segment, step)].mean()) for segment, step in drawn]
            found["variance_ratio"] = float(np.var(means)) / expected
        return found

    owner = np.repeat(np.arange(len(segments)), counts)
    step = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    # Of the mean of independent rows.
    expected = np.nan if value is None else float(value[table.rows(segments[owner], step)].var()) / batch_size
    rng = np.random.default_rng(0)
    number = min(batches, len(owner) // batch_size)
    mixed = rng.permutation(len(owner))[: number * batch_size].reshape(number, batch_size)
    full = measure([(segments[owner[rows]], step[rows]) for rows in mixed])
    found = {}
    for lanes, block in SETTINGS:
        order = plan_order(counts, seed=0, batch_size=batch_size, lanes=lanes, block_segments=block)
        plans = training_plans(order, segments, rank_lanes(order), Position(0, 0))
        drawn = []
        for _ in range(min(batches, order.batches)):
            rows = next(plans).rows
            drawn.append((np.concatenate([r.segment for r in rows]), np.concatenate([r.step for r in rows])))
        pixels = 3 * sum(height * width for height, width in store.spec.image_sizes)
        held = order.lanes * block * (int(store.manifest.config["window"]) + 1) * pixels
        got = measure(drawn)
        found[f"{lanes} lanes of {block} segments"] = {
            **got,
            "lanes_used": order.lanes,
            "megabytes_held": held / 1e6,
        }
    first = found["{} lanes of {} segments".format(*SETTINGS[0])]
    return {
        "name": "order",
        "unit": "episodes a batch",
        "ours": first["episodes"],
        "limit": full["episodes"],
        "ratio": first["episodes"] / full["episodes"],
        "peers": {},
        "machine": describe_machine(),
        "details": {
            "full shuffle": full,
            **found,
            "batch_size": batch_size,
            "batches": number,
            "transitions": len(owner),
            "segments_of_the_split": len(segments),
            "window": int(store.manifest.config["window"]),
        },
    }


def _brightness(store: Store, threads: int) -> NDArray[np.float64]:
    """Mean of the first camera's pixels, of each frame: float64 [N]."""
    frames, table = store.manifest.counts["frames"], make_table(store, 1)
    found = np.empty(frames)
    for start, pictures in walk_pictures(store, table, 0, frames, 256, threads):
        found[start : start + len(pictures[0])] = pictures[0].mean(axis=(1, 2, 3))
    return found
