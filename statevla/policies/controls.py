"""What is evaluated beside policies, to know what a success rate means.

The expert says what the simulation allows, replayed demonstrations prove that simulator, action convention and
alignment agree with the data, and :class:`statevla.evaluators.rollout.ZeroPolicy` says what standing still achieves.

Legend: T actions of a demonstration, S numbers of a simulator state (time, qpos, qvel).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

REPLAY_PATIENCE = 10
"""Steps without motion after a demonstration's last action, in which its success may still show: contacts are not
reproduced to the last bit, so that an object can fall a step later than it did."""


@dataclass(frozen=True)
class ExpertControl:
    """The suite's scripted expert, in each of the trials' initial states."""

    seed: int = 0


@dataclass(frozen=True, eq=False)
class ReplayDemo:
    """One demonstration to replay: ``state`` ``[S]`` before its first action, and ``actions`` ``[T, 7]``."""

    source: str
    """File and demo, for the results."""
    state: NDArray[np.float64]
    actions: NDArray[np.float64]


@dataclass(frozen=True)
class ReplayDemos:
    """Demonstrations by task name; trial ``i`` of a task replays its demonstration ``i`` from its own state."""

    demos: Mapping[str, tuple[ReplayDemo, ...]] = field(default_factory=dict)
