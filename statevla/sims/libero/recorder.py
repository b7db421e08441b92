"""Notes, at the moment at which the cameras would look, what they would see; and keeps an episode without pictures.

Legend: T steps of an episode, S numbers of a state, Q numbers of its qpos, N sites of the model.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statevla.sims.libero.protocol import Track

Camera = Callable[[dict[str, Any]], NDArray[np.uint8]]
"""A camera's sensor in robosuite: takes the cache of an observation, gives ``[H, W, 3]``."""


class Recorder:
    """Watches a simulation's kinematics.

    MuJoCo moves its bodies at the beginning of a substep, from the positions before it, so what a camera sees between
    two substeps is one substep old. ``simulation.forward`` and ``simulation.step`` are wrapped to note the positions.
    """

    def __init__(self, simulation: Any) -> None:
        self._simulation = simulation
        self._placed = np.array(simulation.data.qpos)
        self.drawn = self._placed
        self.glow = np.array(simulation.model.site_rgba, np.float32)
        for name in ("forward", "step"):
            setattr(simulation, name, self._noting(getattr(simulation, name)))

    def _noting(self, move: Callable[..., None]) -> Callable[..., None]:
        def noted(*arguments: Any, **options: Any) -> None:
            self._placed = np.array(self._simulation.data.qpos)
            move(*arguments, **options)

        return noted

    def look(self) -> None:
        """Called when a camera looks, or would."""
        self.drawn = self._placed
        self.glow = np.array(self._simulation.model.site_rgba, np.float32)

    def restore(self, drawn: NDArray[np.float64], glow: NDArray[np.float32]) -> None:
        """Puts the bodies where a camera saw them, in the colours that it saw."""
        self._simulation.data.qpos[:] = drawn
        self._simulation.data.qvel[:] = 0.0
        self._simulation.model.site_rgba[:] = glow
        self._simulation.forward()


@dataclass
class Tape:
    """An episode while it is recorded; see :class:`Track`."""

    states: list[NDArray[np.float64]] = field(default_factory=list)
    drawn: list[NDArray[np.float64]] = field(default_factory=list)
    glow: list[NDArray[np.float32]] = field(default_factory=list)
    seen: list[dict[str, NDArray[np.float64]]] = field(default_factory=list)
    executed: list[NDArray[np.float64]] = field(default_factory=list)
    labels: list[NDArray[np.float64]] = field(default_factory=list)
    succeeded: list[bool] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)

    def observe(self, state: NDArray[np.float64], recorder: Recorder, seen: dict[str, NDArray[np.float64]]) -> None:
        """What is there between two actions."""
        self.states.append(np.array(state, np.float64))
        self.drawn.append(recorder.drawn)
        self.glow.append(recorder.glow)
        self.seen.append(seen)

    def act(self, executed: NDArray[np.float64], label: NDArray[np.float64], succeeded: bool, stage: str) -> None:
        """One action, and whether the task was achieved after it."""
        self.executed.append(executed)
        self.labels.append(label)
        self.succeeded.append(succeeded)
        self.stages.append(stage)

    def track(self) -> Track:
        """What was recorded."""
        return Track(
            states=np.array(self.states),
            drawn=np.array(self.drawn),
            glow=np.array(self.glow),
            seen={key: np.array([seen[key] for seen in self.seen]) for key in self.seen[0]},
            executed=np.array(self.executed).reshape(-1, 7),
            labels=np.array(self.labels).reshape(-1, 7),
            succeeded=np.array(self.succeeded, bool),
            stages=tuple(self.stages),
        )
