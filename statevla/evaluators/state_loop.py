"""Going straight to a goal in the space of states, in closed loop: as a policy that was never trained.

Of the picture that the suite's expert ends with, s_g is the state. At every call the probe of K-step differences
(`state_plan`) is asked for the actions of the difference s_g - s_t, cut to the length that states move in K frames; the
first K / 2 of them are executed, all alike, and it is asked anew. The gripper is a logistic regression on [s_t, s_g].

Legend: N frames, F numbers of a state, A continuous action dimensions, G binary ones, B rows, K = `STEP`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from statevla.data.batch import ObservationBatch
from statevla.evaluators.evaluate import evaluate
from statevla.evaluators.goals import EXPERT, ExpertGoals
from statevla.evaluators.state_measures import Floats, Linear, fit_probe
from statevla.evaluators.state_plan import STEP, clipped
from statevla.evaluators.state_probes import Coded, enough, pairs
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

EXECUTED: Final = STEP // 2
"""Actions of a call."""
PENALTY: Final = 1e-3
"""Of the logistic regression's squared weights, a row."""
ITERATIONS: Final = 200

States = Callable[[ObservationBatch], Tensor]
"""Observations to states [B F]."""


@runtime_checkable
class Goals(Protocol):
    """What each trial is to reach."""

    def of(self, draw: Draw) -> Observation:
        """The picture, of the trial that a draw belongs to."""


@dataclass(frozen=True)
class Trials:
    """What is tried. suite: a row of `statevla.sims.suites.SUITES`. number: trials of each task. out: their folder."""

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


@dataclass(frozen=True, eq=False)
class Gripper:
    """A logistic regression on standardized features [N, F]: whether each binary dimension is to be +1."""

    shift: Floats
    scale: Floats
    weights: Floats
    offset: Floats

    def __call__(self, features: Float[np.ndarray, "B F"]) -> Bool[np.ndarray, "B G"]:
        return np.asarray((features - self.shift) / self.scale @ self.weights + self.offset > 0)


def fit_gripper(features: Float[np.ndarray, "N F"], closed: Bool[np.ndarray, "N G"]) -> Gripper:
    """Mean cross entropy + `PENALTY` / 2 · ‖weights‖², by L-BFGS from zero, in float64."""
    shift, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-8)
    x = torch.from_numpy((features - shift) / scale)
    y = torch.from_numpy(closed.astype(np.float64))
    weights = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(y.shape[1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weights, offset], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        wrong = nn.functional.binary_cross_entropy_with_logits(x @ weights + offset, y)
        total = wrong + PENALTY / 2 * weights.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    solver.step(loss)  # type: ignore[no-untyped-call]
    return Gripper(shift, scale, weights.detach().numpy(), offset.detach().numpy())


@dataclass(eq=False)
class Straight:
    """The plan as a policy whose goals are pictures. told, gripper, length: fitted to demonstrations.

    shift, scale: of the continuous actions that `told` speaks of [A]. way: by trial, the distance to the goal at its
    first and at its latest call.
    """

    obs_spec: ObsSpec
    identity: str
    states: States
    vector: Callable[[str], NDArray[np.float32]]
    goals: Goals
    told: Linear
    gripper: Gripper
    length: float
    shift: Floats
    scale: Floats
    init_states: dict[str, list[str]]
    chunk: int = EXECUTED
    way: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)

    def act(self, observations: Sequence[Observation], draws: Sequence[Draw] | None = None) -> Acted:
        """Chunks [B, K / 2, actions], each the same action again and again; a function of scene and goal alone."""
        if draws is None:
            raise UsageError("plan: expected the draw of each trial, got none")
        here = self._states(observations)
        there = self._states([self.goals.of(draw) for draw in draws])
        for draw, distance in zip(draws, np.linalg.norm(there - here, axis=1).tolist(), strict=True):
            first, _ = self.way.get((draw.seed, draw.trial), (distance, distance))
            self.way[draw.seed, draw.trial] = first, distance
        action = np.zeros((len(observations), self.obs_spec.action_dim), np.float32)
        planned = self.told(clipped(there - here, self.length)) / STEP
        action[:, list(self.obs_spec.continuous)] = planned * self.scale + self.shift
        closed = self.gripper(np.concatenate([here, there], axis=1))
        action[:, list(self.obs_spec.binary)] = np.where(closed, 1.0, -1.0)
        return Acted(torch.from_numpy(action)[:, None].repeat(1, self.chunk, 1), None)

    def _states(self, observations: Sequence[Observation]) -> Floats:
        return self.states(stack(observations, self.obs_spec, self.vector)).double().cpu().numpy()

    @property
    def progress(self) -> float | None:
        """Mean over the trials that were acted in; None without any."""
        parts = [1 - last / max(first, 1e-12) for first, last in self.way.values()]
        return float(np.mean(parts)) if parts else None


def plan_of(
    store: Store, train: Coded, feature: str, states: States, goals: Goals, source: str,
    init_states: dict[str, list[str]],
) -> Straight:  # fmt: skip
    """Fitted to the `feature` of the train split's frames, which `states` gives of observations too.

    source: identity of the encoder. Raises UsageError where the split has too few episodes.
    """
    fitted = pairs(train.features[feature], train, STEP)
    if not enough(fitted):
        raise UsageError(f"{store.root}: too few episodes of {STEP} or more frames to fit a plan to")
    spec, statistics = store.spec, store.stats().action
    ends = np.searchsorted(train.episode, train.episode, side="right") - 1  # frames are in order of episodes
    values = train.features[feature].astype(np.float64)
    closed = store.frames["action"][train.row][:, list(spec.binary)] > 0
    continuous = list(spec.continuous)
    return Straight(
        obs_spec=spec,
        identity=identity_of({"plan": source, "store": store.content_hash, "goals": EXPERT}),
        states=states,
        vector=store.language.vector,
        goals=goals,
        told=fit_probe(fitted),
        gripper=fit_gripper(np.concatenate([values, values[ends]], axis=1), closed),
        length=float(np.median(np.linalg.norm(fitted[0], axis=1))),
        shift=np.asarray(statistics.mean, np.float64)[continuous],
        scale=np.maximum(np.asarray(statistics.std, np.float64)[continuous], 1e-8),
        init_states=init_states,
    )


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


def run_plan(plan: Straight, trials: Trials, seed: int, progress: Progress | None = None) -> Loop:
    """Try it; finished trials of the same plan in ``trials.out`` are not run again. Raises as `evaluate`."""
    results = evaluate(
        plan,
        trials.suite,
        out=trials.out,
        name="straight to the goal's state",
        tasks=trials.tasks,
        num_trials=trials.number,
        execution=Execution(replan=EXECUTED),
        seed=seed,
        progress=progress,
        label="plans",
    )
    low, high = results.interval
    return Loop(trials.suite, results.successes, results.trials, low, high, plan.progress, len(plan.way))
