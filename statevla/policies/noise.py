"""Noise of a decision: a function of (seed, trial, call) and of nothing else.

Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) makes a stream out of a key and a
counter, so that every row has its own stream, whichever rows are beside it in a batch, whichever worker it runs in and
whatever was drawn before.

Legend: B rows.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from stores.errors import UsageError

WORD: Final = 2**64


class Draw(NamedTuple):
    """Which noise a row gets. seed: of the evaluation. trial: of the episode. call: of the policy, in the episode.

    Each a whole number in [0, 2^64).
    """

    seed: int = 0
    trial: int = 0
    call: int = 0


def normal(draw: Draw, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal float32 ``shape``, always the same for the same draw.

    Raises UsageError when a number of the draw is outside [0, 2^64).
    """
    for name, value in zip(draw._fields, draw, strict=True):
        if not 0 <= value < WORD:
            raise UsageError(f"draw.{name}: expected a whole number in [0, 2^64), got {value}")
    # The counter's lowest word is what a stream counts with; the call is in its highest: streams never meet.
    stream = np.random.Philox(key=[draw.seed, draw.trial], counter=[0, 0, 0, draw.call])
    return np.random.Generator(stream).standard_normal(shape, np.float32)


def normal_rows(draws: Sequence[Draw], shape: tuple[int, ...]) -> Float[Tensor, "B ..."]:
    """A row for each draw, on the CPU."""
    return torch.from_numpy(np.stack([normal(draw, shape) for draw in draws]))
