"""Which actions of which predicted chunk are executed, and when.

Legend: K chunk, n actions executed between two predictions (the replanning horizon), A action dimensions, P predictions
of one step.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stores.errors import UsageError
from stores.spec import LIBERO, ObsSpec

AGREE: Final = 0.5
"""Cosine to the newest prediction from which another one votes with it."""


@dataclass(frozen=True)
class Execution:
    """How chunks become actions.

    replan: actions executed of each chunk; None: half of it. ensemble: average all chunks that predicted a step, with
    weights ``exp(-ensemble * i)``, i = 0 for the oldest (temporal ensembling as in ACT, Zhao et al. 2023): a small
    value trusts old and new alike, a large one the oldest, a negative one the newest. vote: average those that agree
    with the newest, where these are the majority, else the others (VOTE). latency_steps: a chunk can be used only so
    many steps after what it saw; until then the older chunks go on.
    """

    replan: int | None = None
    ensemble: float | None = None
    vote: bool = False
    latency_steps: int = 0

    def __post_init__(self) -> None:
        if self.replan is not None and self.replan < 1:
            raise UsageError(f"replan: expected at least 1, got {self.replan}")
        if self.ensemble is not None and not np.isfinite(self.ensemble):
            raise UsageError(f"ensemble: expected a finite weight, got {self.ensemble}")
        if self.vote and self.ensemble is not None:
            raise UsageError("ensemble and vote are two ways to combine chunks; choose one")
        if self.latency_steps < 0:
            raise UsageError(f"latency_steps: expected at least 0, got {self.latency_steps}")

    def resolve(self, chunk: int) -> "Execution":
        """With `replan` said, for a policy's chunk. Raises UsageError where the chunk is too short."""
        replan = (chunk + 1) // 2 if self.replan is None else self.replan
        if replan > chunk:
            raise UsageError(f"replan: expected at most the policy's chunk of {chunk} actions, got {replan}")
        if replan + self.latency_steps > chunk:
            raise UsageError(
                f"replan {replan} and latency_steps {self.latency_steps}: a chunk of {chunk} actions ends before the "
                "next one is there; choose smaller numbers"
            )
        return Execution(replan, self.ensemble, self.vote, self.latency_steps)


class ChunkBuffer:
    """Chunks of one episode; gives the next ``replan`` actions.

    Binary dimensions, which know two values only, go with the sign of what is averaged: the (weighted) majority.
    """

    def __init__(self, execution: Execution, spec: ObsSpec = LIBERO) -> None:
        self._execution = execution
        self._moves, self._switches = list(spec.continuous), list(spec.binary)
        self._step = 0
        self._chunks: list[tuple[int, NDArray[np.float64]]] = []

    def add(self, chunk: NDArray[np.float32]) -> NDArray[np.float64]:
        """Takes the chunk ``[K, A]`` predicted for now; returns the actions ``[n, A]`` to execute, float64.

        Raises UsageError as `Execution.resolve`.
        """
        execution = self._execution.resolve(len(chunk))
        self._chunks.append((self._step, chunk.astype(np.float64)))
        count = execution.replan or len(chunk)
        actions = np.stack([self._action(self._step + ahead) for ahead in range(count)])
        self._step += count
        self._chunks = [(start, c) for start, c in self._chunks if start + len(c) > self._step]
        return actions

    def _action(self, step: int) -> NDArray[np.float64]:
        latency = self._execution.latency_steps
        predictions = [c[step - start] for start, c in self._chunks if latency <= step - start < len(c)]
        if not predictions:
            return still(len(self._moves) + len(self._switches), self._switches)
        if self._execution.vote:
            return _mean(_majority(np.stack(predictions), self._moves), self._switches)
        if self._execution.ensemble is not None:
            powers = -self._execution.ensemble * np.arange(len(predictions))
            return _mean(np.stack(predictions), self._switches, np.exp(powers - powers.max()))  # of any size
        return np.asarray(predictions[-1])


def still(width: int, switches: list[int]) -> NDArray[np.float64]:
    """What a robot does that has nothing to do yet: no motion, binary dimensions at -1 (gripper open)."""
    action = np.zeros(width)
    action[switches] = -1.0
    return action


def _majority(predictions: NDArray[np.float64], moves: list[int]) -> NDArray[np.float64]:
    """Rows of ``[P, A]`` that agree with the last one when they are more than half, else the others."""
    pose = predictions[:, moves]
    norms = np.linalg.norm(pose, axis=1)
    scale = norms * norms[-1]
    cosine = np.divide(pose @ pose[-1], scale, out=np.ones(len(pose)), where=scale > 0)
    agree = cosine >= AGREE
    return np.asarray(predictions[agree] if 2 * agree.sum() > len(agree) else predictions[~agree])


def _mean(
    predictions: NDArray[np.float64], switches: list[int], weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Of rows ``[P, A]``, dimensions `switches` by the sign of their mean; a single row as it is."""
    if len(predictions) == 1:
        return np.asarray(predictions[0])
    mean = np.average(predictions, axis=0, weights=weights)
    mean[switches] = np.where(mean[switches] > 0, 1.0, -1.0)
    return np.asarray(mean)
