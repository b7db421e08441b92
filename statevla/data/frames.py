"""Where each frame of a store stands, as arrays, and batches of them.

Legend: B batch, K chunk, L numbers of an embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from statevla.data.batch import Batch, ObservationBatch
from stores.errors import UsageError
from stores.reader import Store
from stores.spec import ObsSpec

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """What every gather needs to know of a store, as arrays by segment or by episode.

    steps, observations, first_step, episode: int64 [segments]. instruction: int64 [episodes], row of `language`.
    first_frame, episode_steps: int64 [episodes]. language: float32 [instructions, L]. spec, store_chunk: the store's.
    chunk: K of the batches. labelled: bool [episodes], those whose actions may be seen; None: all. keeps_unlabelled:
    whether batches have the others too, without their actions.
    """

    steps: Ints
    observations: Ints
    first_step: Ints
    episode: Ints
    instruction: Ints
    first_frame: Ints
    episode_steps: Ints
    language: NDArray[np.float32]
    spec: ObsSpec
    store_chunk: int
    chunk: int
    labelled: NDArray[np.bool_] | None = None
    keeps_unlabelled: bool = False

    def rows(self, segment: Ints, step: Ints) -> Ints:
        """Frame numbers of steps in segments."""
        return self.first_frame[self.episode[segment]] + self.first_step[segment] + step

    def last_rows(self, segment: Ints) -> Ints:
        """Frame number of the last action of each segment's episode."""
        episode = self.episode[segment]
        return self.first_frame[episode] + self.episode_steps[episode] - 1


def make_table(store: Store, chunk: int, shuffle_seed: int | None = None) -> Table:
    """Index arrays of `store`; `shuffle_seed` pairs episodes with other instructions (a control experiment).

    Raises StoreMissing when an instruction has no vector.
    """
    segment_columns = store.segment_columns
    longest = int(np.bincount(segment_columns["episode"], weights=segment_columns["steps"]).max(initial=0))
    if 0 < longest < chunk:
        raise UsageError(
            f"model.action_seq_len: {chunk} actions wanted, but the longest episode of {store.root} has {longest}; "
            "choose a chunk that an episode can hold"
        )
    names = sorted({str(text) for text in store.episode_columns["instruction"]})
    row = {text: number for number, text in enumerate(names)}
    instruction = np.array([row[str(text)] for text in store.episode_columns["instruction"]], dtype=np.int64)
    if shuffle_seed is not None:
        instruction = derange(instruction, len(names), shuffle_seed)
    columns = store.segment_columns
    return Table(
        steps=columns["steps"].astype(np.int64),
        observations=columns["observations"].astype(np.int64),
        first_step=columns["first_step"].astype(np.int64),
        episode=columns["episode"].astype(np.int64),
        instruction=instruction,
        first_frame=store.episode_columns["first_frame"].astype(np.int64),
        episode_steps=store.episode_columns["steps"].astype(np.int64),
        language=np.stack([store.language.vector(text) for text in names]).astype(np.float32),
        spec=store.spec,
        store_chunk=int(store.manifest.config["chunk"]),
        chunk=chunk,
    )


def derange(instruction: Ints, distinct: int, seed: int) -> Ints:
    """For every episode another instruction than its own, uniformly; a pure function of the arguments.

    Raises UsageError when there is only one instruction.
    """
    if distinct < 2:
        raise UsageError("data.shuffle_instructions: the store has one instruction only; nothing to exchange it with")
    words = np.random.Philox(key=np.array([seed, distinct], dtype=np.uint64)).random_raw(instruction.size)
    return (instruction + 1 + (words % np.uint64(distinct - 1)).astype(np.int64)) % distinct


def assemble(
    table: Table,
    segment: Ints,
    step: Ints,
    chunk: NDArray[np.float32],
    is_pad: NDArray[np.bool_],
    observe: Callable[[Ints, torch.Tensor], ObservationBatch],
    ahead: int,
) -> Batch:
    """One batch of steps in segments. observe: the observations so many steps after each. ahead: steps to
    `next_obs`, where the segment holds one so far on, else to the last one that it does. Actions of episodes without
    labels are NaN, all of them padding.
    """
    episode = table.episode[segment]
    if table.labelled is not None:
        hidden = ~table.labelled[episode]
        chunk = np.where(hidden[:, None, None], np.float32(np.nan), chunk)
        is_pad = is_pad | hidden[:, None]
    language = torch.from_numpy(table.language[table.instruction[episode]])
    later = np.minimum(ahead, table.observations[segment] - 1 - step)
    obs = observe(np.zeros_like(later), language)
    return Batch(
        obs=obs,
        next_obs=observe(later, language) if ahead else obs,
        ahead=torch.from_numpy(later),
        action=torch.from_numpy(np.ascontiguousarray(chunk[:, 0])),
        chunk=torch.from_numpy(chunk),
        is_pad=torch.from_numpy(is_pad),
        episode=torch.from_numpy(episode),
        frame=torch.from_numpy(table.first_step[segment] + step),
    )
