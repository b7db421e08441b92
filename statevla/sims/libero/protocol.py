"""What is sent to a simulator worker and what comes back. Plain frozen data; no simulator types.

Legend: n actions of a request, S numbers of a simulator state (time, qpos, qvel), H height, W width.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

IMAGE_KEYS = ("agentview_image", "robot0_eye_in_hand_image")
PROPRIOCEPTION_KEYS = ("robot0_joint_pos", "robot0_gripper_qpos", "robot0_eef_pos", "robot0_eef_quat")


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker is started with: one task, one picture size.

    render_threads: software-rendering threads (Mesa's llvmpipe); ignored by a hardware driver.
    log: file that gets everything the simulator prints.
    """

    suite: str
    task: str
    bddl: Path
    image_size: int
    render_threads: int
    log: Path


@dataclass(frozen=True)
class Reset:
    """Start an episode: restore ``state`` and settle.

    settle: steps without motion, gripper opening, after the state is restored.
    restore_again: restore ``state`` once more after settling; for states recorded in the middle of an episode, which
        must not move, but need a controller and a gripper that have come to rest.
    expert_seed: seeds the scripted expert that ``RunExpert`` steps; None for an episode without one.
    """

    state: NDArray[np.float64]
    settle: int
    restore_again: bool = False
    expert_seed: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Run:
    """Execute actions ``[n, 7]`` until the task succeeds (or through, if ``through``).

    look: draw the observation after the last executed step.
    film: also draw and return the observation after every ``film`` steps; 0 for none.
    """

    actions: NDArray[np.float64]
    look: bool = True
    film: int = 0
    through: bool = False


@dataclass(frozen=True)
class RunExpert:
    """As ``Run``, with ``steps`` actions of the scripted expert."""

    steps: int
    look: bool = True
    film: int = 0
    through: bool = False


@dataclass(frozen=True)
class SetState:
    """Put the simulator into a state, without settling, and observe."""

    state: NDArray[np.float64]


@dataclass(frozen=True)
class Observe:
    """Draw and return the present observation."""


@dataclass(frozen=True)
class Close:
    """End the worker."""


Request = Reset | Run | RunExpert | SetState | Observe | Close


@dataclass(frozen=True)
class Scenery:
    """Sent once, when the environment stands: what a demonstration file records about it."""

    env_name: str
    problem_info: dict[str, Any]
    env_kwargs: dict[str, Any]
    bddl_content: str
    image_convention: str
    has_expert: bool


@dataclass(frozen=True)
class Reply:
    """The state of the episode after a request.

    observation: the simulator's own keys; proprioception always, images where the request looked.
    state: ``[S]`` float64, after the last step. actions: ``[k, 7]`` executed, ``k <= n``.
    success_step: index among the executed steps of the first success, None without.
    succeeded: the task is achieved in the present state.
    film: observations asked for by ``film``, pictures included.
    model: the MuJoCo model as XML, in answer to Reset only.
    stage: what the expert does at the moment; empty without one. seconds: spent inside the worker.
    """

    observation: dict[str, NDArray[Any]]
    state: NDArray[np.float64]
    actions: NDArray[np.float64]
    success_step: int | None
    succeeded: bool
    film: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    model: str = ""
    stage: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Raised:
    """The simulator raised: what, and where."""

    error: str
    traceback: str
