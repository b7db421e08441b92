"""Episodes whose actions may be seen in training, for experiments with few of them (pseudo-labels).

Which ones is a function of the seed and the episode's number alone. What is hidden is hidden where batches are put
together: as NaN, and as padding, so that a loss that looks at it all the same cannot pass unnoticed.

Legend: E episodes.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from statevla.config import DataConfig
from statevla.data.frames import Table
from statevla.data.goals import mix
from stores.errors import UsageError
from stores.reader import Store

LABELLED = 0xC2B2AE3D27D4EB4F
"""Added to the seed: another stream than that of goals."""
KEEP = "keep"


def labelled_episodes(store: Store, table: Table, share: float, seed: int) -> NDArray[np.bool_]:
    """bool [E]: of the train split's episodes, of each instruction by itself, that share of them, one at least; of
    other splits, all.
    """
    codes, names = store.episode_columns.codes("split")
    train = np.array([name == "train" for name in names], dtype=np.bool_)[codes]
    word = np.uint64((seed + LABELLED) % 2**64)
    episodes = np.arange(len(train))
    drawn = mix(word, episodes, np.zeros_like(episodes))
    found = ~train
    for instruction in np.unique(table.instruction[train]):
        mine = np.flatnonzero(train & (table.instruction == instruction))
        first = mine[np.argsort(drawn[mine], kind="stable")]
        found[first[: max(round(share * len(mine)), 1)]] = True
    return found


def choose_labelled(store: Store, table: Table, data: DataConfig, seed: int) -> Table:
    """`table` with what ``data.labelled_share`` and ``data.unlabelled`` say. Raises UsageError where drawing steps by
    their actions would tell of hidden ones, and where ``data.labelled_times`` has nothing to stand beside.
    """
    keeps = data.unlabelled == KEEP and data.labelled_share < 1
    if data.labelled_times > 1 and not keeps:
        raise UsageError(
            f"data.labelled_times: {data.labelled_times} draws labelled rows more often than those without labels, of "
            "which there are none; set data.unlabelled=keep and data.labelled_share, or leave it out"
        )
    if data.labelled_share >= 1:
        return table
    if keeps and data.oversample_gripper > 1:
        raise UsageError(
            f"data.oversample_gripper: {data.oversample_gripper} looks at the actions that data.unlabelled=keep hides; "
            "leave one of the two out"
        )
    labelled = labelled_episodes(store, table, data.labelled_share, seed)
    return dataclasses.replace(table, labelled=labelled, keeps_unlabelled=keeps)
