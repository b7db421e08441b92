"""What is evaluated beside policies, to know what a success rate means.

The expert says what the simulation allows, replayed demonstrations prove that simulator, action convention and
alignment agree with the data, and standing still says what is for free.

Legend: B batch, T actions of a demonstration, S numbers of a simulator state.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from statevla.observation import Observation, ObsSpec
from statevla.policies.identity import identity_of
from statevla.policies.noise import Draw
from statevla.systems.acting import Acted

REPLAY_PATIENCE = 10
"""Steps without motion after a demonstration's last action, in which its success may still show: contacts are not
reproduced to the last bit, so that an object can fall a step later than it did."""


@dataclass(frozen=True)
class ExpertControl:
    """The suite's scripted expert, in each of the trials' initial states."""

    seed: int = 0

    @property
    def identity(self) -> str:
        return identity_of({"control": "expert", "seed": self.seed})


@dataclass(frozen=True)
class ZeroPolicy:
    """Never moves, holds the gripper open."""

    obs_spec: ObsSpec
    chunk: int = 10

    @property
    def identity(self) -> str:
        return identity_of({"control": "zero", "obs_spec": self.obs_spec.to_dict()})

    def act(self, observations: Sequence[Observation], draws: Sequence[Draw] | None = None) -> Acted:
        chunk = torch.zeros(len(observations), self.chunk, self.obs_spec.action_dim)
        chunk[..., list(self.obs_spec.binary)] = -1.0
        return Acted(chunk, None)


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

    @cached_property
    def identity(self) -> str:
        """Of what is replayed, wherever it was read from."""
        return identity_of(
            {"control": "replay", "demos": {task: [_fingerprint(d) for d in ds] for task, ds in self.demos.items()}}
        )


def _fingerprint(demo: ReplayDemo) -> str:
    content = (np.ascontiguousarray(part, np.float64) for part in (demo.state, demo.actions))
    return hashlib.sha256(b"".join(repr(part.shape).encode() + part.tobytes() for part in content)).hexdigest()
