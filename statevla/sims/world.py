"""What an evaluation needs of a world, whatever simulates it: in this process or in a worker of its own.

A world is asked for something (`begin`, `run`, `run_expert`) and answers when `receive` is called, so that one process
can keep several of them busy.

Legend: n actions of a request, k of them executed, A action dimensions, S numbers of a simulator state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Frame = Mapping[str, NDArray[Any]]
"""What a simulator shows, under its own names; `statevla.observation.from_simulator` makes an observation of it."""


@runtime_checkable
class Task(Protocol):
    """One task of a suite."""

    @property
    def suite(self) -> str: ...

    @property
    def index(self) -> int: ...

    @property
    def name(self) -> str:
        """A demonstration file is ``<name>_demo.hdf5``."""
        ...

    @property
    def instruction(self) -> str: ...


@dataclass(frozen=True)
class Start:
    """How an episode begins.

    number: of the initial state, from 0; equal numbers are equal states. seed: of the evaluation, for suites that have
    endless initial states, and for the expert. expert: whether `World.run_expert` will be asked. attempt: of the expert
    at the same layout, which it goes about otherwise. state: ``[S]``, to begin from this recorded state instead of a
    numbered one.
    """

    number: int
    seed: int = 0
    expert: bool = False
    attempt: int = 0
    state: NDArray[np.float64] | None = None


@runtime_checkable
class Answer(Protocol):
    """What became of a request.

    observation: the frame after it, pictures included where the request looked. actions: ``[k, A]`` executed.
    success_step: index among them of the first success. film: frames in between, as asked for.
    """

    @property
    def observation(self) -> Frame: ...

    @property
    def actions(self) -> NDArray[np.float64]: ...

    @property
    def success_step(self) -> int | None: ...

    @property
    def film(self) -> Sequence[Frame]: ...


@dataclass(frozen=True)
class Seen:
    """The plain `Answer`."""

    observation: Frame
    actions: NDArray[np.float64]
    success_step: int | None = None
    film: Sequence[Frame] = field(default_factory=list)


@runtime_checkable
class World(Protocol):
    """Place of one task's episodes, one after the other. Whatever it raises is a `SimulatorFailed`."""

    @property
    def task(self) -> Task: ...

    @property
    def starting(self) -> bool:
        """Whether it has not come up yet; then `come_up` is called before `begin`."""
        ...

    def come_up(self) -> None: ...

    def begin(self, start: Start) -> None:
        """Ask for a new episode; the answer has executed no action."""
        ...

    def run(self, actions: NDArray[np.float64], *, look: bool, film: int) -> None:
        """Ask to execute actions ``[n, A]`` until success. film: also show after every so many steps of
        the episode, whatever requests they came in; 0: never."""
        ...

    def run_expert(self, steps: int, *, look: bool, film: int) -> None:
        """As `run`, with actions of the scripted expert. look: show pictures of where it ended."""
        ...

    def receive(self) -> Answer:
        """The answer to what was asked last; waits for it."""
        ...

    def close(self) -> None: ...

    def kill(self) -> None:
        """As `close`, at once."""
        ...
