"""Closed loop against the demonstrations: at which step does a policy come to where no demonstration was?

Distance is to the nearest stored frame, of the robot's state in standard deviations. What is usual is measured on the
demonstrations themselves: each one's frames against those of all others.

Legend: T frames, N stored frames, S numbers of a robot state.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from statevla.evaluators.diagnose_episodes import Episode, of_observations
from statevla.evaluators.diagnose_links import Link
from statevla.evaluators.runner import ChunkPolicy
from statevla.observation import from_simulator
from statevla.policies.execution import ChunkBuffer, Execution
from statevla.policies.noise import Draw
from statevla.sims.world import Start, World

Array = NDArray[Any]

USUAL: Final = 99.0
"""Percentile of the distances between demonstrations that is taken for usual."""
ROOM: Final = 1.5
STAYS: Final = 3
"""Frames in a row that must be further away."""


def act_in(world: World, policy: ChunkPolicy, start: Start, execution: Execution, steps: int, trial: int) -> Episode:
    """A trial, with every frame kept."""
    if world.starting:
        world.come_up()
    world.begin(start)
    text = world.task.instruction
    answer = world.receive()
    seen = [from_simulator(answer.observation, text)]
    buffer = ChunkBuffer(execution)
    done: list[Array] = []
    success, calls = False, 0
    while len(done) < steps and not success:
        chunk = policy.act([seen[-1]], [Draw(0, trial, calls)]).chunk[0].numpy()
        calls += 1
        actions = buffer.add(chunk)[: steps - len(done)]
        world.run(actions, look=True, film=1)
        answer = world.receive()
        seen += [from_simulator(frame, text) for frame in answer.film]
        done += list(answer.actions)
        success = answer.success_step is not None
    return of_observations(f"start {start.number}", seen, np.asarray(done, np.float32), success)


def closed_loop(trials: Sequence[Episode], demos: Sequence[Episode], scale: Array, names: Sequence[str]) -> Link:
    """Where trials leave the demonstrations, and what was done there. scale, names: of a state's numbers ``[S]``."""
    unit = np.where(scale == 0, 1.0, scale)
    limit = ROOM * _usual(demos, unit)
    won = sum(bool(trial.success) for trial in trials)
    head = f"{won} of {len(trials)} trials succeeded"
    states = np.concatenate([demo.states[: len(demo.actions)] for demo in demos]) / unit
    actions = np.concatenate([demo.actions for demo in demos])
    told = []
    for trial in trials:
        if trial.success:
            continue
        step, nearest = _leaves(trial.states / unit, states, limit)
        if step is None:
            told.append(f"{trial.name}: stays within the demonstrations to the end, and does not succeed")
            continue
        apart = np.abs(trial.states[step] / unit - states[nearest])
        number = int(np.argmax(apart))
        act = trial.actions[min(step, len(trial.actions) - 1)]
        told.append(
            f"{trial.name}: leaves them at step {step} of {len(trial.actions)}, by {names[number]} "
            f"({trial.states[step][number]:.3g}, nearest demonstration {states[nearest][number] * unit[number]:.3g}); "
            f"it did {_short(act)} where that one did {_short(actions[nearest])}"
        )
    if won == len(trials):
        return Link("closed loop", True, head)
    advice = (
        "Record demonstrations from there (collect --noise, or --from-policy), or execute fewer actions of each chunk "
        "(--replan 1 --ensemble 0.01)"
    )
    return Link("closed loop", False, "; ".join([head, *told]), advice)


def _leaves(trial: Array, states: Array, limit: float) -> tuple[int | None, int]:
    """First of ``STAYS`` frames in a row that are further than ``limit`` from all stored ones, and the frame nearest to
    it."""
    apart, nearest = nearest_frames(trial, states)
    far = apart > limit
    for step in range(len(far) - STAYS + 1):
        if far[step : step + STAYS].all():
            return step, int(nearest[step])
    return None, 0


def nearest_frames(rows: Array, states: Array) -> tuple[Array, Array]:
    """Of each of ``rows [T, S]`` the distance to the nearest of ``states [N, S]``, and its place."""
    square = (rows**2).sum(1)[:, None] - 2 * rows @ states.T + (states**2).sum(1)[None]
    place = square.argmin(1)
    return np.sqrt(np.maximum(square[np.arange(len(rows)), place], 0.0)), place


def _usual(demos: Sequence[Episode], unit: Array) -> float:
    """Distance that frames of a demonstration have from the nearest of the others'."""
    apart = []
    for number, demo in enumerate(demos):
        others = [other.states / unit for place, other in enumerate(demos) if place != number]
        if others:
            apart.append(nearest_frames(demo.states / unit, np.concatenate(others))[0])
    return float(np.percentile(np.concatenate(apart), USUAL)) if apart else 1.0


def _short(action: Array) -> str:
    return "(" + " ".join(f"{value:+.2f}" for value in action) + ")"
