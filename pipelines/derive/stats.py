"""Train-split statistics of actions and robot states, written next to the store under its content's key.

One pass over the rows of ``frames.zarr``, an episode at a time, in memory for one chunk of each array, one episode and
the tails of each dimension. Moments are made per episode and added in episode order: always the same bits.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stores.arrays import CheckedArray
from stores.cloud.publish import put_derived
from stores.cloud.storage import RemoteStorage
from stores.disk.lock import lock
from stores.errors import StoreError, UsageError
from stores.progress import Progress, ProgressEvent
from stores.reader import Store
from stores.statistics import FIELDS, Moments, Normalization, Statistics, Tails, load_stats, save_stats, stats_file

SPLIT: Final = "train"
LENGTHS: Final = {"action": "steps", "robot_state": "frames"}
"""Column of episodes.parquet with the rows that count: actions of all steps, robot states of all frames."""
REPORT_EPISODES: Final = 256


def compute_statistics(root: Path | str, progress: Progress | None = None) -> dict[str, Any]:
    """Statistics of the store at `root`, saved as ``stats/<key>.json``, as {"action": {...}, "robot_state": {...}}.

    Each: mean, std, min, max, q01, q99 (lists, float64) and count. A store that has its own already is left untouched.
    At a URL the file is put conditionally; the manifest names no derived files and stays as it is.
    Raises UsageError when the train split is empty; StoreMissing, StoreCorrupt on a store that cannot be read.
    """
    store = Store.open(root)
    try:
        return load_stats(store.storage, store.content_hash, SPLIT).to_dict()
    except StoreError:
        pass  # none, of another content, or damaged: all are answered by computing them
    normalization = measure(store, progress)
    if isinstance(store.storage, RemoteStorage):
        put_derived(store.storage.root, *stats_file(store.content_hash, normalization, SPLIT))
    else:
        with lock(root, "statevla stats"):
            save_stats(root, store.content_hash, normalization, SPLIT)
    return normalization.to_dict()


def measure(store: Store, progress: Progress | None = None) -> Normalization:
    """Statistics of both fields over the train split. Raises UsageError when it is empty."""
    columns = store.episode_columns
    train = np.flatnonzero(columns["split"] == SPLIT)
    if not len(train):
        raise UsageError(f"{store.root}: no episode is in the {SPLIT} split; ingest with a larger train_split")
    rows = {name: rows_of(store.numbers[name]) for name in FIELDS}
    tails = {
        name: Tails(int(columns[LENGTHS[name]][train].sum()), store.numbers[name].spec.shape[1]) for name in FIELDS
    }
    moments: dict[str, Moments] = {}
    for done, episode in enumerate(train.tolist(), 1):
        first = int(columns["first_frame"][episode])
        for name in FIELDS:
            values = rows[name](first, first + int(columns[LENGTHS[name]][episode]))
            found = Moments.of(values, f"{store.root}: episode {episode}, {name}")
            moments[name] = moments[name] + found if name in moments else found
            tails[name].add(values)
        if progress is not None and (done % REPORT_EPISODES == 0 or done == len(train)):
            progress(ProgressEvent("stats", done, len(train), "episodes"))
    return Normalization(**{name: Statistics.of(moments[name], tails[name].quantiles()) for name in FIELDS})


def rows_of(array: CheckedArray) -> Callable[[int, int], NDArray[Any]]:
    """Rows start ... stop - 1 of `array`, for who asks in order: the last chunk is kept, so each is read once."""
    chunk = functools.lru_cache(maxsize=1)(array.chunk)
    size = array.spec.chunk

    def read(start: int, stop: int) -> NDArray[Any]:
        pieces = [chunk(m)[max(start - m * size, 0) : stop - m * size] for m in range(start // size, -(-stop // size))]
        return np.concatenate(pieces)

    return read
