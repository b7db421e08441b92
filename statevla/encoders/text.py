"""What an instruction encoder is. Those that there are: `statevla.encoders.table.TEXT`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Encode = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass(frozen=True)
class TextEncoder:
    """A frozen map from text to a vector.

    id and revision: recorded with every vector, and how it was made; two stores with equal ones, and for a `fit` with
    equal instructions, have comparable vectors.
    width: numbers of a vector.
    encode: texts -> float32 [len(texts), width]; the vector of a text does not depend on the other texts.
    fit: for encoders whose vectors are taken relative to a store's instructions: these -> `encode` for that store. None
    for those whose vectors are the same in every store.
    """

    id: str
    revision: str
    width: int
    encode: Encode
    fit: Callable[[Sequence[str]], Encode] | None = None

    def for_store(self, instructions: Sequence[str]) -> Encode:
        """`encode` as a store with these instructions uses it. Their order and repetitions do not matter."""
        return self.encode if self.fit is None else self.fit(sorted(set(instructions)))
