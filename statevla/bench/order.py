"""How mixed batches are: ours, by blocks, lanes and segment length, against a full shuffle of all transitions.

Of every batch: how many episodes and how many segments its rows come from; and how alike its rows are, as the variance
of the batches' mean pictures over what independent rows give (1 is as good as that; a batch of frames of one moment
would have as many as it has rows). With a policy, the same of its losses, and how much the losses of two rows of a
batch correlate: by that a batch teaches less than as many independent rows. Only the index and one number a frame are
needed, so that this is quick for any store. And what it costs to begin anywhere in an epoch.

Legend: S segments of a split, B batch, N frames of the store.
"""

import statistics
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from statevla.bench.machine import describe_machine
from statevla.config import DataConfig
from statevla.data.frames import make_table
from statevla.data.loaders import split_segments, training_plans
from statevla.data.machine import loader_threads
from statevla.data.order import Order, plan_order, rank_lanes
from statevla.data.prefetch import Position
from statevla.data.walk import walk_pictures
from statevla.evaluators.offline import OfflinePolicy, predict
from stores.errors import UsageError
from stores.reader import Store

SETTINGS: Final = ((8, 16), (8, 32), (8, 8), (8, 128), (4, 16), (16, 16), (32, 16), (1, 16), (8, 1))
"""(lanes, segments in a block) that are compared; the first is the default."""
BATCHES: Final = 200
PLACES: Final = {"beginning": 0.0, "middle": 0.5, "end": 1.0}
"""Of an epoch, from which its first batch is planned."""


def bench_order(
    store: Store | Path | str,
    *,
    batch_size: int = 64,
    batches: int = BATCHES,
    threads: int | None = None,
    pictures: bool = True,
    policy: OfflinePolicy | None = None,
) -> dict[str, Any]:
    """The first `batches` batches of an epoch of each of `SETTINGS`, and of a full shuffle.

    pictures: a store that has some; without them no variances. policy: of whose losses to tell too; the squared error
    of its chunks on every step of the train split, standardized, padding left out.

    Returns name, unit, ours (episodes a batch by default), limit (of the full shuffle), ratio, peers, machine, details.
    """
    store = store if isinstance(store, Store) else Store.open(store)
    table = make_table(store, 1)
    segments, counts = split_segments(store, table, "train", with_next_only=False)
    if int(counts.sum()) < 2 * batch_size:
        raise UsageError(f"{store.root}: {int(counts.sum())} transitions are too few for two batches of {batch_size}")
    values = {"": _brightness(store, loader_threads(DataConfig(loader_threads=threads)))} if pictures else {}
    if policy is not None:
        values["loss_"] = losses_of_frames(store, policy, batch_size)

    def measure(drawn: list[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> dict[str, float]:
        episodes = [len(np.unique(table.episode[segment])) for segment, _ in drawn]
        pieces = [len(np.unique(segment)) for segment, _ in drawn]
        found = {"episodes": float(statistics.mean(episodes)), "segments": float(statistics.mean(pieces))}
        for name, value in values.items():
            means = [float(value[table.rows(segment, step)].mean()) for segment, step in drawn]
            found[f"{name}variance_ratio"] = ratio = float(np.var(means)) / expected[name]
            if name:  # of two rows of a batch: its mean varies by 1 + (B - 1) times that
                found[f"{name}correlation"] = (ratio - 1) / (batch_size - 1)
        return found

    owner = np.repeat(np.arange(len(segments)), counts)
    step = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    # Of the mean of independent rows.
    every = table.rows(segments[owner], step)
    expected = {name: float(value[every].var()) / batch_size for name, value in values.items()}
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
            "seconds_to_first_batch": _seek(counts, segments, batch_size),
        },
    }


def _seek(counts: NDArray[np.int64], segments: NDArray[np.int64], batch_size: int) -> dict[str, float]:
    """Seconds of the processor from a plan of the default order to the first batch at each of `PLACES` of an epoch,
    the fastest of three; nothing is read.
    """
    lanes, block = SETTINGS[0]
    order = plan_order(counts, seed=0, batch_size=batch_size, lanes=lanes, block_segments=block)
    return {
        name: min(_first_batch(order, segments, round(share * (order.batches - 1))) for _ in range(3))
        for name, share in PLACES.items()
    }


def _first_batch(order: Order, segments: NDArray[np.int64], batch: int) -> float:
    began = time.process_time()
    next(training_plans(order, segments, rank_lanes(order), Position(1, batch)))
    return time.process_time() - began


def _brightness(store: Store, threads: int) -> NDArray[np.float64]:
    """Mean of the first camera's pixels, of each frame: float64 [N]."""
    frames, table = store.manifest.counts["frames"], make_table(store, 1)
    found = np.empty(frames)
    for start, pictures in walk_pictures(store, table, 0, frames, 256, threads):
        found[start : start + len(pictures[0])] = pictures[0].mean(axis=(1, 2, 3))
    return found


def losses_of_frames(store: Store, policy: OfflinePolicy, batch_size: int) -> NDArray[np.float64]:
    """The mean squared error of the policy's chunk at each frame, standardized, over the steps that are not padding:
    float64 [N], NaN where no step of the train split begins.
    """
    found = predict(policy, store, "train", batch_size=batch_size, seed=0)
    standardize = policy.standardize_action
    scale = standardize.scale.detach().cpu().double().numpy()
    error = ((found.predicted - found.target) / np.where(scale == 0, 1.0, scale)) ** 2
    keep = ~found.is_pad
    losses = np.full(store.manifest.counts["frames"], np.nan)
    rows = store.episode_columns["first_frame"][found.episode] + found.frame
    losses[rows] = (error.mean(axis=2) * keep).sum(axis=1) / keep.sum(axis=1)
    return losses
