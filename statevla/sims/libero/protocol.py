"""What is sent to a simulator worker and what comes back. Plain frozen data; no simulator types.

Legend: n actions of a request, T steps of an episode, S numbers of a simulator state (time, qpos, qvel), Q numbers of
its qpos, N sites of the model, H height, W width.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statevla.sims.libero.perturb import NONE, Perturbation

IMAGE_KEYS = ("agentview_image", "robot0_eye_in_hand_image")
PROPRIOCEPTION_KEYS = ("robot0_joint_pos", "robot0_gripper_qpos", "robot0_eef_pos", "robot0_eef_quat")


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker is started with: one task, one picture size.

    assets: folder with the meshes and textures that the suite needs.
    render_threads: software-rendering threads (Mesa's llvmpipe); ignored by a hardware driver.
    log: file that gets everything the simulator prints.
    """

    suite: str
    index: int
    task: str
    bddl: Path
    assets: Path
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
    fixtures: seeds the places of what a state does not hold (cabinets, stoves, racks; up to 22 mm apart).
    perturbation: of what the cameras see, for this episode.
    scatter: seeds other places for the things, before they settle (`scatter`); None: they stand where the state says.
    """

    state: NDArray[np.float64]
    settle: int
    restore_again: bool = False
    expert_seed: tuple[int, ...] | None = None
    fixtures: int = 0
    perturbation: Perturbation = NONE
    scatter: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Run:
    """Execute actions ``[n, 7]`` until the task succeeds (or through, if ``through``).

    look: draw the observation after the last executed step.
    film: also draw and return the observation after every ``film`` steps since the ``Reset``, so that a film keeps time
        however few actions a request has; 0 for none.
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
class Demonstrate:
    """Let the expert act, without drawing, until its task has been achieved for ``hold`` steps and it has nothing left
    to do; at most ``steps``, and ``hold`` more where success came late. The answer has a ``track``.

    noise: standard deviation, in action units, of the pushes (`pushes`) that are added to the executed actions but not
    to their labels. noise_seed: of those. take_over: seeds an expert that plans from the present scene, after somebody
    else acted; None: the one of the ``Reset``.
    """

    steps: int
    hold: int
    noise: float = 0.0
    noise_seed: tuple[int, ...] = (0,)
    take_over: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Draw:
    """Draw what the cameras saw at recorded moments; see :class:`Track`. The simulation is not in a defined state
    afterwards: the next request must be a ``Reset``."""

    drawn: NDArray[np.float64]
    glow: NDArray[np.float32]


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


Request = Reset | Run | RunExpert | Demonstrate | Draw | SetState | Observe | Close


@dataclass(frozen=True)
class Scenery:
    """Sent once, when the environment stands: what a demonstration file records about it."""

    env_name: str
    problem_info: dict[str, Any]
    env_kwargs: dict[str, Any]
    bddl_content: str
    image_convention: str


@dataclass(frozen=True, eq=False)
class Track:
    """What happened, without pictures, and what is needed to draw them later.

    The simulator looks through its cameras a physics substep or two before a step ends, and its bodies are then where
    the positions of the substep before put them: ``drawn`` are those positions, and ``glow`` the colours of the model's
    sites (a stove's burner) at that moment.

    states: ``[T + 1, S]`` around the actions. drawn: ``[T + 1, Q]``. glow: ``[T + 1, N, 4]`` float32, red, green, blue,
    opacity. seen: proprioception, each ``[T + 1, ...]``. executed, labels: ``[T, 7]``, equal without noise.
    succeeded: ``[T]``. stages: ``T`` words of the expert.
    """

    states: NDArray[np.float64]
    drawn: NDArray[np.float64]
    glow: NDArray[np.float32]
    seen: dict[str, NDArray[np.float64]]
    executed: NDArray[np.float64]
    labels: NDArray[np.float64]
    succeeded: NDArray[np.bool_]
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Reply:
    """The state of the episode after a request.

    observation: the simulator's own keys; proprioception always, images where the request looked.
    state: ``[S]`` float64, after the last step. actions: ``[k, 7]`` executed, ``k <= n``.
    success_step: index among the executed steps of the first success, None without.
    succeeded: the task is achieved in the present state.
    film: observations asked for by ``film``, pictures included; those of ``Draw``, pictures only.
    track: in answer to Demonstrate.
    model: the MuJoCo model as XML, in answer to Reset only.
    stage: what the expert does at the moment; empty without one. seconds: spent inside the worker.
    """

    observation: dict[str, NDArray[Any]]
    state: NDArray[np.float64]
    actions: NDArray[np.float64]
    success_step: int | None
    succeeded: bool
    film: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    track: Track | None = None
    model: str = ""
    stage: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Raised:
    """The simulator raised: what, and where; no traceback of an error that says by itself what is the matter."""

    error: str
    traceback: str
