"""Closed loop in the tabletop suite: success of a policy in fresh episodes.

Worlds advance in lockstep, so that one policy call plans for all of them. Observations are built by
`statevla.observation.from_simulator`, as everywhere; a policy trained on other observations is refused.

Legend: B worlds, K chunk.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from statevla.evaluators.intervals import wilson
from statevla.evaluators.results import EpisodeOutcome, Latency, RolloutResults, TaskResult
from statevla.observation import Observation, ObsSpec, from_simulator, spec_of, square_side
from statevla.reports.films import Clip
from statevla.sims.tabletop import TASKS, TabletopEnv
from statevla.sims.tabletop_expert import TabletopExpert
from stores.errors import ObsSpecMismatch, StateVLAError, UsageError
from stores.progress import Progress, ProgressEvent
from stores.spec import LIBERO

EVALUATION_SEEDS: Final = 2**63
"""Layout seeds of evaluations start here; demonstrations are collected from seeds below."""
SEEDS_A_RUN: Final = 2**20


@runtime_checkable
class ChunkPolicy(Protocol):
    """What a trained policy, and every control that sees what it sees, offers."""

    @property
    def obs_spec(self) -> ObsSpec: ...

    def act(self, observations: list[Observation], seed: int = 0) -> NDArray[np.float32]:
        """Chunks float32 [B, K, 7] in action units; ``seed`` gives the noise, if there is any."""
        ...


@runtime_checkable
class World(Protocol):
    """What a rollout needs of a simulator."""

    max_steps: int

    @property
    def instruction(self) -> str: ...

    def reset(self, task: int | None = None, seed: int | None = None) -> dict[str, NDArray[Any]]: ...

    def step(self, action: NDArray[Any]) -> tuple[dict[str, NDArray[Any]], float, bool, dict[str, bool]]: ...


@dataclass(frozen=True)
class ZeroPolicy:
    """Control: never moves, holds the gripper open."""

    obs_spec: ObsSpec

    def act(self, observations: list[Observation], seed: int = 0) -> NDArray[np.float32]:
        chunk = np.zeros((len(observations), 1, self.obs_spec.action_dim), np.float32)
        chunk[..., -1] = -1.0
        return chunk


@dataclass(frozen=True)
class ExpertPolicy:
    """Control: the scripted expert, which reads the world itself. What it misses, no policy is asked to reach."""

    obs_spec: ObsSpec
    seed: int = 0

    def act_in(self, worlds: Sequence[World]) -> NDArray[np.float32]:
        """One action for each world, float32 [B, 1, 7]. Raises UsageError for a world that is no tabletop."""
        rows = []
        for world in worlds:
            if not isinstance(world, TabletopEnv):
                raise UsageError(f"the tabletop expert acts in a TabletopEnv, got {type(world).__name__}")
            expert = TabletopExpert(world, np.random.default_rng([self.seed, world.steps]))
            rows.append(expert.act(world.observe()))
        return np.asarray(rows, np.float32)[:, None, :]


@dataclass
class _Run:
    """One rollout in progress."""

    world: World
    task: int
    seed: int
    observation: Observation | None = None
    steps: int = 0
    outcome: str = ""
    message: str = ""
    seen: list[Observation] = field(default_factory=list)
    recorded: bool = False

    def start(self) -> None:
        with self._errors_end_it():
            self._observe(self.world.reset(task=self.task, seed=self.seed))

    def step(self, action: NDArray[np.float32], limit: int) -> None:
        """Execute one action; out of steps after ``limit``."""
        with self._errors_end_it():
            raw, _, done, _ = self.world.step(action)
            self.steps += 1
            self._observe(raw)
            if done:
                self.outcome = "success"
            elif self.steps >= limit:
                self.outcome = "failure"

    def _observe(self, raw: dict[str, NDArray[Any]]) -> None:
        self.observation = from_simulator(raw, self.world.instruction)
        if self.recorded:
            self.seen.append(self.observation)

    @contextmanager
    def _errors_end_it(self) -> Iterator[None]:
        """What the simulator raises ends the rollout as an error; a mismatch of observations is the caller's."""
        try:
            yield
        except ObsSpecMismatch:
            raise
        except Exception as error:
            self.outcome, self.message = "error", f"{type(error).__name__}: {error}"


def evaluate_tabletop(
    policy: ChunkPolicy | ExpertPolicy,
    episodes: int = 50,
    seed: int = 0,
    *,
    replan: int | None = None,
    max_steps: int | None = None,
    batch: int = 50,
    videos: int = 0,
    progress: Progress | None = None,
    name: str = "rollouts",
    make_world: Callable[[int], World] = TabletopEnv,
) -> RolloutResults:
    """Roll ``policy`` out in ``episodes`` fresh worlds, tasks in turn.

    Args:
        seed: chooses the layouts and the policy's noise; equal seeds give every policy the same layouts.
        replan: actions executed of each chunk before the next is asked for; None: half of them.
        max_steps: give up after this many; None: the simulator's own limit.
        batch: worlds in lockstep.
        videos: the first so many rollouts are recorded as clips in the results.

    Raises:
        ObsSpecMismatch: the policy was trained on other observations than the simulator gives.
        UsageError: a count is not positive, or ``replan`` is longer than the policy's chunk.
        StateVLAError: the policy returned actions of another shape, or that are not finite.
    """
    for label, value in (("episodes", episodes), ("batch", batch), ("replan", replan), ("max_steps", max_steps)):
        if value is not None and value < 1:
            raise UsageError(f"{label}: expected at least 1, got {value}")
    width = square_side(policy.obs_spec, "tabletop")
    runs: list[_Run] = []
    milliseconds: list[float] = []
    noise_seeds = count(seed * SEEDS_A_RUN)
    report = partial(_report, progress, name, runs, episodes)
    for start in range(0, episodes, batch):
        numbers = range(start, min(start + batch, episodes))
        group = [_Run(make_world(width), i % len(TASKS), evaluation_seed(seed, i)) for i in numbers]
        for number, run in zip(numbers, group, strict=True):
            run.recorded = number < videos
        runs += group
        milliseconds += _roll_out(policy, group, replan, max_steps, noise_seeds, report)
    return _summarize(runs, milliseconds, min(batch, episodes))


def evaluation_seed(seed: int, episode: int) -> int:
    """The layout seed of an evaluation's episode; no demonstration is collected from it."""
    if not (0 <= seed < SEEDS_A_RUN and 0 <= episode < SEEDS_A_RUN):
        raise UsageError(f"evaluation seed and episode: expected 0 ... {SEEDS_A_RUN - 1}, got {seed} and {episode}")
    return EVALUATION_SEEDS + seed * SEEDS_A_RUN + episode


def _roll_out(
    policy: ChunkPolicy | ExpertPolicy,
    runs: list[_Run],
    replan: int | None,
    max_steps: int | None,
    noise_seeds: Iterator[int],
    report: Callable[[], None],
) -> list[float]:
    """Run a group to its end. Returns the milliseconds of every policy call."""
    for run in runs:
        run.start()
        if run.observation is not None:
            spec_of(run.observation).require_same(policy.obs_spec, "the simulator", "the policy")
    milliseconds: list[float] = []
    while active := [run for run in runs if not run.outcome]:
        began = time.perf_counter()
        chunks = _plan(policy, active, replan, next(noise_seeds))
        milliseconds.append(1e3 * (time.perf_counter() - began))
        for run, chunk in zip(active, chunks, strict=True):
            for action in chunk[: replan or (len(chunk) + 1) // 2]:
                if not run.outcome:
                    run.step(action, max_steps or run.world.max_steps)
        report()
    return milliseconds


def _plan(
    policy: ChunkPolicy | ExpertPolicy, active: list[_Run], replan: int | None, noise_seed: int
) -> NDArray[np.float32]:
    """Checked chunks float32 [B, K, 7]."""
    if isinstance(policy, ExpertPolicy):
        chunks = policy.act_in([run.world for run in active])
    else:
        chunks = policy.act([run.observation for run in active if run.observation is not None], seed=noise_seed)
    if chunks.ndim != 3 or (chunks.shape[0], chunks.shape[2]) != (len(active), LIBERO.action_dim):
        raise StateVLAError(f"policy: expected chunks [{len(active)}, K, {LIBERO.action_dim}], got {chunks.shape}")
    if replan is not None and replan > chunks.shape[1]:
        raise UsageError(f"replan: expected at most the policy's chunk of {chunks.shape[1]} actions, got {replan}")
    if not np.isfinite(chunks).all():
        raise StateVLAError("policy: returned actions that are NaN or infinite; its training diverged")
    return chunks


def _report(progress: Progress | None, name: str, runs: list[_Run], episodes: int) -> None:
    if progress is not None:
        ended = [run for run in runs if run.outcome]
        won = sum(run.outcome == "success" for run in ended)
        progress(ProgressEvent(name, len(ended), episodes, "episodes", f"{won} succeeded"))


def _summarize(runs: list[_Run], milliseconds: list[float], batch: int) -> RolloutResults:
    outcomes = tuple(EpisodeOutcome(TASKS[r.task], r.seed, r.outcome, r.steps, r.message) for r in runs)
    tasks = sorted({run.task for run in runs})
    total = _count(outcomes)
    lengths = [item.steps for item in outcomes if item.outcome == "success"]
    latency = None
    if milliseconds:
        p50, p95 = np.percentile(milliseconds, [50, 95])
        latency = Latency(float(p50), float(p95), len(milliseconds), batch)
    return RolloutResults(
        success=total.success,
        successes=total.successes,
        trials=total.trials,
        interval=total.interval,
        errors=total.errors,
        steps=float(np.mean(lengths)) if lengths else None,
        per_task={TASKS[task]: _count([o for o in outcomes if o.task == TASKS[task]]) for task in tasks},
        latency=latency,
        episodes=outcomes,
        clips=tuple(Clip(tuple(run.seen), run.outcome) for run in runs if run.seen),
    )


def _count(outcomes: Sequence[EpisodeOutcome]) -> TaskResult:
    successes = sum(item.outcome == "success" for item in outcomes)
    errors = sum(item.outcome == "error" for item in outcomes)
    trials = len(outcomes) - errors
    return TaskResult(
        success=successes / trials if trials else None,
        successes=successes,
        trials=trials,
        errors=errors,
        interval=wilson(successes, trials),
    )
