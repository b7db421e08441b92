"""Train-split statistics of actions and robot states, written next to the store under its content's key.

Moments are made per episode and merged in episode order, so the result has the same bits for any number of workers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.run import run_units
from stores.cloud.publish import put_derived
from stores.cloud.storage import RemoteStorage
from stores.disk import durable
from stores.errors import StoreError, UsageError
from stores.progress import Progress, ProgressEvent
from stores.reader import Store
from stores.statistics import (
    FIELDS,
    Moments,
    Normalization,
    Statistics,
    load_stats,
    merge,
    quantiles,
    save_stats,
    stats_file,
)

BLOCK_EPISODES: Final = 256
"""Episodes of one task. It shares out the work; it does not touch the result."""
SPLIT: Final = "train"


@dataclass(frozen=True)
class StatsTask:
    """Rows of episodes.parquet whose moments are wanted, of the store at `root`."""

    root: str
    episodes: tuple[int, ...]


def compute_statistics(
    root: Path | str, workers: int = 0, scheduler: str | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Statistics of the store at `root`, saved as ``stats/<key>.json``, as {"action": {...}, "robot_state": {...}}.

    Each: mean, std, min, max, q01, q99 (lists, float64) and count. A store that has its own already is left untouched.
    At a URL the file is put conditionally; the manifest names no derived files and stays as it is.
    Raises UsageError when the train split is empty; StoreMissing, StoreCorrupt on a store that cannot be read.
    """
    store = Store.open(root)
    try:
        return load_stats(store.storage, store.manifest_hash, SPLIT).to_dict()
    except StoreError:
        pass  # none, of another content, or damaged: all are answered by computing them
    train = tuple(int(row) for row, split in enumerate(store.episode_columns["split"]) if split == SPLIT)
    if not train:
        raise UsageError(f"{root}: no episode is in the {SPLIT} split; ingest with a larger train_split")
    place = str(Path(root).resolve()) if "://" not in str(root) else str(root)
    blocks = [train[start : start + BLOCK_EPISODES] for start in range(0, len(train), BLOCK_EPISODES)]
    tasks = [(f"stats-{number}", StatsTask(place, block)) for number, block in enumerate(blocks)]
    parts: dict[int, dict[str, Moments]] = {}
    for _, result in run_units(block_moments, tasks, workers, scheduler):
        parts.update(result)
        if progress is not None:
            progress(ProgressEvent("stats", len(parts), len(train), "episodes"))
    normalization = Normalization(
        **{
            name: Statistics.of(merge([parts[row][name] for row in train]), quantiles(train_rows(store, train, name)))
            for name in FIELDS
        }
    )
    if isinstance(store.storage, RemoteStorage):
        put_derived(store.storage.root, *stats_file(store.manifest_hash, normalization, SPLIT))
    else:
        with durable.lock(root, "statevla stats"):
            save_stats(root, store.manifest_hash, normalization, SPLIT)
    return normalization.to_dict()


def block_moments(task: StatsTask) -> dict[int, dict[str, Moments]]:
    """Moments of every field, by row of episodes.parquet."""
    store = Store.open(task.root)
    return {
        row: {name: Moments.of(train_rows(store, (row,), name), f"episode {row}, {name}") for name in FIELDS}
        for row in task.episodes
    }


def train_rows(store: Store, episodes: tuple[int, ...], name: str) -> NDArray[np.float32]:
    """Rows of field `name` of those episodes, float32 [n, D]: actions of all steps, robot states of all frames."""

    columns = store.episode_columns
    lengths = columns["steps" if name == "action" else "frames"]
    spans = [(int(columns["first_frame"][row]), int(lengths[row])) for row in episodes]
    return np.concatenate([store.frames[name][first : first + count] for first, count in spans])
