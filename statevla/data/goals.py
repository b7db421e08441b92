"""What is to be reached from each row of a batch: a later observation of the same episode.

Which one is a function of (seed, epoch, episode, frame) and of nothing else, so that it does not depend on ranks,
threads or an interruption.

Legend: B rows.
"""

import dataclasses
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import torch

from statevla.data.batch import Batch, ObservationBatch
from statevla.data.frames import Ints
from statevla.data.machine import cache_bytes, loader_threads
from statevla.data.source import Source

NEAR: Final = 2
"""Goals of kind ``near`` are at most so many chunks ahead."""


class Goals:
    """Chooses and reads the goals of a split's rows.

    kind: ``final``, the episode's last observation; ``future``, a later one, uniform; ``near``, the same at most two
    chunks ahead; ``mixed``, ``final`` in half of the rows and ``future`` in the others. The last observation is its own
    goal. They are read as the rows of `source` are: by its view, else from pictures, whose decoded segments are kept
    while they fit in `cache` bytes (default: what the source may keep).
    """

    def __init__(self, source: Source, kind: str, seed: int, cache: float | None = None) -> None:
        table = source.table
        self.source, self.table, self.kind, self.seed = source, table, kind, seed
        self._order = np.lexsort((table.first_step, table.episode))
        self._places = table.episode[self._order] * _EPISODE + table.first_step[self._order]
        self.last = np.zeros(int(table.episode.max()) + 1, dtype=np.int64)
        np.maximum.at(self.last, table.episode, table.first_step + table.observations - 1)
        self._held: OrderedDict[int, tuple[tuple[np.ndarray, ...], np.ndarray]] = OrderedDict()
        self._bytes, self._most = 0, cache_bytes(source.data) if cache is None else cache

    def choose(self, episode: Ints, frame: Ints, epoch: int) -> Ints:
        """The goal's frame of each row, from the row's own to the episode's last."""
        last = self.last[episode]
        if self.kind == "final":
            return last
        left = last - frame
        if self.kind == "near":
            left = np.minimum(left, NEAR * self.table.chunk)
        words = mix(_word(self.seed, epoch), episode, frame)
        later = frame + np.where(left > 0, 1 + (words >> np.uint64(1)).astype(np.int64) % np.maximum(left, 1), 0)
        if self.kind == "mixed":
            return np.where(mix(words, episode, frame) & np.uint64(1), last, later)
        return later

    def attach(self, batch: Batch, epoch: int) -> Batch:
        """`batch` with its rows' goals; in page-locked memory where the batch is."""
        episode, frame = batch.episode.numpy(), batch.frame.numpy()
        chosen = self.choose(episode, frame, epoch)
        goal = self._read(episode, chosen, batch.obs.language)
        pinned = batch.action.is_pinned()
        return dataclasses.replace(
            batch, goal=goal.pin() if pinned else goal, goal_frame=torch.from_numpy(chosen.astype(np.int64))
        )

    def _read(self, episode: Ints, frame: Ints, language: torch.Tensor) -> ObservationBatch:
        if self.source.view is not None:
            at = self.table.first_frame[episode] + frame
            numbers = torch.from_numpy(self.source.numbers.robot_state(at))
            with ThreadPoolExecutor(loader_threads(self.source.data), thread_name_prefix="goals") as pool:
                seen = {"images": (), **self.source.view.observe(at, False, pool)}
            return ObservationBatch(robot_state=numbers, language=language, **seen)
        where = np.searchsorted(self._places, episode * _EPISODE + frame, side="right") - 1
        segments = self._order[where]
        offsets = frame - self.table.first_step[segments]
        rows = [self._segment(int(segment)) for segment in segments]
        images = tuple(
            torch.from_numpy(np.stack([seen[camera][at] for (seen, _), at in zip(rows, offsets, strict=True)]))
            for camera in range(len(self.table.spec.image_sizes))
        )
        state = np.stack([numbers[at] for (_, numbers), at in zip(rows, offsets, strict=True)])
        return ObservationBatch(images, torch.from_numpy(state), language)

    def _segment(self, number: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        if number in self._held:
            self._held.move_to_end(number)
            return self._held[number]
        read = self.source.store.read_segment(number)
        found = (read.decode(), read.robot_state)
        self._held[number] = found
        self._bytes += _size(found)
        while self._bytes > self._most and len(self._held) > 1:
            self._bytes -= _size(self._held.popitem(last=False)[1])
        return found


_EPISODE: Final = 2**32
"""More than the frames of any episode."""
_WEYL: Final = np.uint64(0x9E3779B97F4A7C15)


def _word(seed: int, epoch: int) -> np.uint64:
    """Of an epoch, mixed by itself: a sum of epoch and frame would draw a frame's number again a frame later."""
    return np.uint64(mix(np.uint64(seed % 2**64), np.array([epoch]), np.array([0]))[0])


def mix(seed: np.uint64 | np.ndarray, episode: Ints, frame: Ints) -> np.ndarray:
    """uint64 of each row, uniform: SplitMix64's finalizer (Steele et al., OOPSLA 2014) of what it is made of."""
    with np.errstate(over="ignore"):
        z = seed + _WEYL * (episode.astype(np.uint64) * np.uint64(_EPISODE) + frame.astype(np.uint64) + np.uint64(1))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))


def _size(segment: tuple[tuple[np.ndarray, ...], np.ndarray]) -> int:
    images, state = segment
    return sum(frames.nbytes for frames in images) + state.nbytes
