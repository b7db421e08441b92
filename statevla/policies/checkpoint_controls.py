"""The controls of a checkpoint: policies in its place, on the same trials, which say what its success is worth.

The same model untrained says what random weights reach; the mean action what can be had without looking; no
instruction what can be had without being told. One that was trained with shuffled instructions is another checkpoint
(``data.shuffle_instructions``).

Legend: A numbers of an action, K actions of a chunk.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray

from statevla.observation import Observation, ObsSpec
from statevla.policies.identity import identity_of
from statevla.policies.noise import Draw
from statevla.policies.policy import UNTRAINED, Policy
from statevla.systems.acting import Acted
from stores.statistics import Normalization

MEAN_ACTION: Final = "mean-action"
NO_INSTRUCTION: Final = "no-instruction"
CONTROLS: Final = {
    UNTRAINED: "the same model with random weights",
    MEAN_ACTION: "the mean action of the train split, whatever is seen",
    NO_INSTRUCTION: "the policy itself, told nothing: the embedding of every instruction is zero",
}
"""Name -> what acts in the checkpoint's place. `Policy.load` makes the untrained one."""
SILENCE: Final = ""
"""Stands for every instruction where none is told."""


@dataclass(frozen=True, eq=False)
class MeanAction:
    """Always the same action ``[A]``. obs_spec, chunk, init_states, trained: the checkpoint's, so that its trials are
    the checkpoint's too.
    """

    action: NDArray[np.float32]
    obs_spec: ObsSpec
    chunk: int
    init_states: Mapping[str, list[str]]
    trained: Mapping[str, NDArray[np.float32]]

    control: ClassVar[str] = MEAN_ACTION

    @classmethod
    def of(cls, policy: Policy, statistics: Normalization) -> "MeanAction":
        """statistics: of the train split. A binary dimension is at -1 or +1, where it is more often."""
        action, spec = statistics.affine("action", policy.obs_spec)[0], policy.obs_spec
        for dim in spec.binary:
            action[dim] = 1.0 if statistics.action.mean[dim] > 0 else -1.0
        return cls(action.astype(np.float32), spec, policy.chunk, policy.init_states, policy.trained)

    @property
    def identity(self) -> str:
        """Of what it does, whatever checkpoint it stands beside."""
        told = {"control": self.control, "action": self.action.tolist(), "obs_spec": self.obs_spec.to_dict()}
        return identity_of({**told, "chunk": self.chunk})

    def act(self, observations: Sequence[Observation], draws: Sequence[Draw] | None = None) -> Acted:
        """The action K times, for each observation."""
        return Acted(torch.from_numpy(self.action).repeat(len(observations), self.chunk, 1), None)


class NoInstruction:
    """`policy` with zero for the embedding of whatever it is told; otherwise the same."""

    control: Final = NO_INSTRUCTION

    def __init__(self, policy: Policy) -> None:
        zero = np.zeros(policy.obs_spec.language_width, np.float32)
        condition = policy.actor.condition(torch.from_numpy(zero[None]))[0]
        self.policy = dataclasses.replace(policy, language={SILENCE: zero}, conditions={SILENCE: condition})
        self.identity = identity_of({"policy": policy.identity, "control": self.control})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def vector(self, instruction: str) -> NDArray[np.float32]:
        """Zeros."""
        return self.policy.language[SILENCE]

    def act(self, observations: Sequence[Observation], draws: Sequence[Draw] | None = None) -> Acted:
        """`Policy.act`, told nothing."""
        return self.policy.act([dataclasses.replace(seen, instruction=SILENCE) for seen in observations], draws)
