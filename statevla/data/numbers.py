"""Robot states and action chunks by frame number, from ``frames.zarr``: any chunk length, whatever the ingest's.

Legend: B rows of a batch, K chunk, R numbers of a robot state, A of an action.
"""

import functools
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stores.reader import Store

Ints = NDArray[np.int64]

WHOLE_BYTES: Final = 256 * 2**20
"""Numbers of a store that take no more than this are read once and kept."""


class Numbers:
    """The numbers of a store. Small ones are held whole, of others the last chunks of ``frames.zarr`` that were used.

    chunks: of each array, how many to hold: as many as a batch's open segments may lie in.
    """

    def __init__(self, store: Store, chunks: int) -> None:
        self.arrays = {name: store.numbers[name] for name in ("robot_state", "action")}
        size = sum(array.spec.shape[0] * array.spec.row_bytes for array in self.arrays.values())
        self.whole = {name: array.read() for name, array in self.arrays.items()} if size <= WHOLE_BYTES else None
        self._chunk = functools.lru_cache(maxsize=2 * chunks)(self._read)

    def robot_state(self, rows: Ints) -> NDArray[np.float32]:
        """float32 [B, R] of frames `rows`."""
        return self._take("robot_state", rows)

    def actions(self, rows: Ints, last: Ints, chunk: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """From frames `rows` on: float32 [B, K, A], bool [B, K]; past frame `last`, the episode's last that has an
        action, that one is repeated and the flag is true.
        """
        wanted = rows[:, None] + np.arange(chunk, dtype=np.int64)
        found = self._take("action", np.minimum(wanted, last[:, None]).reshape(-1))
        return found.reshape(len(rows), chunk, -1), wanted > last[:, None]

    def _take(self, name: str, rows: Ints) -> NDArray[np.float32]:
        if self.whole is not None:
            return np.ascontiguousarray(self.whole[name][rows], np.float32)
        spec = self.arrays[name].spec
        out = np.empty((len(rows), *spec.shape[1:]), np.float32)
        number, inside = np.divmod(rows, spec.chunk)
        for m in np.unique(number).tolist():
            mine = number == m
            out[mine] = self._chunk(name, m)[inside[mine]]
        return out

    def _read(self, name: str, m: int) -> NDArray[Any]:
        return self.arrays[name].chunk(m)
