"""A policy drives the first steps of an attempt, then the expert takes over: demonstrations that begin where the policy
gets to (DAgger: Ross et al. 2011; that only the expert's part is recorded is HG-DAgger: Kelly et al. 2019).

Legend: n actions of a request.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from statevla.evaluators.known import in_trained_words, require_taken, require_trained
from statevla.evaluators.runner import ChunkPolicy
from statevla.observation import from_simulator, square_side
from statevla.policies.execution import ChunkBuffer, Execution
from statevla.policies.noise import Draw
from statevla.sims.libero.protocol import Reply
from statevla.sims.libero.suites import Task, max_steps
from stores.errors import UsageError
from stores.spec import LIBERO

LEAST: Final = 10
MOST: Final = 0.3
"""Of a suite's step limit: at most so long a policy drives."""


def steps_of(seed: tuple[int, ...], suite: str) -> int:
    """How long the policy drives in an attempt: a function of the attempt's seed."""
    rng = np.random.default_rng([*seed, 2])
    return int(rng.integers(LEAST, max(LEAST + 1, round(MOST * max_steps(suite)))))


def check_driver(policy: ChunkPolicy, tasks: list[Task], image_size: int) -> None:
    """Raises UsageError where a policy cannot drive: other pictures, or an instruction that it was not trained on."""
    wanted = policy.obs_spec
    given = dataclasses.replace(LIBERO.sized(wanted.image_sizes), language_width=wanted.language_width)
    given.require_same(wanted, "the simulator", "--from-policy")
    side = square_side(wanted, "LIBERO's")
    if side != image_size:
        raise UsageError(f"--from-policy: the policy sees {side} pixels a side, the collection has {image_size}")
    told = in_trained_words(policy, tasks)
    require_trained(policy, told, "Name a policy of a store that has them, or other --tasks")
    require_taken(policy, told)


@dataclass
class Drive:
    """A policy's part of an attempt. left: steps until the expert takes over. trial: of its noise. execution:
    of its chunks, resolved."""

    policy: ChunkPolicy
    instruction: str
    left: int
    trial: int
    execution: Execution
    _calls: int = 0
    _buffer: ChunkBuffer = field(init=False)

    def __post_init__(self) -> None:
        self._buffer = ChunkBuffer(self.execution)

    def actions(self, reply: Reply) -> NDArray[np.float64]:
        """What it does next ``[n, 7]``, after what it sees; none left when the expert's turn has come."""
        seen = from_simulator(reply.observation, self.instruction)
        chunk = self.policy.act([seen], [Draw(0, self.trial, self._calls)]).chunk[0].numpy()
        self._calls += 1
        actions = self._buffer.add(chunk)[: self.left]
        self.left -= len(actions)
        return actions
