"""Every frame of a store once, in the store's order: for what is computed of each frame and kept by frame number.

Legend: N frames of the store, n of a piece, H height, W width, R numbers of a robot state, L of an embedding.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from statevla.data.batch import ObservationBatch
from statevla.data.frames import Ints, Table
from statevla.data.numbers import Numbers
from statevla.data.views import View
from stores.errors import StoreCorrupt
from stores.printable import word
from stores.reader import Store

Pictures = tuple[NDArray[np.uint8], ...]


def walk_pictures(
    store: Store, table: Table, start: int, stop: int, size: int, threads: int
) -> Iterator[tuple[int, Pictures]]:
    """Frames start … stop - 1 in pieces of `size`, the last one shorter: first frame, uint8 [n, H, W, 3] a camera.

    Segments are decoded by `threads` threads, up to one piece ahead; each is decoded once a call. Raises StoreCorrupt
    where a frame is in no segment of `table`.
    """
    firsts = table.rows(np.arange(len(table.steps), dtype=np.int64), np.zeros(len(table.steps), np.int64))
    coming: deque[tuple[int, Future[Pictures]]] = deque()
    following = int(np.searchsorted(firsts, start, side="right")) - 1
    with ThreadPoolExecutor(threads, thread_name_prefix="statevla-walk") as pool:
        try:
            for begin in range(start, stop, size):
                end = min(begin + size, stop)
                while following < len(firsts) and firsts[following] < min(end + size, stop):
                    coming.append((following, pool.submit(store.decode_segment, following)))
                    following += 1
                out = tuple(np.empty((end - begin, *size, 3), np.uint8) for size in table.spec.image_sizes)
                reached = begin
                for segment, decoding in coming:
                    first = int(firsts[segment])
                    if first >= end or first > reached:
                        break
                    low, high = max(first, begin), min(first + int(table.observations[segment]), end)
                    for whole, part in zip(out, decoding.result(), strict=True):
                        whole[low - begin : high - begin] = part[low - first : high - first]
                    reached = max(reached, high)
                if reached < end:
                    raise StoreCorrupt(
                        f"{store.root}: frames {reached} to {end - 1} are in no segment of its index; "
                        f"run `statevla verify {word(store.root)}`"
                    )
                while coming and _past(table, firsts, coming[0][0]) <= end:
                    coming.popleft()
                yield begin, out
        finally:
            for _, decoding in coming:
                decoding.cancel()


def _past(table: Table, firsts: Ints, segment: int) -> int:
    return int(firsts[segment] + table.observations[segment])


def walk_observations(
    store: Store,
    table: Table,
    numbers: Numbers,
    start: int,
    stop: int,
    size: int,
    threads: int,
    view: View | None = None,
) -> Iterator[tuple[int, ObservationBatch]]:
    """`walk_pictures` as observations with their episode's instruction; of another `view`, if given."""

    def rest(begin: int, end: int) -> tuple[Ints, torch.Tensor, torch.Tensor]:
        rows = np.arange(begin, end, dtype=np.int64)
        episode = np.searchsorted(table.first_frame, rows, side="right") - 1
        language = torch.from_numpy(table.language[table.instruction[episode]])
        return rows, torch.from_numpy(numbers.robot_state(rows)), language

    if view is None:
        for begin, pictures in walk_pictures(store, table, start, stop, size, threads):
            _, state, language = rest(begin, begin + len(pictures[0]))
            yield begin, ObservationBatch(tuple(map(torch.from_numpy, pictures)), state, language)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="statevla-walk") as pool:
        for begin in range(start, stop, size):
            rows, state, language = rest(begin, min(begin + size, stop))
            fields = {"images": (), **view.observe(rows, False, pool)}
            yield begin, ObservationBatch(robot_state=state, language=language, **fields)
