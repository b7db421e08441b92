"""Which actions of which predicted chunk are executed.

Legend: K chunk, A numbers of an action, n actions executed between two predictions (the replanning horizon).
"""

import numpy as np
from numpy.typing import NDArray

from stores.errors import UsageError
from stores.spec import LIBERO


class ChunkBuffer:
    """Chunks of one episode; gives the next ``replan`` actions.

    Without ``ensemble`` these are the first ones of the newest chunk. With it, each is the mean of all chunks that
    predicted it, weighted by ``exp(-ensemble * i)`` with i = 0 for the oldest of them (temporal ensembling as in ACT,
    Zhao et al. 2023): a small value trusts old and new alike, a large one the oldest. Dimensions `binary`, which know
    two values only, go with the sign of their mean.
    """

    def __init__(self, replan: int | None, ensemble: float | None, binary: tuple[int, ...] = LIBERO.binary) -> None:
        self._replan = replan
        self._binary = list(binary)
        self._ensemble = ensemble
        self._step = 0
        self._chunks: list[tuple[int, NDArray[np.float64]]] = []

    def add(self, chunk: NDArray[np.float32]) -> NDArray[np.float64]:
        """Takes the chunk ``[K, A]`` predicted for now; returns the actions ``[n, A]`` to execute, float64.

        Raises:
            UsageError: the replanning horizon is longer than the chunk.
        """
        length = len(chunk)
        count = length if self._replan is None else self._replan
        if count > length:
            raise UsageError(f"replan: expected at most the policy's chunk of {length} actions, got {count}")
        self._chunks.append((self._step, chunk.astype(np.float64)))
        self._chunks = [(start, c) for start, c in self._chunks if start + len(c) > self._step]
        if self._ensemble is None:
            self._chunks = self._chunks[-1:]
        actions = np.stack([self._action(self._step + ahead) for ahead in range(count)])
        self._step += count
        return actions

    def _action(self, step: int) -> NDArray[np.float64]:
        predictions = np.stack([c[step - start] for start, c in self._chunks if step - start < len(c)])
        if len(predictions) == 1 or self._ensemble is None:
            return np.asarray(predictions[-1])
        weights = np.exp(-self._ensemble * np.arange(len(predictions)))
        mean = np.asarray(weights @ predictions / weights.sum())
        mean[self._binary] = np.where(mean[self._binary] > 0, 1.0, -1.0)
        return mean
