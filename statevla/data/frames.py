"""Decoded segments in flat arrays, from which a batch is a few array gathers.

Legend: N observations of all held segments, M their action rows, B batch, K chunk, H height, W width, R numbers of a
robot state, A of an action, L of an embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from statevla.data.batch import Batch, ObservationBatch
from statevla.data.numbers import Numbers
from stores.errors import StoreCorrupt, UsageError
from stores.reader import Store
from stores.spec import ObsSpec

Ints = NDArray[np.int64]
KEPT_BUFFERS: Final = 2
"""Blocks end one after the other: as many as may be free at once."""


@dataclass(frozen=True)
class Table:
    """What every gather needs to know of a store, as arrays by segment or by episode.

    steps, observations, first_step, episode: int64 [segments]. instruction: int64 [episodes], row of `language`.
    first_frame, episode_steps: int64 [episodes]. language: float32 [instructions, L]. spec, store_chunk: the store's.
    chunk: K of the batches.
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


class Buffers:
    """Room for decoded pictures that is used again: fresh memory costs a page fault every 4 KB, as much as a copy."""

    def __init__(self) -> None:
        self._free: list[tuple[NDArray[np.uint8], ...]] = []

    def take(self, table: Table, observations: int) -> tuple[NDArray[np.uint8], ...]:
        """uint8 [N or more, H, W, 3] a camera, its content anything."""
        for index, found in enumerate(self._free):
            if len(found[0]) >= observations:
                return self._free.pop(index)
        return tuple(np.empty((observations, *size, 3), dtype=np.uint8) for size in table.spec.image_sizes)

    def give(self, frames: "Frames") -> None:
        """Nobody reads `frames` any more, nor decodes into it."""
        self._free = [*self._free, frames.whole][-KEPT_BUFFERS:]


class Frames:
    """Decoded observations and actions of some segments, end to end.

    images: uint8 [N, H, W, 3] a camera. robot_state: float32 [N, R]. action: float32 [M, A]. is_pad: bool [M].
    Filled segment by segment through `load`, from any thread; each writes its own rows only.
    """

    def __init__(self, table: Table, segments: Ints, buffers: "Buffers | None" = None) -> None:
        self.table, self.segments = table, segments
        self.obs_start, observations = _starts(table.observations[segments])
        self.action_start, actions = _starts(table.steps[segments] + table.store_chunk - 1)
        self.whole = (buffers or Buffers()).take(table, observations)
        self.images = tuple(pictures[:observations] for pictures in self.whole)
        self.robot_state = np.empty((observations, table.spec.robot_state_dim), dtype=np.float32)
        self.action = np.empty((actions, table.spec.action_dim), dtype=np.float32)
        self.is_pad = np.empty(actions, dtype=np.bool_)
        self._sorter = np.argsort(segments, kind="stable")

    def load(self, store: Store, segment: int) -> None:
        """Fetch and decode one segment into its rows. Raises StoreCorrupt when its arrays have another shape."""
        where = self._where(np.array([segment], dtype=np.int64))[0]
        read = store.read_segment(segment)
        obs = slice(int(self.obs_start[where]), int(self.obs_start[where] + self.table.observations[segment]))
        rows = int(self.table.steps[segment]) + self.table.store_chunk - 1
        acts = slice(int(self.action_start[where]), int(self.action_start[where]) + rows)
        for name, target, value in (
            ("robot_state", self.robot_state[obs], read.robot_state),
            ("action", self.action[acts], read.action),
            ("is_pad", self.is_pad[acts], read.is_pad),
        ):
            if value.shape != target.shape or value.dtype != target.dtype:
                raise StoreCorrupt(
                    f"{store.root}: segment {segment}, {name}: expected {target.dtype} {target.shape}, "
                    f"got {value.dtype} {value.shape}; run `statevla verify {store.root}`"
                )
            target[...] = value
        read.decode(out=[frames[obs] for frames in self.images])

    def rows(self, segment: Ints, step: Ints) -> tuple[Ints, Ints]:
        """Rows of the observation and of the action of each (segment, step)."""
        where = self._where(segment)
        return self.obs_start[where] + step, self.action_start[where] + step

    def _where(self, segment: Ints) -> Ints:
        found = np.searchsorted(self.segments, segment, sorter=self._sorter)
        return self._sorter[found].astype(np.int64)


def _starts(sizes: Ints) -> tuple[Ints, int]:
    ends = np.cumsum(sizes)
    return ends - sizes, int(ends[-1]) if sizes.size else 0


@dataclass(frozen=True)
class Part:
    """Rows of a batch that come from the same `frames`: segment and step of each, int64 [rows]."""

    frames: Frames
    segment: Ints
    step: Ints


def decoded_bytes(table: Table, segments: Ints) -> int:
    """RAM that the decoded images of `segments` take."""
    pixels = sum(height * width for height, width in table.spec.image_sizes)
    return int(table.observations[segments].sum()) * pixels * 3


def gather(table: Table, parts: list[Part], *, ahead: int, pin: bool, numbers: Numbers | None = None) -> Batch:
    """One batch, parts in order. With `ahead` 0, `next_obs` is `obs` itself and `has_next` false everywhere.

    `pin` puts all of it in page-locked memory, for copies to the GPU that do not block. numbers: where the actions are
    to come from when the segments' own chunks are too short.
    """
    segment = np.concatenate([part.segment for part in parts])
    step = np.concatenate([part.step for part in parts])
    rows = [part.frames.rows(part.segment, part.step) for part in parts]
    cuts = np.cumsum([part.segment.size for part in parts])[:-1]
    offsets = np.arange(table.chunk, dtype=np.int64)

    def observe(later: Ints, language: torch.Tensor) -> ObservationBatch:
        at = [obs_row + more for (obs_row, _), more in zip(rows, np.split(later, cuts), strict=True)]
        state = np.concatenate([p.frames.robot_state[a] for p, a in zip(parts, at, strict=True)])
        return ObservationBatch(_take_images(table, parts, at, pin), torch.from_numpy(state), language)

    if numbers is not None:
        chunk, is_pad = numbers.actions(table.rows(segment, step), table.last_rows(segment), table.chunk)
    else:
        chunk = np.concatenate([p.frames.action[a[:, None] + offsets] for p, (_, a) in zip(parts, rows, strict=True)])
        is_pad = np.concatenate([p.frames.is_pad[a[:, None] + offsets] for p, (_, a) in zip(parts, rows, strict=True)])
    batch = assemble(table, segment, step, chunk, is_pad, observe, ahead)
    return batch.pin() if pin else batch


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
    `next_obs`, where the segment holds one so far on, else to the last one that it does.
    """
    episode = table.episode[segment]
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


def _take_images(table: Table, parts: list[Part], rows: list[Ints], pin: bool) -> tuple[torch.Tensor, ...]:
    """uint8 [B, H, W, 3] a camera, copied once, by gathers that release the GIL."""
    count, found = sum(row.size for row in rows), []
    for camera, size in enumerate(table.spec.image_sizes):
        out = torch.empty((count, *size, 3), dtype=torch.uint8, pin_memory=pin)
        view, start = out.numpy(), 0
        for part, row in zip(parts, rows, strict=True):
            # mode="clip" lets NumPy write into `out` directly; rows are in range by construction.
            np.take(part.frames.images[camera], row, axis=0, out=view[start : start + row.size], mode="clip")
            start += row.size
        found.append(out)
    return tuple(found)
