"""Going to a goal in the space of states, in closed loop: policies that are fitted in seconds to a trained encoder.

Of the picture that the suite's expert ends with, s_g is the state. At every call one of two answers (`state_answers`)
is asked how to get from s_t to s_g: the straight line, or a small network. Its few actions are executed, and it is
asked anew.

Legend: F numbers of a state, B rows, E = `EXECUTED` actions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from statevla.data.batch import ObservationBatch
from statevla.evaluators.evaluate import evaluate
from statevla.evaluators.goals import EXPERT, ExpertGoals
from statevla.evaluators.state_answers import EXECUTED, Answer, fit_line, fit_network
from statevla.evaluators.state_measures import Floats
from statevla.evaluators.state_probes import Coded
from statevla.observation import Observation, ObsSpec, square_side
from statevla.policies.execution import Execution
from statevla.policies.identity import identity_of
from statevla.policies.noise import Draw
from statevla.policies.policy import stack
from statevla.sims.suites import find_suite
from statevla.systems.acting import Acted
from stores.errors import UsageError
from stores.progress import Progress
from stores.reader import Store

LINE: Final = "straight"
NETWORK: Final = "network"

States = Callable[[ObservationBatch], Tensor]
"""Observations to states [B F]."""


@runtime_checkable
class Goals(Protocol):
    """What each trial is to reach."""

    def of(self, draw: Draw) -> Observation:
        """The picture, of the trial that a draw belongs to."""


@dataclass(frozen=True)
class Trials:
    """What is tried. suite: a row of `statevla.sims.suites.SUITES`. number: trials of each task. out: a folder,
    in which each plan has one of its own."""

    suite: str
    number: int
    out: Path
    tasks: str | None = None


@dataclass(frozen=True)
class Loop:
    """What came of it. low, high: of success, 95 %. progress: mean of 1 - ‖s_g - s_T‖ / ‖s_g - s_0‖, s_T the state of
    the last call; the expert's is 1. measured: trials that it is the mean of, those of this process.
    """

    suite: str
    successes: int
    trials: int
    low: float
    high: float
    progress: float | None
    measured: int


@dataclass(eq=False)
class Planner:
    """An answer as a policy whose goals are pictures.

    shift, scale: of the continuous actions that `answer` speaks of [A]. way: by trial, the distance to the goal at its
    first and at its latest call.
    """

    obs_spec: ObsSpec
    identity: str
    states: States
    vector: Callable[[str], NDArray[np.float32]]
    goals: Goals
    answer: Answer
    shift: Floats
    scale: Floats
    init_states: dict[str, list[str]]
    chunk: int = EXECUTED
    way: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)

    def act(self, observations: Sequence[Observation], draws: Sequence[Draw] | None = None) -> Acted:
        """Chunks [B, E, actions], a function of scene and goal alone."""
        if draws is None:
            raise UsageError("plan: expected the draw of each trial, got none")
        here = self._states(observations)
        there = self._states([self.goals.of(draw) for draw in draws])
        for draw, distance in zip(draws, np.linalg.norm(there - here, axis=1).tolist(), strict=True):
            first, _ = self.way.get((draw.seed, draw.trial), (distance, distance))
            self.way[draw.seed, draw.trial] = first, distance
        planned, closed = self.answer(here, there)
        action = np.zeros((len(observations), self.chunk, self.obs_spec.action_dim), np.float32)
        action[..., list(self.obs_spec.continuous)] = planned * self.scale + self.shift
        action[..., list(self.obs_spec.binary)] = np.where(closed, 1.0, -1.0)
        return Acted(torch.from_numpy(action), None)

    def _states(self, observations: Sequence[Observation]) -> Floats:
        return self.states(stack(observations, self.obs_spec, self.vector)).double().cpu().numpy()

    @property
    def progress(self) -> float | None:
        """Mean over the trials that were acted in; None without any."""
        parts = [1 - last / max(first, 1e-12) for first, last in self.way.values()]
        return float(np.mean(parts)) if parts else None


def planners(
    store: Store, train: Coded, feature: str, states: States, goals: Goals, source: str,
    init_states: dict[str, list[str]], seed: int,
) -> dict[str, Planner]:  # fmt: skip
    """One of each answer, fitted to the `feature` of the train split's frames; `states` gives it of observations too.

    source: identity of the encoder. Raises UsageError where the split has too few episodes.
    """
    spec, statistics = store.spec, store.stats().action
    closed = store.frames["action"][train.row][:, list(spec.binary)] > 0
    continuous = list(spec.continuous)
    try:
        answers: dict[str, Answer] = {
            LINE: fit_line(train, feature, closed),
            NETWORK: fit_network(train, feature, closed, seed),
        }
    except UsageError as error:
        raise UsageError(f"{store.root}: {error}") from error
    return {
        name: Planner(
            obs_spec=spec,
            identity=identity_of({name: source, "seed": seed, "store": store.content_hash, "goals": EXPERT}),
            states=states,
            vector=store.language.vector,
            goals=goals,
            answer=answer,
            shift=np.asarray(statistics.mean, np.float64)[continuous],
            scale=np.maximum(np.asarray(statistics.std, np.float64)[continuous], 1e-8),
            init_states=init_states,
        )
        for name, answer in answers.items()
    }


def goals_of(trials: Trials, store: Store) -> ExpertGoals:
    """Final pictures of the suite's expert. Raises UsageError for an unknown suite, tasks without an expert, and tasks
    whose instructions the store does not have: before anything is computed.
    """
    row = find_suite(trials.suite)
    tasks = row.tasks(trials.tasks)
    row.check_expert(tasks)
    strange = sorted({task.instruction for task in tasks} - set(store.manifest.instructions))
    if strange:
        raise UsageError(f"{trials.suite}: {store.root} has no demonstration of {strange[0]!r}; choose --tasks it has")
    return ExpertGoals(row, square_side(store.spec, f"{trials.suite}'s"))


def run_plans(
    plans: Mapping[str, Planner], trials: Trials, seed: int, progress: Progress | None = None
) -> dict[str, Loop]:
    """Try each; finished trials of the same plan below ``trials.out`` are not run again. Raises as `evaluate`."""
    return {name: _run(name, plan, trials, seed, progress) for name, plan in plans.items()}


def _run(name: str, plan: Planner, trials: Trials, seed: int, progress: Progress | None) -> Loop:
    results = evaluate(
        plan,
        trials.suite,
        out=trials.out / name,
        name=f"to the goal's state, {name}",
        tasks=trials.tasks,
        num_trials=trials.number,
        execution=Execution(replan=EXECUTED),
        seed=seed,
        progress=progress,
        label="plans",
    )
    low, high = results.interval
    return Loop(trials.suite, results.successes, results.trials, low, high, plan.progress, len(plan.way))
